"""Users with passwords: argon2id hashes in a file that `headwater passwd` writes."""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from headwater.gateway.identity import Login, Reason, Refusal, Verdict, identity_of
from headwater.gateway.recordfile import RecordFile, Records, changing
from headwater.security import PasswordSettings

KIND: Final = "users"

#: argon2id with 19 MiB, two passes, one lane: the least that OWASP's Password Storage Cheat Sheet asks for, since a
#: fleet that reconnects pays it for each device. Each hash carries its own parameters.
_HASHER: Final = PasswordHasher(time_cost=2, memory_cost=19 << 10, parallelism=1)
#: Longest password that is looked at, bytes; ours.
_MAX_PASSWORD: Final = 1024


class PasswordFile:
    """The source `password`: user names and passwords from a file. raises: IdentityError"""

    name = "password"

    def __init__(self, settings: PasswordSettings) -> None:
        self._file = RecordFile(settings.file, KIND, _check)
        self._max_remembered = settings.max_remembered
        self._key = os.urandom(32)
        # Verified for users that do not exist, so that time does not tell who does.
        self._nobody = _HASHER.hash(os.urandom(16))
        self._lock = threading.Lock()
        self._remembered: OrderedDict[bytes, None] = OrderedDict()

    def identify(self, login: Login) -> Verdict | None:
        """The user of the file. A user name that it lacks is another source's, if there is one."""
        if login.user_name is None or login.password is None:
            return None
        record, line = self._file.find(login.user_name)
        if record is None:
            _verify(self._nobody, login.password)
            return None
        if not self._right(login.user_name, record["hash"], login.password):
            return Refusal(Reason.BAD_USER_NAME_OR_PASSWORD, f"wrong password of user {login.user_name!r}")
        identity = identity_of(record, login.user_name, f"user {login.user_name!r}")
        thing = login.client_id if login.client_id == login.user_name else ""
        return replace(identity, thing=thing, line=line)

    def changed(self) -> tuple[int, dict[str, int]] | None:
        """Marks of all users, where the file has changed."""
        return self._file.changed()

    def close(self) -> None:
        """Nothing is open."""

    def _right(self, user: str, hashed: str, password: bytes) -> bool:
        """Verified once, then known by a keyed hash for as long as the process runs and the file says the same."""
        proof = b"\0".join((user.encode(), hashed.encode(), password))
        mark = hmac.digest(self._key, proof, hashlib.sha256)
        with self._lock:
            if mark in self._remembered:
                self._remembered.move_to_end(mark)
                return True
        if not _verify(hashed, password):
            return False
        with self._lock:
            self._remembered[mark] = None
            while len(self._remembered) > self._max_remembered:
                self._remembered.popitem(last=False)
        return True


def _verify(hashed: str, password: bytes) -> bool:
    if len(password) > _MAX_PASSWORD:
        return False
    try:
        return _HASHER.verify(hashed, password)
    except (VerificationError, InvalidHashError):
        return False


def _check(records: Records) -> None:
    for user, record in records.items():
        hashed = record.get("hash")
        if not isinstance(hashed, str) or not hashed.startswith("$argon2id$"):
            raise ValueError(f"user {user!r}: hash must be an argon2id hash; `headwater passwd` writes one")
        identity_of(record, user, f"user {user!r}")


def set_user(
    path: Path,
    user: str,
    password: str,
    tenant: str | None = None,
    policies: list[str] | None = None,
) -> bool:
    """Adds a user or changes its password; what is None stays as it is. Returns whether the user is new.

    raises: IdentityError; ValueError: an empty or too long password, a name that is too long
    """
    if not password or len(password.encode()) > _MAX_PASSWORD:
        raise ValueError(f"a password has 1 to {_MAX_PASSWORD} bytes")
    with changing(path, KIND) as records:
        new = user not in records
        record: dict[str, Any] = dict(records.get(user, {}))
        record["hash"] = _HASHER.hash(password)
        if tenant is not None:
            record["tenant"] = tenant
        if policies is not None:
            record["policies"] = policies
        identity_of(record, user, f"user {user!r}")
        records[user] = record
    return new


def remove_user(path: Path, user: str) -> bool:
    """Removes a user. Returns whether there was one. raises: IdentityError"""
    with changing(path, KIND) as records:
        return records.pop(user, None) is not None

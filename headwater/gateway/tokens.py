"""Signed tokens: JSON Web Tokens (RFC 7519) against a JSON Web Key Set (RFC 7517) in a file or behind a URL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import httpx
import jwt
import orjson
import structlog

from headwater.errors import IdentityError
from headwater.gateway.identity import Identity, Login, Reason, Refusal, Verdict, identity_of
from headwater.gateway.remote import read_bounded
from headwater.security import JwtSettings

logger = structlog.get_logger(__name__)

#: Least time between two readings of the keys because of an unknown key id, seconds: strangers choose the ids. Ours.
_EARLY_S: Final = 10.0
#: Largest key set, bytes, and longest token; ours.
_MAX_KEYS: Final = 1 << 20
_MAX_TOKEN: Final = 16 << 10


class Tokens:
    """The source `jwt`. raises: IdentityError where the keys are in a file that cannot be read"""

    name = "jwt"

    def __init__(self, settings: JwtSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._keys = KeySet(settings, clock)

    def identify(self, login: Login) -> Verdict | None:
        """Who the token says it is; what does not look like a token is another source's."""
        token = _token(login, self._settings.token)
        if token is None:
            return None
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError:
            return None
        try:
            return self._identity(login, self._claims(token, header))
        except jwt.PyJWTError as error:
            return Refusal(Reason.BAD_USER_NAME_OR_PASSWORD, f"the token is not valid: {error}")
        except LookupError as error:
            return Refusal(Reason.SERVER_UNAVAILABLE, str(error.args[0]))
        except ValueError as error:
            return Refusal(Reason.NOT_AUTHORIZED, str(error))

    def changed(self) -> None:
        """Tokens say themselves how long they count."""

    def close(self) -> None:
        """Nothing is open."""

    def _claims(self, token: str, header: Mapping[str, Any]) -> dict[str, Any]:
        settings = self._settings
        algorithm = header.get("alg")
        if algorithm not in settings.algorithms:
            raise jwt.InvalidAlgorithmError(f"algorithm {algorithm!r} is none of {settings.algorithms}")
        key = self._keys.find(header.get("kid"), algorithm)
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            # Pinned to the key's own, so that a token cannot choose how it is checked (RFC 8725, section 3.1).
            algorithms=[key.algorithm_name],
            issuer=settings.issuer,
            audience=settings.audience,
            leeway=settings.leeway / 1e6,
            options={"require": ["exp"], "verify_aud": settings.audience is not None},
        )
        return claims

    def _identity(self, login: Login, claims: Mapping[str, Any]) -> Identity:
        settings = self._settings
        user = _claim(claims, settings.user_claim)
        if not isinstance(user, str) or not user:
            raise ValueError(f"the token has no user: claim {settings.user_claim!r} is {user!r}")
        client_id = _claim(claims, settings.client_id_claim)
        if client_id is not None and client_id != login.client_id:
            raise ValueError(f"the token is for client id {client_id!r}, not {login.client_id!r}")
        record = {
            "tenant": _claim(claims, settings.tenant_claim),
            "policies": _claim(claims, settings.policies_claim),
            "attributes": {
                name: value for name, value in claims.items() if isinstance(value, str) and len(value) <= 128
            },
        }
        record["attributes"] = dict(list(record["attributes"].items())[:32])
        found = identity_of(record, user, f"token of {user!r}")
        vouched = login.client_id in (client_id, user)
        thing = login.client_id if vouched else ""
        # Who comes in within the leeway stays until it is over.
        return replace(found, thing=thing, until=float(claims["exp"]) + settings.leeway / 1e6)


def _token(login: Login, field: str) -> str | None:
    """The text that should be a token: three parts, of which the first begins as `{"` does in base64."""
    if field == "user_name":
        text = login.user_name
    else:
        try:
            text = login.password.decode("ascii") if login.password is not None else None
        except UnicodeDecodeError:
            return None
    if text is None or len(text) > _MAX_TOKEN or text.count(".") != 2 or not text.startswith("ey"):
        return None
    return text


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, or by a dotted path into nested ones."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return found


class KeySet:
    """Public keys by id, read again after a while and, at most every ten seconds, for an id that is not known."""

    def __init__(self, settings: JwtSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._read_at: float | None = None
        self._problem: str | None = None
        if settings.url is None:
            self._refresh()
            if self._problem is not None:
                raise IdentityError(self._problem)

    def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK:
        """The key of a token's header.

        raises: jwt.InvalidKeyError: none such; LookupError: the keys cannot be had
        """
        now = self._clock()
        age = None if self._read_at is None else now - self._read_at
        stale = age is None or age * 1e6 >= self._settings.refresh
        unknown = self._choose(key_id, algorithm) is None
        if (stale or (unknown and age is not None and age >= _EARLY_S)) and self._lock.acquire(
            blocking=age is None
        ):
            # One thread reads; the others go on with the keys that are there, where there are any.
            try:
                if self._read_at is None or self._clock() - self._read_at >= _EARLY_S or stale:
                    self._refresh_after(now)
            finally:
                self._lock.release()
        key = self._choose(key_id, algorithm)
        if key is None and not self._keys:
            raise LookupError(self._problem or f"reading {self._settings.keys}: no keys")
        if key is None:
            raise jwt.InvalidKeyError(f"no key {key_id!r} for {algorithm} in {self._settings.keys}")
        return key

    def _refresh_after(self, asked_at: float) -> None:
        # Who waited for the lock finds the keys read meanwhile.
        if self._read_at is None or self._read_at <= asked_at:
            self._refresh()

    def _choose(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        keys = self._keys
        if key_id is None:
            # RFC 7515, section 4.1.4: the id is a hint. Without one the key must be the only one of its algorithm.
            fitting = [key for key in keys.values() if key.algorithm_name == algorithm]
            return fitting[0] if len(fitting) == 1 else None
        key = keys.get(key_id)
        return key if key is not None and key.algorithm_name == algorithm else None

    def _refresh(self) -> None:
        try:
            document = orjson.loads(self._load())
            entries = document["keys"]
            keys: dict[str | None, jwt.PyJWK] = {}
            for at, entry in enumerate(entries):
                if entry.get("use", "sig") != "sig" or entry.get("kty") == "oct":
                    continue
                try:
                    key = jwt.PyJWK(entry)
                except jwt.PyJWTError:
                    continue  # RFC 7517, section 5: keys of unknown kinds are passed over.
                if key.algorithm_name in self._settings.algorithms:
                    keys[entry.get("kid") or f"#{at}"] = key
            if not keys:
                raise ValueError(f"no key for {', '.join(self._settings.algorithms)}")
        except (OSError, httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
            # What was read before holds.
            self._problem = (
                f"reading the keys of tokens from {self._settings.keys}: {error or type(error).__name__}"
            )
            logger.warning("keys of tokens not read", detail=self._problem)
        else:
            self._keys, self._problem = keys, None
        self._read_at = self._clock()

    def _load(self) -> bytes:
        if self._settings.url is None:
            content = Path(self._settings.keys).read_bytes()
            if len(content) > _MAX_KEYS:
                raise ValueError(f"{len(content)} bytes, the most is {_MAX_KEYS}")
            return content
        timeout_s = self._settings.timeout / 1e6
        with httpx.Client(timeout=timeout_s, follow_redirects=False) as client:
            status, content = read_bounded(client, "GET", self._settings.url, timeout_s, _MAX_KEYS)
        if status != 200:
            raise ValueError(f"HTTP status {status}")
        return content

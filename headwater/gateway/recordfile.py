"""Files of identities: JSON with a version, written as a whole, read again when they change.

{"version": 1, "users": {"ann": {"hash": "$argon2id$...", "tenant": "acme", "policies": ["device"]}}}
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import orjson
import structlog

from headwater import durable
from headwater.errors import IdentityError
from headwater.gateway.identity import Line

logger = structlog.get_logger(__name__)

VERSION: Final = 1
#: Largest file, bytes; larger ones are refused: a fleet of that size has tokens or certificates of its own. Ours.
MAX_BYTES: Final = 64 << 20
#: Least time between two looks at the file, seconds.
LOOK_S: Final = 1.0

Records = dict[str, dict[str, Any]]


def read(path: Path, kind: str) -> Records:
    """Records by name.

    kind:   the key they stand under: `users`, `certificates`
    raises: IdentityError; FileNotFoundError
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise IdentityError(
                f"reading {path}: found {size} bytes, the most is {MAX_BYTES}; use another source"
            )
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise IdentityError(f"reading {path}: {error}") from error
    if not isinstance(document, dict) or document.get("version") != VERSION:
        found = document.get("version") if isinstance(document, dict) else type(document).__name__
        raise IdentityError(
            f"reading {path}: found version {found!r}, this Headwater reads version {VERSION}"
        )
    records = document.get(kind)
    if not isinstance(records, dict) or not all(isinstance(record, dict) for record in records.values()):
        raise IdentityError(f"reading {path}: {kind!r} must be an object of objects")
    return records


@contextmanager
def changing(path: Path, kind: str) -> Iterator[Records]:
    """The records, to be changed in place; what they are at the end becomes the file, readable by its owner alone.

    One process changes at a time. raises: IdentityError
    """
    try:
        durable.make_directory(path.parent)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise IdentityError(f"opening {path.parent}: {error.strerror}") from error
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        try:
            records = read(path, kind)
        except FileNotFoundError:
            records = {}
        yield records
        text = json.dumps(
            {"version": VERSION, kind: dict(sorted(records.items()))}, indent=1, ensure_ascii=False
        )
        write_private(path, text.encode() + b"\n")
    finally:
        os.close(directory)


def write_private(path: Path, content: bytes) -> None:
    """A file that its owner alone reads, whole or not at all. raises: IdentityError"""
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        durable.publish(temporary, path)
    except OSError as error:
        raise IdentityError(f"writing {path}: {error.strerror}") from error


class RecordFile:
    """The records of a file, read again when it has changed, as long as it can be read.

    check: is given the records and raises ValueError for what is wrong with them
    raises: IdentityError where the file cannot be read at the start
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        check: Callable[[Records], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self._kind = kind
        self._check = check
        self._clock = clock
        self._lock = threading.Lock()
        self._looked = clock()
        self._stamp: tuple[int, int, int] | None = self._stat()
        #: Of the last change that could not be taken over.
        self.error: str | None = None
        try:
            #: Version, which grows with each change, and records.
            self._held = (1, self._load())
        except FileNotFoundError:
            raise IdentityError(f"reading {path}: no such file") from None
        #: The version that `changed` has told.
        self._told = 1

    def records(self) -> Mapping[str, dict[str, Any]]:
        """The records as of the last second."""
        return self._fresh()[1]

    def find(self, name: str) -> tuple[Mapping[str, Any] | None, Line]:
        """The record of this name as of the last second, if there is one, and its line."""
        version, records = self._fresh()
        record = records.get(name)
        return record, Line(name, version, 0 if record is None else _mark(record))

    def changed(self) -> tuple[int, dict[str, int]] | None:
        """Version and marks of all records where they have changed since it was asked last; asked by one thread."""
        version, records = self._fresh()
        if version == self._told:
            return None
        self._told = version
        return version, {name: _mark(record) for name, record in records.items()}

    def _fresh(self) -> tuple[int, Records]:
        now = self._clock()
        if now - self._looked >= LOOK_S and self._lock.acquire(blocking=False):
            try:
                self._looked = now
                stamp = self._stat()
                if stamp != self._stamp:
                    self._stamp = stamp
                    self._held = (self._held[0] + 1, self._load())
                    self.error = None
            except (IdentityError, FileNotFoundError) as error:
                # What was read before holds, as a half-written file must not lock everybody out.
                self.error = str(error)
                logger.warning("identities not read again, the former ones hold", detail=self.error)
            finally:
                self._lock.release()
        return self._held

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return (found.st_ino, found.st_mtime_ns, found.st_size)

    def _load(self) -> Records:
        records = read(self.path, self._kind)
        try:
            self._check(records)
        except ValueError as error:
            raise IdentityError(f"reading {self.path}: {error}") from error
        return records


def _mark(record: Mapping[str, Any]) -> int:
    """Tells two states of a record apart; never 0."""
    text = orjson.dumps(record, option=orjson.OPT_SORT_KEYS)
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") | 1

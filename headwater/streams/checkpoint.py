"""State of one query on disk: docs/formats/checkpoint.md draws every byte.

A file begins with a whole state; what has changed since is appended, until that is as much again. A whole state is
complete or it is not there: written under another name, synced, renamed, its directory synced. The file before is kept.
What is damaged at the end of a file costs a longer replay and no result.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Protocol

import structlog

from headwater import _native, durable
from headwater.errors import DataDirectoryError

MAGIC: Final = b"HWCK"
VERSION: Final = 2
#: magic, version, whole (0) or changes (1), bytes of header, window state and keys; then CRC-32 of these and header.
_HEAD: Final = struct.Struct("<4sHHIQQ")
_CRC: Final = struct.Struct("<I")
#: Version 1, always whole: magic, version, zero, CRC-32 of all that follows; bytes of header, window state and keys.
_HEAD_1: Final = struct.Struct("<4sHHI")
_LENGTHS_1: Final = struct.Struct("<IQQ")
#: Most changes appended to a whole state, and the bytes of them that are appended however small that is.
MAX_CHANGES: Final = 32
_LEAST_BYTES: Final = 1 << 20

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Header:
    """Where a query stood. Offsets are the next rows to read.

    signature:  of the plan whose state this is; generation: how often that changed
    step:       number of the last step recorded in the log; steps_at: where later ones are, offsets of stream `_steps`
    stream:     id of the source; offsets: of the source, one per partition
    highest:    highest event time per partition, None before the first row
    amended:    whether rows have amended windows whose new revision is not written yet
    lateness_us, held_windows: settings that the steps after it were made with
    floor_us:   rows before it are left out: an earlier text of the query has closed their windows
    early_us:   as lateness_us and held_windows; files from before it have none
    """

    query: str
    signature: str
    generation: int
    step: int
    steps_at: list[int]
    stream: int
    offsets: list[int]
    highest: list[int | None]
    idle: list[bool]
    watermark: int | None
    amended: bool
    floor_us: int | None
    lateness_us: int
    held_windows: int
    counters: dict[str, int]
    early_us: int | None = None


class State(Protocol):
    """Part of a checkpoint as it was at one moment, sealed with its CRC32C: `_native.Frozen` is one."""

    def length(self) -> int:
        """Bytes of it."""

    def append_to(self, path: Path) -> None:
        """Writes it to the end of a file. raises: OSError"""


@dataclass(frozen=True, slots=True)
class Encoded:
    """State that is bytes already."""

    content: bytes

    def length(self) -> int:
        return len(self.content)

    def append_to(self, path: Path) -> None:
        with path.open("ab") as file:
            file.write(self.content)


@dataclass(frozen=True, slots=True)
class Section:
    """One checkpoint in a file, checked. whole: else what has changed since the one before it in the file."""

    header: Header
    whole: bool
    path: Path
    at: int
    windows_length: int
    keys_length: int

    @property
    def end(self) -> int:
        """Where the next one begins."""
        return self.at + self.windows_length + self.keys_length

    def windows(self) -> bytes:
        """Of the native kernel, or of a pattern. raises: OSError"""
        return _read(self.path, self.at, self.windows_length)

    def keys(self) -> bytes:
        """Of the key interner, empty where the log's own key ids are used. raises: OSError"""
        return _read(self.path, self.at + self.windows_length, self.keys_length)


@dataclass(frozen=True, slots=True)
class Stored:
    """The newest checkpoint that is valid. sections: a whole state and changes to it; problem: of what came later."""

    sections: list[Section]
    problem: str | None

    @property
    def header(self) -> Header:
        return self.sections[-1].header

    def states(self) -> Iterator[tuple[bytes, bytes]]:
        """Window state and keys: whole ones, then changes, one after the other. raises: OSError"""
        return ((section.windows(), section.keys()) for section in self.sections)


class Writer:
    """Writes the checkpoints of one query, one at a time. The first one is whole, whatever the file holds.

    executor: where it writes; whoever asks for a checkpoint need not wait
    """

    def __init__(self, path: Path, executor: Executor) -> None:
        self._path = path
        self._executor = executor
        #: Of the file that the next changes belong to: its size, that of its whole state, and how many came after it.
        self._end = self._whole_bytes = self._changes = 0

    @property
    def next_is_whole(self) -> bool:
        """Whether the next one has to be a whole state."""
        appended = self._end - self._whole_bytes
        return (
            not self._end or self._changes >= MAX_CHANGES or appended >= max(self._whole_bytes, _LEAST_BYTES)
        )

    def write(self, header: Header, windows: State, keys: State | None, whole: bool) -> Future[int]:
        """Puts a checkpoint on disk; its bytes. It has failed where the disk refuses: DataDirectoryError.

        whole: as `next_is_whole` says, with `windows` and `keys` frozen accordingly
        """
        return self._executor.submit(self._write, header, windows, keys, whole)

    def _write(self, header: Header, windows: State, keys: State | None, whole: bool) -> int:
        end, self._end = self._end, 0  # after a failure the next one is whole
        path = self._path.with_suffix(".tmp") if whole else self._path
        try:
            if whole:
                durable.make_directory(path.parent)
                path.unlink(missing_ok=True)
            elif path.stat().st_size != end:
                raise OSError(f"it has {path.stat().st_size} bytes, not the {end} that were written")
            with path.open("ab") as file:
                file.write(_head(header, whole, windows.length(), 0 if keys is None else keys.length()))
            windows.append_to(path)
            if keys is not None:
                keys.append_to(path)
            size = path.stat().st_size
            if whole:
                if self._path.exists():
                    self._path.replace(previous(self._path))
                durable.publish(path, self._path)
                self._whole_bytes, self._changes = size, 0
            else:
                durable.sync_file(path)
                self._changes += 1
        except OSError as error:
            raise DataDirectoryError(f"writing checkpoint {self._path}: {error}") from error
        self._end = size
        return size if whole else size - end


def read_checkpoint(path: Path) -> Stored | None:
    """The newest valid checkpoint at `path` or `previous(path)`, None where there never was one.

    raises: DataDirectoryError when there are files and none is valid
    """
    problem: str | None = None
    for candidate in (path, previous(path)):
        sections, wrong = _sections(candidate)
        problem = problem or wrong
        if sections:
            if problem is not None:
                _log.warning(
                    "checkpoint damaged, the one before is used",
                    problem=problem,
                    used=str(candidate),
                    step=sections[-1].header.step,
                )
            return Stored(sections, problem)
    if problem is not None:
        raise DataDirectoryError(
            f"{problem}; no earlier one is valid. Move both files away to start the query anew at the log's end"
        )
    return None


def previous(path: Path) -> Path:
    """Where the file before the newest one is."""
    return path.with_suffix(".previous")


def _head(header: Header, whole: bool, windows_length: int, keys_length: int) -> bytes:
    """What comes before window state and keys."""
    text = json.dumps(asdict(header), separators=(",", ":")).encode()
    head = _HEAD.pack(MAGIC, VERSION, int(not whole), len(text), windows_length, keys_length)
    return head + _CRC.pack(zlib.crc32(text, zlib.crc32(head))) + text


def _sections(path: Path) -> tuple[list[Section], str | None]:
    """The valid sections at the front of a file, and what is wrong with the one after them."""
    found: list[Section] = []
    try:
        size = path.stat().st_size
        while not found or found[-1].end < size:
            try:
                section = _section(path, found[-1].end if found else 0)
                if section.whole == bool(found):
                    raise ValueError("a whole state stands where changes are needed, or changes come first")
            except ValueError as error:
                which = f", change {len(found)}" if found else ""
                return found, f"reading checkpoint {path}{which}: {error}"
            found.append(section)
    except FileNotFoundError:
        return [], None
    except OSError as error:
        return found, f"reading checkpoint {path}: {error}"
    return found, None


def _section(path: Path, at: int) -> Section:
    """The section that begins there. raises: ValueError: what is wrong; OSError"""
    head = _read(path, at, _HEAD.size + _CRC.size)
    magic, version = head[:4], int.from_bytes(head[4:6], "little")
    if magic == MAGIC and version == 1 and at == 0:
        return _section_1(path)
    if len(head) < _HEAD.size + _CRC.size:
        raise ValueError(f"{len(head)} bytes are too few for a checkpoint")
    if magic != MAGIC:
        raise ValueError(f"it begins with {magic!r}, not with {MAGIC!r}")
    if version != VERSION:
        raise ValueError(
            f"version {version} is not {VERSION}; it was written by another version of Headwater"
        )
    _, _, kind, header_length, windows_length, keys_length = _HEAD.unpack_from(head)
    header_at = at + len(head)
    text = _read(path, header_at, header_length)
    if zlib.crc32(text, zlib.crc32(head[: _HEAD.size])) != _CRC.unpack_from(head, _HEAD.size)[0] or kind > 1:
        raise ValueError("its checksum does not match, the file is damaged")
    header = _header(text)
    found = Section(header, kind == 0, path, header_at + header_length, windows_length, keys_length)
    for length, content in ((windows_length, found.windows()), (keys_length, found.keys())):
        if len(content) != length:
            raise ValueError(f"it ends after {len(content)} of {length} bytes")
        if content and not _native.is_sealed(content):
            raise ValueError("the checksum of its state does not match, the file is damaged")
    return found


def _section_1(path: Path) -> Section:
    content = path.read_bytes()
    if len(content) < _HEAD_1.size + _LENGTHS_1.size:
        raise ValueError(f"{len(content)} bytes are too few for a checkpoint")
    _, _, zero, crc = _HEAD_1.unpack_from(content)
    if zlib.crc32(memoryview(content)[_HEAD_1.size :]) != crc or zero != 0:
        raise ValueError("its checksum does not match, the file is damaged")
    lengths = _LENGTHS_1.unpack_from(content, _HEAD_1.size)
    at = _HEAD_1.size + _LENGTHS_1.size
    if at + sum(lengths) != len(content):
        raise ValueError(f"its parts of {lengths} bytes do not add up to {len(content) - at}")
    header = _header(content[at : at + lengths[0]])
    return Section(header, True, path, at + lengths[0], lengths[1], lengths[2])


def _header(text: bytes) -> Header:
    try:
        return Header(**json.loads(text))
    except TypeError as error:
        raise ValueError(f"its header is not understood: {error}") from error


def _read(path: Path, at: int, length: int) -> bytes:
    """Up to so many bytes. raises: OSError"""
    with path.open("rb") as file:
        file.seek(at)
        # No more than there is: a damaged length promises anything.
        return file.read(min(length, path.stat().st_size))

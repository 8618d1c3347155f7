"""State of one query on disk: docs/formats/checkpoint.md draws every byte.

A file is complete or it is not there: written under another name, synced, renamed, its directory synced. The one
before is kept, so that a damaged file costs a longer replay and no result.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from headwater import durable
from headwater.errors import DataDirectoryError

MAGIC: Final = b"HWCK"
VERSION: Final = 1
#: magic, version, zero, CRC-32 of all that follows this field, then bytes of header, window state and keys.
_HEAD: Final = struct.Struct("<4sHHI")
_LENGTHS: Final = struct.Struct("<IQQ")

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


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """windows: of the native kernel; keys: of the key interner, empty where the log's own key ids are used."""

    header: Header
    windows: bytes
    keys: bytes


def encode(checkpoint: Checkpoint) -> bytes:
    """The file's bytes."""
    header = json.dumps(asdict(checkpoint.header), separators=(",", ":")).encode()
    body = b"".join(
        (
            _LENGTHS.pack(len(header), len(checkpoint.windows), len(checkpoint.keys)),
            header,
            checkpoint.windows,
            checkpoint.keys,
        )
    )
    return _HEAD.pack(MAGIC, VERSION, 0, zlib.crc32(body)) + body


def decode(content: bytes, path: Path) -> Checkpoint:
    """The checkpoint in a file's bytes.

    raises: DataDirectoryError naming `path` and what is wrong
    """

    def wrong(what: str) -> DataDirectoryError:
        return DataDirectoryError(f"reading checkpoint {path}: {what}")

    if len(content) < _HEAD.size + _LENGTHS.size:
        raise wrong(f"{len(content)} bytes are too few for a checkpoint")
    magic, version, zero, crc = _HEAD.unpack_from(content)
    if magic != MAGIC:
        raise wrong(f"it begins with {magic!r}, not with {MAGIC!r}")
    if version != VERSION:
        raise wrong(f"version {version} is not {VERSION}; it was written by another version of Headwater")
    body = memoryview(content)[_HEAD.size :]
    if zlib.crc32(body) != crc or zero != 0:
        raise wrong("its checksum does not match, the file is damaged")
    lengths = _LENGTHS.unpack_from(body)
    if _LENGTHS.size + sum(lengths) != len(body):
        raise wrong(f"its parts of {lengths} bytes do not add up to {len(body)}")
    parts, at = [], _LENGTHS.size
    for length in lengths:
        parts.append(bytes(body[at : at + length]))
        at += length
    try:
        fields: dict[str, Any] = json.loads(parts[0])
        return Checkpoint(Header(**fields), parts[1], parts[2])
    except (ValueError, TypeError) as error:
        raise wrong(f"its header is not understood: {error}") from error


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Puts the checkpoint at `path`, durably; the one before goes to `previous(path)`.

    raises: DataDirectoryError when the disk refuses
    """
    temporary = path.with_suffix(".tmp")
    try:
        durable.make_directory(path.parent)
        temporary.write_bytes(encode(checkpoint))
        if path.exists():
            path.replace(previous(path))
        durable.publish(temporary, path)
    except OSError as error:
        raise DataDirectoryError(f"writing checkpoint {path}: {error}") from error


def read_checkpoint(path: Path) -> Checkpoint | None:
    """The newest valid checkpoint at `path` or `previous(path)`, None where there never was one.

    raises: DataDirectoryError when there are files and none is valid
    """
    problem: DataDirectoryError | None = None
    for candidate in (path, previous(path)):
        try:
            found = decode(candidate.read_bytes(), candidate)
        except FileNotFoundError:
            continue
        except OSError as error:
            problem = DataDirectoryError(f"reading checkpoint {candidate}: {error}")
        except DataDirectoryError as error:
            problem = problem or error
        else:
            if problem is not None:
                _log.warning(
                    "checkpoint damaged, the one before is used", problem=str(problem), used=str(candidate)
                )
            return found
    if problem is not None:
        raise DataDirectoryError(
            f"{problem}; no earlier one is valid. Move both files away to start the query anew at the log's end"
        )
    return None


def previous(path: Path) -> Path:
    """Where the checkpoint before the newest one is."""
    return path.with_suffix(".previous")

"""The checksums of one table's transaction log, which Delta Lake does not keep: `_checksums` in the table's directory.

A line per file of `_delta_log`, appended and fsynced after the file itself is durable; docs/formats/checksums.md. So
a file that is listed and differs is damaged, and one that is not listed yet is what a stop has left: its rows are still
in the log. Each line has a checksum of its own.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from headwater import durable
from headwater.errors import StoreError

NAME: Final = "_checksums"

_HEADER: Final = b"headwater checksums 1\n"
_LINE: Final = re.compile(rb"(\S+) (\d+) ([0-9a-f]{8}) ([0-9a-f]{8})")


class Checksums:
    """The list in `directory`, empty where there is none. `table` is for errors.

    messages: is told of a torn end
    raises:   StoreError when the list is damaged before its end; OSError
    """

    def __init__(self, directory: Path, table: str, messages: list[str]) -> None:
        self._path = directory / NAME
        self._table = table
        #: Size and CRC-32 of each listed file; the last line of a name counts.
        self._listed: dict[str, tuple[int, int]] = {}
        #: Whether the file must be written anew before a line can be appended to it.
        self._stale = True
        if self._path.exists():
            self._load(self._path.read_bytes(), messages)

    def __contains__(self, path: Path) -> bool:
        return path.name in self._listed

    def whole(self, path: Path) -> bool:
        """Whether a listed file has the bytes that it was listed with. raises: OSError, KeyError"""
        return self._listed[path.name] == _sum(path)

    def add(self, path: Path) -> None:
        """Lists a file that is durable, durably. One at a time: only the last line can be torn. raises: OSError"""
        added = _sum(path)
        if self._stale:
            self._write(self._listed | {path.name: added})
            return
        # What is on disk after an error is not known, nor would another fsync tell.
        self._stale = True
        with self._path.open("ab", buffering=0) as file:
            line = _line(path.name, added)
            if file.write(line) != len(line):
                raise OSError(f"{self._path}: a line was written in part")
            os.fdatasync(file.fileno())
        self._listed[path.name] = added
        self._stale = False

    def replace(self, kept: Iterable[Path], new: Iterable[Path]) -> None:
        """Lists just these durable files, `kept` with the checksums that they have here. raises: OSError, KeyError"""
        listed = {path.name: self._listed[path.name] for path in kept}
        self._write(listed | {path.name: _sum(path) for path in new})

    def _load(self, data: bytes, messages: list[str]) -> None:
        lines = data.splitlines(keepends=True)
        for number, line in enumerate(lines):
            if number == 0 and line == _HEADER:
                continue
            match = _LINE.fullmatch(line[:-1]) if number and line.endswith(b"\n") else None
            if match and int(match[4], 16) == zlib.crc32(line[: match.start(4) - 1]):
                self._listed[match[1].decode()] = (int(match[2]), int(match[3], 16))
            elif number and number == len(lines) - 1:
                messages.append(f"table {self._table!r}: removed the last line of {NAME}, torn")
                return
            else:
                raise StoreError(
                    f"table {self._table!r}: line {number + 1} of {self._path} is damaged; restore the file from a"
                    " copy, or remove it to take the transaction log as it is"
                )
        self._stale = False

    def _write(self, listed: dict[str, tuple[int, int]]) -> None:
        temporary = self._path.with_name(NAME + ".tmp")
        temporary.write_bytes(_HEADER + b"".join(_line(name, sums) for name, sums in listed.items()))
        durable.publish(temporary, self._path)
        self._listed, self._stale = listed, False


def _sum(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    return len(data), zlib.crc32(data)


def _line(name: str, sums: tuple[int, int]) -> bytes:
    text = b"%s %d %08x" % (name.encode(), *sums)
    return b"%s %08x\n" % (text, zlib.crc32(text))

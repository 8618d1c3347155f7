"""Switches for the faulty disk of faults.c."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.preload import library

SOURCE = Path(__file__).with_name("faults.c")

#: struct control of faults.c: sync_ms, full, stuck, waiting, stuck_below.
_NUMBERS = struct.Struct("=4i")
_PATH_BYTES = 4096


class FaultyDisk:
    """The disk below `folder`, for processes started with `variables`; it works until a fault is switched on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder.with_name(f"{folder.name}.faults")
        self._file.write_bytes(bytes(_NUMBERS.size + _PATH_BYTES))
        with self._file.open("r+b") as file:
            self._control = mmap.mmap(file.fileno(), 0)

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of the process."""
        return {
            "LD_PRELOAD": str(library(SOURCE)),
            "FAULTS_WATCH": str(self.folder),
            "FAULTS_CONTROL": str(self._file),
        }

    @contextmanager
    def _switched(self, at: int, value: int) -> Iterator[None]:
        struct.pack_into("=i", self._control, 4 * at, value)
        try:
            yield
        finally:
            struct.pack_into("=i", self._control, 4 * at, 0)

    def slow(self, sync_ms: int) -> AbstractContextManager[None]:
        """Every sync takes `sync_ms` longer."""
        return self._switched(0, sync_ms)

    def full(self) -> AbstractContextManager[None]:
        """Nothing can grow."""
        return self._switched(1, 1)

    def stuck(self, below: Path) -> AbstractContextManager[None]:
        """Who opens a file below this folder for writing waits until the end."""
        self._control[_NUMBERS.size :] = str(below).encode().ljust(_PATH_BYTES, b"\0")
        return self._switched(2, 1)

    @property
    def waiting(self) -> int:
        """Threads that are stuck now."""
        waiting: int = _NUMBERS.unpack_from(self._control)[3]
        return waiting

"""Runs processes under the forgetful file layer and cuts their power."""

from __future__ import annotations

from pathlib import Path

from tests.forgetful.rollback import Report, rollback
from tests.preload import library

SOURCE = Path(__file__).with_name("forgetful.c")


class Layer:
    """Watches `folder`: processes started with `variables` can lose what they did not sync there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = folder.with_name(f"{folder.name}.journal")
        folder.mkdir(parents=True, exist_ok=True)
        self.journal.mkdir(exist_ok=True)

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables that put a process, and all that it starts, under the layer."""
        return {
            "LD_PRELOAD": str(library(SOURCE)),
            "FORGETFUL_WATCH": str(self.folder),
            "FORGETFUL_JOURNAL": str(self.journal),
        }

    def cut_power(self, seed: int | None = None) -> Report:
        """After every process was killed: the folder as a power cut leaves it; see `rollback`."""
        return rollback(self.folder, self.journal, seed)

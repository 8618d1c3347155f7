"""Runs processes under the forgetful file layer and cuts their power."""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.forgetful.rollback import Report, rollback

SOURCE = Path(__file__).with_name("forgetful.c")

#: A test that needs the layer is skipped with this reason where there is no C compiler.
COMPILER = shutil.which("cc")


@functools.cache
def library() -> Path:
    """The compiled layer, once per test run."""
    assert COMPILER is not None
    folder = tempfile.mkdtemp(prefix="forgetful-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    built = Path(folder) / "forgetful.so"
    options = [
        "-std=gnu11",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-U_FORTIFY_SOURCE",
        "-fvisibility=hidden",
        "-shared",
        "-fPIC",
    ]
    subprocess.run([COMPILER, *options, SOURCE, "-o", built, "-ldl", "-lpthread"], check=True)
    return built


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
            "LD_PRELOAD": str(library()),
            "FORGETFUL_WATCH": str(self.folder),
            "FORGETFUL_JOURNAL": str(self.journal),
        }

    def cut_power(self, seed: int | None = None) -> Report:
        """After every process was killed: the folder as a power cut leaves it; see `rollback`."""
        return rollback(self.folder, self.journal, seed)

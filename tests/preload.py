"""Compiles the libraries that tests put between a process and its files (LD_PRELOAD)."""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

#: A test that needs such a library is skipped with this reason where there is no C compiler.
COMPILER = shutil.which("cc")

_OPTIONS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-U_FORTIFY_SOURCE", "-shared", "-fPIC"]
_OPTIONS += ["-fvisibility=hidden"]
_OPTIONS += ["-fvisibility=hidden", "-shared", "-fPIC"]


@functools.cache
def library(source: Path) -> Path:
    """The compiled library, once per test run."""
    assert COMPILER is not None
    folder = tempfile.mkdtemp(prefix=f"{source.stem}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    built = Path(folder) / f"{source.stem}.so"
    subprocess.run([COMPILER, *_OPTIONS, source, "-o", built, "-ldl", "-lpthread"], check=True)
    return built

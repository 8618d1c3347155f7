"""Making files durable: what a power cut must not undo is fsynced here; the log and the database sync their own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def sync_file(path: Path) -> None:
    """Returns when the contents of the file are on disk. raises: OSError"""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Returns when names made, renamed or removed in the directory are on disk. raises: OSError"""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, final: Path) -> None:
    """Gives a finished file its name: after a power cut either the whole file has it, or no file.

    raises: OSError
    """
    sync_file(temporary)
    os.rename(temporary, final)
    sync_directory(final.parent)


def make_directory(path: Path) -> None:
    """Makes a directory and its missing parents, durably; an existing one is left as it is. raises: OSError"""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    sync_directory(path.parent)


def rewrite(path: Path) -> None:
    """Puts a copy of the file in its place. After a failed fsync the pages of the old file may be marked clean
    although they never reached the disk, so a second fsync of it would prove nothing; the copy's pages are new.
    raises: OSError"""
    copy = path.with_name(path.name + ".tmp")
    shutil.copyfile(path, copy)
    publish(copy, path)


def remove(path: Path) -> None:
    """Removes a file or a directory with all it holds, durably. raises: OSError"""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    sync_directory(path.parent)

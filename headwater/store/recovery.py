"""What a stop or damage has left of a table's transaction log, before Delta Lake reads it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from headwater import durable
from headwater.errors import StoreError
from headwater.store.checksums import Checksums

LAST_CHECKPOINT: Final = "_last_checkpoint"

#: Property of our commits: how many actions follow the commitInfo line, so that a cut between two lines shows.
ACTIONS: Final = "headwater.actions"

_COMMIT: Final = re.compile(r"(\d{20})\.json")
_CHECKPOINT: Final = re.compile(r"(\d{20})\.checkpoint\.parquet")


def recover(log: Path, checksums: Checksums, messages: list[str]) -> bool:
    """Removes a transaction, or a checkpoint, that a power cut has torn at the end of the log.

    Only the last one can be torn: each is fsynced before the next one begins, and has its checksum before the log
    forgets the rows that it adds. So one that has a checksum and differs is damaged.

    returns: whether there is a table
    raises:  StoreError for damage; OSError
    """
    if not log.is_dir():
        return False
    for stray in log.glob("*.tmp*"):
        durable.remove(stray)
    name = log.parent.name
    checkpoint = _recover_checkpoint(log, checksums, messages)
    versions = sorted(int(match[1]) for path in log.iterdir() if (match := _COMMIT.fullmatch(path.name)))
    # Transactions up to the checkpoint are not read any more.
    read = [version for version in versions if version > checkpoint]
    for version in read:
        path = log / f"{version:020d}.json"
        fault = _fault(path, checksums)
        if fault is None:
            continue
        if path in checksums or version != versions[-1]:
            raise StoreError(
                f"table {name!r}: transaction {path.name} is damaged ({fault}), and it is no torn end of the log but"
                " corruption; restore the file from a copy"
            )
        durable.remove(path)
        versions.pop()
        messages.append(
            f"table {name!r}: removed transaction {version}, torn at the end of its log ({fault})"
        )
    _list_missing(log, [log / f"{version:020d}.json" for version in read if version in versions], checksums)
    return bool(versions) or checkpoint >= 0


def _recover_checkpoint(log: Path, checksums: Checksums, messages: list[str]) -> int:
    """Version of the newest whole checkpoint, -1 for none; damaged ones that are not needed are removed."""
    version = -1
    while found := [int(m[1]) for path in log.iterdir() if (m := _CHECKPOINT.fullmatch(path.name))]:
        path = log / f"{max(found):020d}.checkpoint.parquet"
        if checksums.whole(path) if path in checksums else _readable(path):
            version = max(found)
            _list_missing(log, [path], checksums)
            break
        below = max((other for other in found if other < max(found)), default=-1)
        if not all((log / f"{commit:020d}.json").exists() for commit in range(below + 1, max(found) + 1)):
            raise StoreError(
                f"table {log.parent.name!r}: checkpoint {path.name} is damaged and the transactions that it sums up"
                " are no longer there; restore it from a copy"
            )
        (log / LAST_CHECKPOINT).unlink(missing_ok=True)
        durable.remove(path)
        messages.append(f"table {log.parent.name!r}: removed checkpoint {max(found)}, torn or damaged")
    _recover_last_checkpoint(log, version, checksums, messages)
    return version


def _recover_last_checkpoint(log: Path, version: int, checksums: Checksums, messages: list[str]) -> None:
    """Removes a `_last_checkpoint` that is not as it was written: a hint for readers, the directory shows the same."""
    last = log / LAST_CHECKPOINT
    if not last.exists():
        return
    try:
        whole = json.loads(last.read_bytes())["version"] == version
    except (ValueError, KeyError, TypeError):
        whole = False
    if whole and (last not in checksums or checksums.whole(last)):
        _list_missing(log, [last], checksums)
    else:
        durable.remove(last)
        messages.append(f"table {log.parent.name!r}: removed {LAST_CHECKPOINT}, torn or damaged")


def _list_missing(log: Path, whole: list[Path], checksums: Checksums) -> None:
    """Gives checksums to files that a stop has left without, or that are older than the list of checksums."""
    new = [path for path in whole if path not in checksums]
    if new:
        for path in new:
            durable.sync_file(path)
        durable.sync_directory(log)
        checksums.replace([path for path in log.iterdir() if path in checksums], new)


def _readable(checkpoint: Path) -> bool:
    try:
        pq.read_table(checkpoint)
    except (OSError, ValueError, pa.ArrowException):
        return False
    return True


def _fault(commit: Path, checksums: Checksums) -> str | None:
    """What is wrong with a transaction file, None when it is whole."""
    if commit in checksums:
        return None if checksums.whole(commit) else "its bytes do not match its checksum"
    lines = commit.read_bytes().splitlines()
    if not lines:
        return "empty"
    try:
        actions = [json.loads(line) for line in lines if line.strip()]
    except ValueError:
        return "not JSON"
    if not all(isinstance(action, dict) for action in actions):
        return "not a list of actions"
    info: dict[str, Any] = next((action["commitInfo"] for action in actions if "commitInfo" in action), {})
    expected = info.get(ACTIONS)
    if expected is not None and int(expected) != len(actions) - 1:
        return f"{len(actions) - 1} of {expected} actions"
    return None

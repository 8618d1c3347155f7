"""A stop at any moment of a flush loses no row and doubles none, and the log forgets nothing too early."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from headwater import durable
from headwater.errors import StoreError
from headwater.log.embedded import EmbeddedLog
from headwater.store import checksums, delta
from headwater.store.embedded import EmbeddedStore
from tests.store.conftest import READINGS, Opener, batch, reading


def append(log: EmbeddedLog, first: int, count: int) -> None:
    rows = [reading(f"d{i % 3}", i, float(i)) for i in range(first, first + count)]
    log.append([(READINGS, batch(READINGS, rows))])


def rows_of(store: EmbeddedStore) -> list[float]:
    return sorted(store.query("SELECT value FROM readings").column("value").to_pylist())


def table_rows(directory: Path) -> int:
    return int(DeltaTable(directory / "tables" / "readings").to_pyarrow_table().num_rows)


def check(opener: Opener, directory: Path, expected: list[float]) -> EmbeddedStore:
    """The store opens on `directory`, shows the expected rows, and goes on to commit the rest exactly once."""
    store = opener(directory)
    assert rows_of(store) == expected
    store.flush()
    assert rows_of(store) == expected
    assert table_rows(directory) == len(expected)
    files = {file.path for entry in store._entries.values() for file in entry.files}
    assert (
        set((directory / "tables").rglob("*.parquet*")) - set((directory / "tables").rglob("_delta_log/*"))
        == files
    )
    return store


class Moments:
    """Copies the tables before and after every step that makes something durable or gives a file its name."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._tables = directory / "tables"
        self._into = directory / "moments"
        self.copies: list[Path] = []
        for module, name in ((durable, "sync_file"), (durable, "sync_directory"), (os, "rename")):
            monkeypatch.setattr(module, name, self._around(getattr(module, name)))

    def _around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.copy()
            result = function(*arguments)
            self.copy()
            return result

        return call

    def copy(self) -> None:
        copy = self._into / str(len(self.copies))
        shutil.copytree(self._tables, copy / "tables")
        self.copies.append(copy)


def test_a_stop_at_any_moment_of_a_flush(
    opener: Opener, log: EmbeddedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener()
    append(log, 0, 30)
    store.flush()
    append(log, 30, 30)
    store.step()
    held_before = store.stored(READINGS.stream)
    held: list[tuple[int, tuple[int, ...]]] = []
    monkeypatch.setattr(
        log, "hold", lambda reader, stream, offsets: held.append((len(moments.copies), offsets))
    )
    with monkeypatch.context() as patch:
        moments = Moments(tmp_path, patch)
        store.flush()
        moments.copy()
    # The log may forget only once every step that makes the commit durable is over.
    assert held == [(len(moments.copies) - 1, log.end(READINGS.stream))]
    assert held[0][1] != held_before
    assert len(moments.copies) >= 10
    for copy in moments.copies:
        check(opener, copy, [float(i) for i in range(60)]).close()


def test_a_stop_at_any_moment_of_the_creation(
    opener: Opener, log: EmbeddedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(log, 0, 5)
    with monkeypatch.context() as patch:
        (tmp_path / "tables").mkdir()
        moments = Moments(tmp_path, patch)
        opener()
    for copy in moments.copies:
        check(opener, copy, [0.0, 1.0, 2.0, 3.0, 4.0]).close()


def _torn(whole: bytes) -> list[bytes]:
    lines = whole.splitlines(keepends=True)
    at_lines = [b"".join(lines[:n]) for n in range(len(lines))]
    anywhere = [whole[:at] for at in range(1, len(whole), max(1, len(whole) // 8))]
    zeros = [whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2), bytes(len(whole))]
    return [*at_lines, *anywhere, *zeros]


def forget(directory: Path, name: str) -> None:
    """Takes the checksum of a file away, as of one that was not durable when the power was cut."""
    path = directory / "tables/readings" / checksums.NAME
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in lines if not line.startswith(name.encode())))


@pytest.mark.parametrize("flushes", [0, 1, 3])
def test_a_torn_last_transaction_is_removed_with_a_message(
    opener: Opener, log: EmbeddedLog, tmp_path: Path, flushes: int
) -> None:
    store = opener()
    for n in range(flushes):
        append(log, n * 10, 10)
        store.flush()
    append(log, flushes * 10, 10)
    store.close()
    last = tmp_path / f"tables/readings/_delta_log/{flushes:020d}.json"
    whole = last.read_bytes()
    for number, torn in enumerate(_torn(whole)):
        copy = tmp_path / "copies" / str(number)
        shutil.copytree(tmp_path / "tables", copy / "tables")
        (copy / last.relative_to(tmp_path)).write_bytes(torn)
        forget(copy, last.name)
        again = check(opener, copy, [float(i) for i in range(flushes * 10 + 10)])
        assert any("torn" in message and "readings" in message for message in again.messages()), torn
        again.close()


def test_a_damaged_transaction_below_a_good_one_is_corruption(
    opener: Opener, log: EmbeddedLog, tmp_path: Path
) -> None:
    store = opener()
    for n in range(3):
        append(log, n * 10, 10)
        store.flush()
    store.close()
    damaged = tmp_path / f"tables/readings/_delta_log/{2:020d}.json"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with pytest.raises(StoreError, match=rf"{damaged.name} is damaged .* corruption"):
        opener()


def test_a_damaged_last_transaction_is_not_taken_for_a_torn_one(
    opener: Opener, log: EmbeddedLog, tmp_path: Path
) -> None:
    store = opener()
    append(log, 0, 10)
    store.flush()
    store.close()
    damaged = tmp_path / f"tables/readings/_delta_log/{1:020d}.json"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with pytest.raises(StoreError, match=rf"{damaged.name} is damaged .*checksum.* corruption"):
        opener()


def test_a_table_without_checksums_gets_them(opener: Opener, log: EmbeddedLog, tmp_path: Path) -> None:
    store = opener()
    append(log, 0, 10)
    store.flush()
    store.close()
    path = tmp_path / "tables/readings" / checksums.NAME
    whole = path.read_bytes()
    path.unlink()
    check(opener, tmp_path, [float(i) for i in range(10)]).close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
def test_a_torn_line_of_the_checksums_is_removed_with_a_message(
    opener: Opener, log: EmbeddedLog, tmp_path: Path, part: float
) -> None:
    store = opener()
    append(log, 0, 10)
    store.flush()
    store.close()
    path = tmp_path / "tables/readings" / checksums.NAME
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    cut = 1 + round(part * (len(last) - 2))
    path.write_bytes(whole[:-cut])
    again = check(opener, tmp_path, [float(i) for i in range(10)])
    assert cut == len(last) or any("removed the last line of _checksums" in each for each in again.messages())
    assert path.read_bytes() == whole


def test_data_files_without_a_transaction_log_are_not_thrown_away(
    opener: Opener, log: EmbeddedLog, tmp_path: Path
) -> None:
    store = opener()
    append(log, 0, 10)
    store.flush()
    store.close()
    shutil.rmtree(tmp_path / "tables/readings/_delta_log")
    with pytest.raises(StoreError, match="holds data files but no transaction log"):
        opener()


def test_a_torn_checkpoint_is_removed_with_a_message(
    opener: Opener, log: EmbeddedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta, "CHECKPOINT_COMMITS", 3)
    store = opener()
    for n in range(6):
        append(log, n * 10, 10)
        store.flush()
    store.close()
    transactions = Path("tables/readings/_delta_log")
    for name in (f"{6:020d}.checkpoint.parquet", "_last_checkpoint"):
        whole = (tmp_path / transactions / name).read_bytes()
        for cut in (0, 1, len(whole) // 2, len(whole) - 2):
            copy = tmp_path / "copies" / f"{name}-{cut}"
            shutil.copytree(tmp_path / "tables", copy / "tables")
            (copy / transactions / name).write_bytes(whole[:cut])
            forget(copy, name)
            again = check(opener, copy, [float(i) for i in range(60)])
            assert any("torn" in message for message in again.messages())
            again.close()


def test_checkpoints_keep_the_offsets(
    opener: Opener, log: EmbeddedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta, "CHECKPOINT_COMMITS", 2)
    store = opener()
    for n in range(4):
        append(log, n * 10, 10)
        store.flush()
    store.close()
    for n in range(4):
        (tmp_path / f"tables/readings/_delta_log/{n:020d}.json").unlink()
    append(log, 40, 10)
    check(opener, tmp_path, [float(i) for i in range(50)])


def test_a_failed_write_keeps_the_rows_and_is_tried_again(
    opener: Opener, log: EmbeddedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opener()
    append(log, 0, 10)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "publish", _no_space)
        with pytest.raises(StoreError, match=r"writing 10 rows of table 'readings'.*No space left"):
            store.flush()
        append(log, 10, 10)
        assert rows_of(store) == [float(i) for i in range(20)]
        assert sum(store.stored(READINGS.stream)) == 0
    check(opener, tmp_path, [float(i) for i in range(20)])


def _no_space(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("then", ["step", "flush", "reopen"])
def test_a_failed_fsync_of_the_commit_holds_the_log_back(
    opener: Opener, log: EmbeddedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    store = opener()
    append(log, 0, 10)
    sync_file = durable.sync_file

    def fails_for_commits(path: Path) -> None:
        if path.suffix == ".json":
            raise OSError(5, "Input/output error")
        sync_file(path)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "sync_file", fails_for_commits)
        with pytest.raises(StoreError, match="committing to table 'readings'"):
            store.flush()
    assert rows_of(store) == [float(i) for i in range(10)]
    assert sum(store.stored(READINGS.stream)) == 0
    append(log, 10, 5)
    if then == "step":
        store.step()
        assert sum(store.stored(READINGS.stream)) == 10
    elif then == "flush":
        store.flush()
        assert sum(store.stored(READINGS.stream)) == 15
    else:
        store.close()
    check(opener, tmp_path, [float(i) for i in range(15)])


def test_a_missing_file_is_named(opener: Opener, log: EmbeddedLog, tmp_path: Path) -> None:
    store = opener()
    append(log, 0, 10)
    store.flush()
    store.close()
    (path,) = (tmp_path / "tables/readings").rglob("part-*.parquet")
    path.rename(path.with_suffix(".gone"))
    with pytest.raises(StoreError, match=rf"its file .*{path.name} is missing"):
        opener()

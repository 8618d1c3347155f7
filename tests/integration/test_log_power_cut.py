"""The log and the store alone under power cuts: what `append` returned from is there, in order, whatever part survives.

Many cheap cuts, with segments so small that they roll and are recycled all the time; test_kill.py does the same with
the whole product.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from headwater.config import LogSettings, QuerySettings, StoreSettings
from headwater.records import OWN_SCHEMAS
from tests.forgetful.layer import Layer
from tests.integration.server import PATIENCE_S, await_that
from tests.preload import COMPILER
from tests.tables import table

pytestmark = pytest.mark.skipif(
    COMPILER is None, reason="no C compiler (cc) to build the forgetful layer with"
)

SCHEMA = table("numbers", "device string, ts timestamp, n bigint")
SETTINGS = LogSettings(segment_bytes=1 << 20, retention_bytes=2 << 20, commit_interval_ms=0)
THREADS = 4


def now_us() -> int:
    """Wall clock, microseconds UTC."""
    return time.time_ns() // 1000


#: Appends numbers from the given one on, from several threads; notes each one after `append` has returned.
#: With a store, its flushes and what it lets the log trim go on at the same time.
WRITER = """
import os, sys, threading
import pyarrow as pa
from pathlib import Path
from headwater.config import QuerySettings, StoreSettings
from headwater.log.embedded import EmbeddedLog
from headwater.records import OWN_SCHEMAS
from headwater.store.embedded import EmbeddedStore
from tests.integration.test_log_power_cut import SCHEMA, SETTINGS, THREADS, now_us
directory, first, stored = Path(sys.argv[1]), int(sys.argv[3]), sys.argv[4] == "store"
acks = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
settings = SETTINGS.model_copy(update={"durability": "async" if sys.argv[4] == "async" else "sync"})
log = EmbeddedLog(directory / "log", settings, [*OWN_SCHEMAS, SCHEMA])
if not stored:
    log.hold("test", SCHEMA.stream, (0,) * SETTINGS.partitions)  # every row is to be read again
if stored:
    store = EmbeddedStore(log, directory, StoreSettings(flush_interval="50ms"), QuerySettings(), now_us)
    store.create(SCHEMA)
def write(thread):
    n = first + thread
    while True:
        numbers = [n + THREADS * k for k in range(20)]
        n += THREADS * 20
        texts = [f"d{thread}-{each % 7}" + "x" * 300 for each in numbers]
        stamps = pa.array([each * 1000 for each in numbers], pa.timestamp("us", "UTC"))
        batch = pa.record_batch([pa.array(texts), stamps, pa.array(numbers)], schema=SCHEMA.arrow)
        log.append([(SCHEMA, batch)])
        os.write(acks, "".join(f"{each}\\n" for each in numbers).encode())
for thread in range(THREADS):
    threading.Thread(target=write, args=(thread,), daemon=True).start()
seen = 0
while True:
    if stored and store.step():
        continue
    seen = log.wait(seen, 1.0)
"""


def noted(acks: Path) -> list[int]:
    text = acks.read_text() if acks.exists() else ""
    return [int(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def write_until_cut(layer: Layer, acks: Path, first: int, more: int, kind: str) -> None:
    """A writer that is killed after `more` further notes."""
    goal = len(noted(acks)) + more
    command = [sys.executable, "-c", WRITER, str(layer.folder), str(acks), str(first), kind]
    environment = os.environ | layer.variables
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            await_that("notes", lambda: process.poll() is not None or len(noted(acks)) >= goal)
            assert process.poll() is None, process.stderr and process.stderr.read()
        finally:
            process.kill()
        process.wait(PATIENCE_S)


def read_back(folder: Path) -> set[int]:
    """Numbers in the log, after what must hold for every reader: whole rows, each once, offsets without a gap."""
    from headwater.log.embedded import EmbeddedLog

    log = EmbeddedLog(folder / "log", SETTINGS, [*OWN_SCHEMAS, SCHEMA])
    try:
        reader = log.reader(SCHEMA.stream, ())
        found: set[int] = set()
        after: dict[int, int] = {}
        while (batch := reader.read(10_000)) is not None:
            columns = (batch.column(name).to_pylist() for name in ("n", "_partition", "_offset", "device"))
            for n, partition, offset, device in zip(*columns, strict=True):
                assert offset == after.get(partition, 0), "offsets of a partition have a gap or go back"
                after[partition] = offset + 1
                assert device == f"d{n % THREADS}-{n % 7}" + "x" * 300
                assert n not in found, f"{n} is there twice"
                found.add(n)
        assert log.end(SCHEMA.stream) == tuple(after.get(each, 0) for each in range(SETTINGS.partitions))
        return found
    finally:
        log.close()


def query_back(folder: Path) -> list[int]:
    """Numbers in the table, files and tail together."""
    from headwater.log.embedded import EmbeddedLog
    from headwater.store.embedded import EmbeddedStore

    log = EmbeddedLog(folder / "log", SETTINGS, [*OWN_SCHEMAS, SCHEMA])
    store = EmbeddedStore(log, folder, StoreSettings(), QuerySettings(), now_us)
    try:
        store.create(SCHEMA)
        numbers: list[int] = store.query("SELECT n FROM numbers").column("n").to_pylist()
        return numbers
    finally:
        store.close()
        log.close()


def seeds(few: int, many: int) -> list[Any]:
    """A few in every run, the rest under the marker."""
    return [*range(few), *(pytest.param(seed, marks=pytest.mark.chaos) for seed in range(few, many))]


@pytest.mark.parametrize("seed", seeds(2, 20))
def test_appended_rows_survive_every_power_cut(tmp_path: Path, seed: int) -> None:
    layer, acks = Layer(tmp_path / "data"), tmp_path / "acks"
    for cut in range(3):
        write_until_cut(layer, acks, 1_000_000 * cut, 1000 + 777 * seed, "log")
        layer.cut_power(None if cut == 0 else seed * 10 + cut)
        found, wanted = read_back(layer.folder), set(noted(acks))
        missing = wanted - found
        assert not missing, (
            f"cut {cut}: {len(missing)} appended rows are missing, such as {sorted(missing)[:5]}"
        )
        assert len(found) - len(wanted) <= (cut + 1) * THREADS * 20, "rows nobody appended"


def test_without_syncs_the_same_cut_loses_rows(tmp_path: Path) -> None:
    """The layer can tell: what `append` returned from before its sync does not survive."""
    layer, acks = Layer(tmp_path / "data"), tmp_path / "acks"
    write_until_cut(layer, acks, 0, 1000, "async")
    assert layer.cut_power().writes_lost > 0
    assert set(noted(acks)) - read_back(layer.folder)


@pytest.mark.parametrize("seed", seeds(2, 20))
def test_stored_rows_survive_every_power_cut_once(tmp_path: Path, seed: int) -> None:
    layer, acks = Layer(tmp_path / "data"), tmp_path / "acks"
    for cut in range(3):
        write_until_cut(layer, acks, 1_000_000 * cut, 6000 + 2000 * seed, "store")
        layer.cut_power(None if cut == 0 else 100 + seed * 10 + cut)
        found = query_back(layer.folder)
        assert len(found) == len(set(found)), "rows are there twice"
        missing = set(noted(acks)) - set(found)
        assert not missing, (
            f"cut {cut}: {len(missing)} appended rows are missing, such as {sorted(missing)[:5]}"
        )

"""Row 13: checkpoints and the restart of a query over a million devices and three fields.

A real log, a real query. It stands still while the state is taken; then that is written by a thread of its own, and
counts until it is on disk. Changes: a tenth of the devices had a reading since the checkpoint before.
"""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from benches.bench import Bench
from benches.fleet import MINUTE_US, ROWS, START_US, TELEMETRY, TUMBLE, windowed
from benches.table import Row, judged, median
from headwater.config import EngineSettings, LogSettings
from headwater.log.embedded import EmbeddedLog
from headwater.records import OWN_SCHEMAS, Schema
from headwater.streams.query import Query, Task

KEYS = 1_000_000
CHECKPOINT_MS, RESTART_S = 500.0, 5.0
FIELDS = ("temperature", "humidity", "battery")


def run(bench: Bench) -> list[Row]:
    """A whole state, changes, then a start from both."""
    keys = KEYS // 10 if bench.rounds < 3 else KEYS
    figures: dict[str, list[float]] = {name: [] for name in ("pause", "whole", "changes", "restart", "bytes")}
    for _ in range(bench.rounds):
        folder = bench.scratch / "engine"
        with ThreadPoolExecutor(1) as executor:
            one = _One(folder, keys, executor)
            one.feed(np.arange(keys))
            # Changes of the empty state that a query begins with: as much as all, so that a whole state follows.
            one.checkpoint()
            for name in ("whole", "changes"):
                one.feed(np.arange(0, keys, 10))
                pause_s, all_s, size = one.checkpoint()
                figures["pause"].append(pause_s)
                figures[name].append(all_s)
                figures["bytes"].append(size)
            begin = time.perf_counter()
            again = one.query()
            figures["restart"].append(time.perf_counter() - begin)
            assert again.metrics()["rows"] == keys + 2 * (keys // 10)
            one.log.close()
        shutil.rmtree(folder)
    pause_ms, whole_ms, changes_ms = (median(figures[name]) * 1e3 for name in ("pause", "whole", "changes"))
    sizes = [f"{size / 1e6:.0f} MB" for size in figures["bytes"][:2]]
    devices = f"{keys:,} devices x 3 fields"
    return [
        Row(
            "13a",
            f"checkpoint of {devices}, beside the query",
            f"<= {CHECKPOINT_MS:g} ms",
            f"whole {whole_ms:.0f} ms ({sizes[0]}), a tenth changed {changes_ms:.0f} ms ({sizes[1]}); the query "
            f"stands still for {pause_ms:.1f} ms",
            judged(max(whole_ms, changes_ms) <= CHECKPOINT_MS),
            figures,
        ),
        Row(
            "13b",
            f"start of a query from a checkpoint of {devices} and changes",
            f"<= {RESTART_S:g} s",
            f"{median(figures['restart']):.2f} s",
            judged(median(figures["restart"]) <= RESTART_S),
        ),
    ]


class _One:
    """A log in `folder` and a query over it."""

    def __init__(self, folder: Path, keys: int, executor: ThreadPoolExecutor) -> None:
        self._folder, self._executor = folder, executor
        self._names = np.array([f"device-{number:08}" for number in range(keys)])
        plan = windowed(TUMBLE, *FIELDS)
        result = Schema(100, 100, "q", plan.columns, plan.key)
        self._task = Task(plan, TELEMETRY, result, 15 * MINUTE_US, "amend")
        self.log = EmbeddedLog(folder / "log", LogSettings(), [*OWN_SCHEMAS, TELEMETRY, result])
        self._query = self.query()

    def query(self) -> Query:
        """Takes over what is stored."""
        path = self._folder / "engine" / "q.checkpoint"
        clock = lambda: time.time_ns() // 1000  # noqa: E731
        return Query(self.log, self._task, EngineSettings(), path, clock, self._executor)

    def feed(self, devices: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        """A reading of each of these devices, taken in by the query."""
        for at in range(0, len(devices), ROWS):
            names = self._names[devices[at : at + ROWS]]
            times = pa.array(np.full(len(names), START_US), pa.int64()).cast(pa.timestamp("us", tz="UTC"))
            values = [pa.array(np.random.default_rng(at).normal(25, 5, len(names))) for _ in FIELDS]
            batch = pa.record_batch([pa.array(names), times, times, *values], schema=TELEMETRY.arrow)
            self.log.append([(TELEMETRY, batch)])
        while self._query.step():
            pass

    def checkpoint(self) -> tuple[float, float, int]:
        """Seconds that it held the query up, seconds until it was on disk, bytes."""
        self._query.checkpoint()
        found = self._query.metrics()
        return found["checkpoint_pause_us"] / 1e6, found["checkpoint_us"] / 1e6, found["checkpoint_bytes"]

"""Readings of many devices as the engine is given them: batches of the log's reader, made without a log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headwater.config import EngineSettings
from headwater.records import Column, ColumnType, Schema
from headwater.streams.plan import Plan
from headwater.streams.sql import plan
from headwater.streams.windows import Terms, Windows

SECOND_US, MINUTE_US = 1_000_000, 60_000_000
#: 2026-01-01T00:00:00Z, which begins a window of any length used here.
START_US = 1_767_225_600 * SECOND_US
#: Rows of a batch, as a step of the engine reads them, and partitions of the stream.
ROWS, PARTITIONS = 100_000, 4
DOUBLE = ColumnType.DOUBLE
TELEMETRY = Schema(
    16,
    16,
    "telemetry",
    (
        Column("device", ColumnType.STRING),
        Column("ts", ColumnType.TIMESTAMP),
        Column("received_at", ColumnType.TIMESTAMP),
        Column("temperature", DOUBLE),
        Column("humidity", DOUBLE),
        Column("battery", DOUBLE),
    ),
    "device",
)
TUMBLE = "TUMBLE(TABLE telemetry, DESCRIPTOR(ts), INTERVAL '5' MINUTES)"
HOP = "HOP(TABLE telemetry, DESCRIPTOR(ts), INTERVAL '1' MINUTE, INTERVAL '5' MINUTES)"


def windowed(table: str, *fields: str) -> Plan:
    """Count, sum, least and greatest of each field by device."""
    values = "".join(f", SUM({f}) AS {f}_sum, MIN({f}) AS {f}_low, MAX({f}) AS {f}_high" for f in fields)
    sql = (
        f"SELECT device, COUNT(*) AS n{values} FROM TABLE({table}) GROUP BY device, window_start, window_end"
    )
    return plan(sql, "q", {"telemetry": TELEMETRY})


def windows_of(query: Plan, lateness_us: int, state_bytes: int) -> Windows:
    """Its windows, empty."""
    settings = EngineSettings(state_bytes=state_bytes)
    return Windows(query, TELEMETRY, settings, [0] * PARTITIONS, Terms(lateness_us, 0))


@dataclass
class Fleet:
    """Batches of rows of random devices; a device's partition is that of its number.

    keys:  devices; their ids are dense, as those of the log are
    named: whether batches have the devices' names, which windows by device do not read
    """

    keys: int
    named: bool = False
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def __post_init__(self) -> None:
        self._offsets = np.zeros(PARTITIONS, np.uint64)
        self._names = pa.array([f"device-{number:08}" for number in range(self.keys if self.named else 0)])

    def batch(
        self, at_us: int, devices: npt.NDArray[np.uint32] | None = None, jitter_us: int = 5 * SECOND_US
    ) -> pa.RecordBatch:
        """Readings from `at_us` on, jittered; of these devices, or of as many random ones as a batch has rows."""
        if devices is None:
            devices = self.random.integers(0, self.keys, ROWS, dtype=np.uint32)
        count = len(devices)
        partition = (devices % PARTITIONS).astype(np.uint16)
        offset = np.zeros(count, np.uint64)
        for number in range(PARTITIONS):
            own = partition == number
            offset[own] = self._offsets[number] + np.arange(own.sum(), dtype=np.uint64)
            self._offsets[number] += own.sum()
        times = at_us + self.random.integers(0, jitter_us, count)
        columns = {
            "_partition": pa.array(partition),
            "_offset": pa.array(offset),
            "_key": pa.array(devices.astype(np.uint32)),
            "ts": pa.array(times, pa.int64()).cast(pa.timestamp("us", tz="UTC")),
        }
        if self.named:
            columns["device"] = self._names.take(pa.array(devices))
        for name in ("temperature", "humidity", "battery"):
            columns[name] = pa.array(self.random.normal(25, 5, count))
        return pa.record_batch(columns)

    def every_device(self, at_us: int, jitter_us: int = 5 * SECOND_US) -> list[pa.RecordBatch]:
        """One reading of each device, in batches, in random order."""
        order = self.random.permutation(self.keys).astype(np.uint32)
        return [self.batch(at_us, order[at : at + ROWS], jitter_us) for at in range(0, self.keys, ROWS)]


def feed(
    windows: Windows, batch: pa.RecordBatch, closed: Callable[[pa.RecordBatch], None] | None = None
) -> int:
    """Takes a batch and what it closes, as a step of the engine does; the results' number."""
    rows, found = windows.prepare(batch), 0
    while rows.start < len(rows) or windows.closing:
        if windows.closing:
            written: list[pa.RecordBatch] = []
            found += windows.close(ROWS, written)
            for one in written if closed is not None else ():
                closed(one)
        else:
            windows.take(rows)
    return found

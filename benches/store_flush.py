"""What writing one file of the store costs: rows per CPU-second and bytes per row, beside the number of devices.

python -m benches.store_flush
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from headwater.store import parquet

_BEGIN_US = 1_790_000_000_000_000


@dataclass(frozen=True, slots=True)
class Flush:
    """Medians over the runs.

    rows_per_cpu_s: rows written per second of CPU, all threads
    bytes_per_row:  of the file
    """

    devices: int
    rows: int
    rows_per_cpu_s: float
    bytes_per_row: float


def measure(devices: int, rows: int = 1_000_000, runs: int = 5) -> Flush:
    """Writes `rows` readings of three fields, of devices in random order, `runs` times. raises: OSError"""
    table = readings(devices, rows)
    seconds, sizes = [], []
    with tempfile.TemporaryDirectory() as directory:
        for run in range(runs):
            before = time.process_time()
            written = parquet.write(Path(directory), f"part-{run}", table, "device")
            seconds.append(time.process_time() - before)
            sizes.append(written.size)
    return Flush(devices, rows, rows / statistics.median(seconds), statistics.median(sizes) / rows)


def readings(devices: int, rows: int) -> pa.Table:
    """Readings in the order of their arrival, in batches as the log gives them: times that jitter, quantised values."""
    random = np.random.default_rng(1)
    names = pa.array([f"dev-{number:07d}" for number in range(devices)])
    arrived = _BEGIN_US + np.arange(rows)
    columns: dict[str, pa.Array] = {
        "device": names.take(pa.array(random.integers(0, devices, rows))),
        "ts": pa.array(arrived - random.integers(0, 1000, rows), pa.timestamp("us", "UTC")),
        "received_at": pa.array(arrived, pa.timestamp("us", "UTC")),
    }
    for field in ("temperature", "humidity", "pressure"):
        columns[field] = pa.array(np.round(random.normal(20, 5, rows), 2))
    return pa.Table.from_batches(pa.table(columns).to_batches(max_chunksize=65_536))


if __name__ == "__main__":
    for count in (1_000, 100_000, 1_000_000):
        found = measure(count)
        sys.stdout.write(
            f"{found.devices:>9,} devices: {found.rows_per_cpu_s / 1e6:.2f} Mrow per CPU-second,"
            f" {found.bytes_per_row:.1f} B a row\n"
        )

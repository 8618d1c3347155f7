"""Other engines doing what a window does: a group-by of each batch, merged into dense arrays by device.

They are given the dense ids of the log, too; finding those from strings would come on top.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

#: A batch in; everything that it changes is in `Dense` afterwards.
Engine = Callable[[pa.RecordBatch], None]


class Dense:
    """Count, sum, least and greatest by device."""

    def __init__(self, keys: int) -> None:
        self.count = np.zeros(keys, np.int64)
        self.sum = np.zeros(keys)
        self.low = np.full(keys, np.inf)
        self.high = np.full(keys, -np.inf)

    def merge(self, key: Any, count: Any, total: Any, low: Any, high: Any) -> None:
        """Takes in groups, each key once."""
        self.count[key] += count
        self.sum[key] += total
        self.low[key] = np.minimum(self.low[key], low)
        self.high[key] = np.maximum(self.high[key], high)


def numpy_at(to: Dense) -> Engine:
    """No group-by at all: ufunc.at."""

    def take(batch: pa.RecordBatch) -> None:
        key, value = batch.column("_key").to_numpy(), batch.column("temperature").to_numpy()
        np.add.at(to.count, key, 1)
        np.add.at(to.sum, key, value)
        np.minimum.at(to.low, key, value)
        np.maximum.at(to.high, key, value)

    return take


def polars(to: Dense) -> Engine | None:
    """None where polars is not installed."""
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    try:
        import polars as pl
    except ImportError:
        return None
    value = pl.col("temperature")
    wanted = [
        value.len().alias("n"),
        value.sum().alias("s"),
        value.min().alias("lo"),
        value.max().alias("hi"),
    ]

    def take(batch: pa.RecordBatch) -> None:
        frame = pl.from_arrow(batch.select(["_key", "temperature"]))
        assert isinstance(frame, pl.DataFrame)
        found = frame.group_by("_key").agg(wanted)
        to.merge(*(found[name].to_numpy() for name in ("_key", "n", "s", "lo", "hi")))

    return take


def duckdb(to: Dense) -> Engine:
    """DuckDB with one thread."""
    import duckdb as db

    connection = db.connect(config={"threads": 1})
    sql = (
        "SELECT _key, COUNT(*) AS n, SUM(temperature) AS s, MIN(temperature) AS lo, MAX(temperature) AS hi "
        "FROM batch GROUP BY _key"
    )

    def take(batch: pa.RecordBatch) -> None:
        connection.register("batch", pa.Table.from_batches([batch.select(["_key", "temperature"])]))
        found = connection.execute(sql).fetchnumpy()
        to.merge(*(np.asarray(found[name]) for name in ("_key", "n", "s", "lo", "hi")))

    return take

"""Rows by the value of a text column: the store's side of the books of captured levels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

#: Stands for rows without a value; no level of a topic can be named so (MQTT 5.0, section 4.7.1).
NONE: Final = "#"


def values(column: pa.Array | pa.ChunkedArray) -> Counter[str]:
    """How many rows have each value.

    >>> values(pa.array(["a", "b", "a", None]))
    Counter({'a': 2, 'b': 1, '#': 1})
    """
    found: Counter[str] = Counter()
    for each in pc.value_counts(column).to_pylist():
        found[NONE if each["values"] is None else each["values"]] += each["counts"]
    return found


def of_file(path: Path, column: str) -> Counter[str]:
    """How many rows of a data file have each value. raises: OSError, pa.ArrowException"""
    with pq.ParquetFile(path) as file:
        found: Counter[str] = Counter()
        for batch in file.iter_batches(columns=[column]):
            found += values(batch.column(0))
    return found

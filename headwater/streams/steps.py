"""The record of one engine step: stored in stream `_steps` by the same commit as the result rows it explains.

A replay reads the source up to `to`, sets the idle marks, and takes as many result rows from the kernel as were
written: then its state is the one that wrote them. All else follows from the rows (watermarks.py).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final

import pyarrow as pa

from headwater.errors import LogCorruptError
from headwater.records import STEPS_SCHEMA

VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Step:
    """One recorded step.

    start, to: offsets of the source, one per partition: the rows since the step before, exclusive of `to`
    highest:   highest event time per partition after it, microseconds UTC; None before a partition's first row
    idle:      marks after it; tick_us: the clock's time when they were set
    watermark: after it, None before the first; windows ending at or before it are closed
    rows:      result rows written; closing: whether more of the closed windows follow in the next step
    """

    query: str
    number: int
    signature: str
    generation: int
    start: list[int]
    to: list[int]
    highest: list[int | None]
    idle: list[bool]
    tick_us: int
    watermark: int | None
    rows: int
    closing: bool

    def batch(self) -> pa.RecordBatch:
        """One row of `_steps`."""
        fields = asdict(self)
        query, number = fields.pop("query"), fields.pop("number")
        record = json.dumps({"v": VERSION, **fields}, separators=(",", ":"))
        return pa.record_batch(
            [
                pa.array([self.tick_us], pa.timestamp("us", tz="UTC")),
                pa.array([query], pa.string()),
                pa.array([number], pa.int64()),
                pa.array([record], pa.string()),
            ],
            schema=STEPS_SCHEMA.arrow,
        )


def steps_of(batch: pa.RecordBatch, query: str) -> list[Step]:
    """The steps of one query among rows of `_steps`, in their order.

    raises: LogCorruptError for a record that this version does not understand
    """
    found = []
    columns = (batch.column(name).to_pylist() for name in ("query", "step", "record"))
    for name, number, record in zip(*columns, strict=True):
        if name != query:
            continue
        try:
            fields = json.loads(record)
            if fields.pop("v") != VERSION:
                raise ValueError("its version is another")
            found.append(Step(query=name, number=number, **fields))
        except (ValueError, TypeError, KeyError) as error:
            raise LogCorruptError(
                f"reading step {number} of query {query}: {error}; found {record!r}"
            ) from error
    return found

"""Batches on their way through a query: log rows to the kernel's arrays, closed windows to result rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headwater import _native
from headwater.records import Column, ColumnType, Schema
from headwater.streams import watermarks
from headwater.streams.aggregates import Aggregates
from headwater.streams.plan import Plan
from headwater.vectors import Frame

_TIMESTAMP: Final = ColumnType.TIMESTAMP.arrow
#: Columns of the kernel before its aggregates: `_key`, `window_start`, `window_end`.
FIRST_AGGREGATE: Final = 3
#: A later text of a query counts its revisions from here on, so that its rows win over those of the text before.
GENERATION: Final = 1 << 32


@dataclass(slots=True)
class Rows:
    """Rows of the source, ready for the kernel; `start` is the first one not taken yet."""

    partition: npt.NDArray[np.uint16]
    offset: npt.NDArray[np.uint64]
    ts: npt.NDArray[np.int64]
    keys: pa.Array
    times: pa.Array
    inputs: list[pa.Array]
    select: pa.Array | None
    start: int = 0

    def __len__(self) -> int:
        return len(self.ts)


class Intake:
    """Turns batches of the source into `Rows`: condition, group ids, inputs of the aggregates.

    interner: None where the group columns are the source's key alone: the log's own key ids serve then
    """

    def __init__(self, plan: Plan, source: Schema, max_keys: int, keys: bytes) -> None:
        self._plan = plan
        names = [aggregate.column for aggregate in plan.aggregates if aggregate.column is not None]
        self._inputs = [column for column in source.columns if column.name in names]
        self._inputs += [Column(name, expression.type) for name, expression in plan.computed.items()]
        #: Text whose values are told apart; of other text only whether there is a value counts.
        self._distinct = {a.column for a in plan.aggregates if a.function == "count_distinct"}
        #: Text whose values are kept.
        self._kept = {
            a.column
            for a in plan.aggregates
            if a.function in ("first_value", "last_value") and a.type is ColumnType.STRING
        }
        self._groups = [group.column for group in plan.groups]
        self._by_key = self._groups == [source.key]
        #: A result stream: reads each window's first result, amendments would count twice.
        self._first_results = source.column("revision") is not None and source.column("received_at") is None
        types = [
            "bigint" if group.type is ColumnType.TIMESTAMP else group.type.value for group in plan.groups
        ]
        self.interner: _native.KeyInterner | None = None
        if plan.groups and not self._by_key:
            self.interner = (
                _native.KeyInterner.decode(keys, types, max_keys)
                if keys
                else _native.KeyInterner(types, max_keys)
            )

    @property
    def columns(self) -> list[str]:
        """What a reader must give."""
        wanted = {"ts", *(column.name for column in self._inputs if column.name not in self._plan.computed)}
        wanted.update(*(expression.columns for expression in self._plan.computed.values()))
        if self.interner is not None:
            wanted.update(self._groups)
        if self._plan.where is not None:
            wanted.update(self._plan.where.columns)
        if self._first_results:
            wanted.add("revision")
        if self._plan.pattern is not None:
            wanted.update(self._plan.pattern.columns)
        return sorted(wanted)

    @property
    def kernel_inputs(self) -> list[str]:
        """Kernel types of the input columns."""
        return [
            "double" if c.type is ColumnType.DOUBLE else "text" if c.name in self._kept else "bigint"
            for c in self._inputs
        ]

    @property
    def kernel_aggregates(self) -> list[tuple[str, int | None, int]]:
        """Aggregates in the plan's order, columns as indexes into the inputs, and their parameters."""
        at = {column.name: index for index, column in enumerate(self._inputs)}
        return [
            (a.function, None if a.column is None else at[a.column], a.parameter)
            for a in self._plan.aggregates
        ]

    def rows(self, batch: pa.RecordBatch, floor_us: int | None, counters: dict[str, int]) -> Rows:
        """The batch as kernel arrays; rows that a query leaves out are unselected and counted in `counters`."""
        times = batch.column("ts").cast(pa.int64())
        timed = None
        if times.null_count:
            timed = times.is_valid().to_numpy(zero_copy_only=False)
            times = times.fill_null(watermarks.NONE)
        ts = times.to_numpy()
        select: npt.NDArray[np.bool_] | None = None

        def keep(mask: npt.NDArray[np.bool_], counter: str) -> None:
            nonlocal select
            before = len(ts) if select is None else int(select.sum())
            select = mask if select is None else select & mask
            counters[counter] += before - int(select.sum())

        if self._first_results:
            revision = batch.column("revision").to_numpy(zero_copy_only=False) % GENERATION
            keep(revision == 0, "amendments_skipped")
            early = revision >= GENERATION // 2
            if early.any():
                # Their windows are open: they say nothing about how far the source has come.
                ts = np.where(early, watermarks.NONE, ts)
        if timed is not None:
            keep(timed, "dropped")
        if floor_us is not None and (ts < floor_us).any():
            keep(ts >= floor_us, "dropped")
        frame = Frame(batch)
        if self._plan.where is not None:
            keep(self._plan.where.evaluate(frame)[0], "filtered")
        counters["rows"] += len(ts)
        return Rows(
            partition=batch.column("_partition").to_numpy(),
            offset=batch.column("_offset").to_numpy(),
            ts=ts,
            keys=self._keys(batch),
            times=times,
            inputs=self._of_pattern(batch)
            if self._plan.pattern is not None
            else [self._input(frame, column) for column in self._inputs],
            select=None if select is None else pa.array(select),
        )

    def _of_pattern(self, batch: pa.RecordBatch) -> list[pa.Array]:
        """The columns that a pattern reads, and the row's place in the log."""
        assert self._plan.pattern is not None
        return [batch.column(name) for name in (*self._plan.pattern.columns, "_partition", "_offset")]

    def _input(self, frame: Frame, column: Column) -> pa.Array:
        """A column as the kernel takes it: double, bigint, or text whose values are told apart."""
        computed = self._plan.computed.get(column.name)
        values = frame.batch.column(column.name) if computed is None else computed.evaluate(frame)
        if column.type in (ColumnType.DOUBLE, ColumnType.BIGINT):
            return values
        if column.type in (ColumnType.TIMESTAMP, ColumnType.BOOLEAN):
            return values.cast(pa.int64())
        if column.name in self._distinct | self._kept:
            return values
        return pc.if_else(values.is_valid(), pa.scalar(0, pa.int64()), pa.scalar(None, pa.int64()))

    def _keys(self, batch: pa.RecordBatch) -> pa.Array:
        if self._by_key:
            return batch.column("_key")
        if self.interner is None:
            return pa.array(np.zeros(batch.num_rows, dtype=np.uint32))
        columns = [batch.column(name) for name in self._groups]
        plain = [c.cast(pa.int64()) if pa.types.is_timestamp(c.type) else c for c in columns]
        return self.interner.ids(plain, batch.num_rows)


def results(
    plan: Plan, closed: pa.RecordBatch, log_keys: Any, interner: _native.KeyInterner | None, generation: int
) -> pa.RecordBatch:
    """Result rows of closed windows: those for which HAVING is true.

    closed:   of the kernel: `_key`, `window_start`, `window_end`, one column per aggregate, `revision`
    log_keys: key ids of the log to strings
    """
    if plan.pattern is not None:
        return _matches(plan, closed, generation)
    end = closed.column("window_end").cast(pa.int64())
    last_ms = pc.subtract(end, 1000).cast(_TIMESTAMP)
    revision = closed.column("revision").cast(pa.int64())
    if generation:
        revision = pc.add(revision, generation * GENERATION)
    found = {
        "window_start": closed.column("window_start").cast(pa.int64()).cast(_TIMESTAMP),
        "window_end": end.cast(_TIMESTAMP),
        "window_time": last_ms,
    }
    by_name = {"ts": last_ms, "revision": revision}
    by_name |= {alias: found[what] for alias, what in plan.windows.items()}
    for group, values in zip(plan.groups, _groups(plan, closed, log_keys, interner), strict=True):
        found[group.column] = by_name[group.alias] = values.cast(group.type.arrow)
    for at, aggregate in enumerate(plan.aggregates):
        values = closed.column(FIRST_AGGREGATE + at).cast(aggregate.type.arrow)
        found[Aggregates.column(at)] = by_name[aggregate.alias] = values
    frame = Frame(pa.record_batch(found))
    by_name |= {alias: expression.evaluate(frame) for alias, expression in plan.shown.items()}
    schema = pa.schema([pa.field(column.name, column.type.arrow) for column in plan.columns])
    rows = pa.record_batch(
        [by_name[name].cast(schema.field(name).type) for name in schema.names], schema=schema
    )
    return rows if plan.having is None else rows.filter(pa.array(plan.having.evaluate(frame)[0]))


def _matches(plan: Plan, closed: pa.RecordBatch, generation: int) -> pa.RecordBatch:
    """Matches as they are found, those for which WHERE is true."""
    revision = pa.repeat(generation * GENERATION, closed.num_rows)
    columns = [
        revision if column.name == "revision" else closed.column(column.name) for column in plan.columns
    ]
    rows = pa.record_batch(columns, schema=pa.schema([pa.field(c.name, c.type.arrow) for c in plan.columns]))
    return rows if plan.having is None else rows.filter(pa.array(plan.having.evaluate(closed)[0]))


def _groups(
    plan: Plan, closed: pa.RecordBatch, log_keys: Any, interner: _native.KeyInterner | None
) -> list[pa.Array]:
    """Columns of the groups; of a timestamp its integers."""
    ids = closed.column("_key")
    if interner is not None:
        return interner.columns(ids)
    return [log_keys(ids)] if plan.groups else []

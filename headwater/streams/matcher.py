"""State of a query with MATCH_RECOGNIZE: rows that wait for the watermark, and rows of matches that are not complete.

It has the face of the native window kernels, so that steps, replay and checkpoints are the same. A row is looked at
when the watermark has passed it: then no earlier row can come any more. The earliest start of a key is decided before
any later one, by the row that completes it, by a row that cannot follow, or by the watermark at start + WITHIN. Matches
leave in the order of that moment, which the rows alone give: wherever batches are cut, it is the same.

Conditions are evaluated over whole batches. Python goes from start to start, in keys that have one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headwater import _native
from headwater.errors import LogFullError
from headwater.records import ColumnType
from headwater.streams.checkpoint import Encoded
from headwater.streams.patterns import Pattern, Variable, column_of
from headwater.streams.plan import Plan
from headwater.streams.watermarks import NONE
from headwater.vectors import Frame

#: Of the encoded state: an Arrow IPC stream, see docs/formats/checkpoint.md.
VERSION: Final = b"1"
_NAME: Final = b"headwater.matches"
#: The moment of a start that is not decided.
_UNKNOWN: Final = NONE

_Int64 = npt.NDArray[np.int64]
_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Rows that came together; low, high: their least and greatest event time."""

    rows: pa.RecordBatch
    low: int
    high: int


class Matcher:
    """Finds the matches of a plan's pattern.

    types:       of the source's columns
    state_bytes: memory of all rows kept, at most
    state:       encoded, empty for a new query

    raises: ValueError when `state` is not understood
    """

    def __init__(
        self, plan: Plan, types: Mapping[str, ColumnType], state_bytes: int, state: bytes = b""
    ) -> None:
        assert plan.pattern is not None
        self._plan = plan
        self._pattern: Pattern = plan.pattern
        self._state_bytes = state_bytes
        self._schema = pa.schema(
            [
                ("_key", pa.uint32()),
                *((name, types[name].arrow) for name in self._pattern.columns),
                ("_partition", pa.uint16()),
                ("_offset", pa.uint64()),
            ]
        )
        self._waiting: list[_Waiting] = []
        #: Rows from the first undecided start of each key on, and when that start is given up.
        self._open = _empty(self._schema)
        self._deadline: _Int64 = np.zeros(0, dtype=np.int64)
        #: Matches that are found and not taken yet, and the watermark that they are found at.
        self._found: pa.RecordBatch | None = None
        self._watermark = NONE
        if state:
            self._decode(state)

    def add(
        self,
        keys: pa.Array,
        times: pa.Array,
        inputs: Sequence[pa.Array],
        select: pa.Array | None,
        at: pa.Array,
    ) -> tuple[int, int, int]:
        """Takes rows.

        keys, times: dense id of the partition, event time in microseconds; at: the watermark before each row
        inputs:      the pattern's columns, partition and offset in the log; select: rows that count
        returns:     (0, 0, rows left out since the watermark had passed them)
        raises:      LogFullError at `state_bytes`, with no row taken
        """
        ts = times.to_numpy()
        keep = np.ones(len(ts), dtype=np.bool_) if select is None else select.to_numpy(zero_copy_only=False)
        late = keep & (ts < at.to_numpy())
        keep = keep & ~late
        columns = [
            column.cast(field.type) for column, field in zip([keys, *inputs], self._schema, strict=True)
        ]
        rows = pa.record_batch(columns, schema=self._schema)
        if self._pattern.loose:
            keep = keep & self._useful(rows)
        if not keep.all():
            rows, ts = rows.filter(pa.array(keep)), ts[keep]
        if rows.num_rows:
            needed = self.stats()["bytes"] + rows.nbytes
            if needed > self._state_bytes:
                raise LogFullError(
                    f"rows that wait for the watermark or for a match need {needed} bytes of "
                    f"{self._state_bytes}"
                )
            self._waiting.append(_Waiting(rows, int(ts.min()), int(ts.max())))
        return 0, 0, int(late.sum())

    def close(self, watermark: int, most: int) -> pa.RecordBatch | None:
        """At most so many of the matches decided at this watermark, which never goes back; None: there are no more.

        returns: columns of the result, `ts` the event time of the last row, `revision` 0; and what WHERE reads
        """
        if watermark > self._watermark:
            self._watermark = watermark
            self._advance()
        if self._found is None:
            return None
        taken, rest = self._found.slice(0, most), self._found.slice(most)
        self._found = rest if rest.num_rows else None
        return taken

    def stats(self) -> dict[str, int]:
        """bytes: memory of rows that wait and of open matches."""
        return {"bytes": self._open.nbytes + sum(one.rows.nbytes for one in self._waiting)}

    def freeze(self, whole: bool) -> Encoded:
        """The state, when all matches found are taken; it is small and always whole."""
        schema = self._stored
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as stream:
            batches = [(self._open, pa.array(self._deadline, pa.int64()))]
            batches += [(one.rows, pa.nulls(one.rows.num_rows, pa.int64())) for one in self._waiting]
            for rows, deadline in batches:
                stream.write_batch(pa.record_batch([*rows.columns, deadline], schema=schema))
        return Encoded(_native.sealed(bytes(sink.getvalue())))

    def apply(self, state: bytes) -> None:
        """A later state in place of this one. raises: ValueError when it is not understood"""
        self._waiting = []
        self._decode(state)

    @property
    def _stored(self) -> pa.Schema:
        return self._schema.append(pa.field("_deadline", pa.int64())).with_metadata({_NAME: VERSION})

    def _decode(self, state: bytes) -> None:
        # The stream ends before the checksum.
        with pa.ipc.open_stream(state) as stream:
            if not stream.schema.equals(self._stored, check_metadata=True):
                raise ValueError("its open matches are of another pattern or version")
            batches = list(stream)
        for at, batch in enumerate(batches):
            rows = pa.record_batch(batch.columns[:-1], schema=self._schema)
            if at == 0:
                self._open, self._deadline = rows, batch.column("_deadline").to_numpy().copy()
            else:
                ts = _integers(rows, "ts")
                self._waiting.append(_Waiting(rows, int(ts.min()), int(ts.max())))

    def _useful(self, rows: pa.RecordBatch) -> _Mask:
        """Rows that may be part of a match: of others, only whether they lie between does not matter here."""
        found = np.zeros(rows.num_rows, dtype=np.bool_)
        frame = Frame(rows)
        for variable in self._pattern.variables:
            if variable.condition is None or variable.compares:
                return np.ones(rows.num_rows, dtype=np.bool_)
            found |= variable.condition.evaluate(frame)[0]
        return found

    def _advance(self) -> None:
        """Decides what the watermark allows."""
        fresh = self._ready()
        first = self._pattern.variables[0].condition
        starts = _fits(first, Frame(fresh))
        keys, open_keys = _integers(fresh, "_key"), _integers(self._open, "_key")
        if not starts.any() and not len(open_keys):
            return
        fresh = fresh.filter(pa.array(np.isin(keys, np.concatenate((keys[starts], open_keys)))))
        due = (self._deadline <= self._watermark) | np.isin(open_keys, _integers(fresh, "_key"))
        work = pa.concat_batches([self._open.filter(pa.array(due)), fresh])
        order = np.lexsort([_integers(work, name) for name in ("_offset", "_partition", "ts", "_key")])
        search = _Search(self._pattern, work.take(pa.array(order)), self._watermark)
        search.run()
        rows, deadline = search.undecided()
        self._open = pa.concat_batches([self._open.filter(pa.array(~due)), rows])
        self._deadline = np.concatenate((self._deadline[~due], deadline))
        if search.matches:
            found = self._results(search)
            self._found = found if self._found is None else pa.concat_batches([self._found, found])

    def _ready(self) -> pa.RecordBatch:
        """Rows that the watermark has passed, no longer waiting."""
        ready, waiting = [_empty(self._schema)], []
        for one in self._waiting:
            if one.high < self._watermark:
                ready.append(one.rows)
            elif one.low >= self._watermark:
                waiting.append(one)
            else:
                ts = _integers(one.rows, "ts")
                passed = ts < self._watermark
                ready.append(one.rows.filter(pa.array(passed)))
                waiting.append(_Waiting(one.rows.filter(pa.array(~passed)), int(ts[~passed].min()), one.high))
        self._waiting = waiting
        return pa.concat_batches(ready)

    def _results(self, search: _Search) -> pa.RecordBatch:
        """The matches as result columns, in the order of the moments at which they were decided."""
        at = np.array([rows for rows, _ in search.matches], dtype=np.int64)
        moment = np.array([moment for _, moment in search.matches], dtype=np.int64)
        place = [_integers(search.rows, name) for name in ("_offset", "_partition", "ts")]
        order = np.lexsort([*(one[at[:, 0]] for one in place), *(one[at[:, -1]] for one in place), moment])
        at = at[order]
        wanted = set().union(*(one.columns for one in self._pattern.measures.values()))
        columns = {
            column_of(variable.name, name): search.rows.column(name).take(pa.array(at[:, index]))
            for index, variable in enumerate(self._pattern.variables)
            for name in self._pattern.columns
            if column_of(variable.name, name) in wanted
        }
        last = search.rows.take(pa.array(at[:, -1]))
        frame = Frame(pa.record_batch({"ts": last.column("ts"), **columns}))
        given = {name: one.evaluate(frame) for name, one in self._pattern.measures.items()}
        given |= {group.column: last.column(group.column) for group in self._plan.groups}
        by_name = {alias: given[name] for alias, name in self._pattern.shown.items()}
        by_name |= {"ts": last.column("ts"), "revision": pa.repeat(0, len(at))}
        if self._plan.having is not None:
            by_name |= {column_of("", name): values for name, values in given.items()}
        return pa.record_batch(by_name)


class _Search:
    """One search: rows by key and event time; starts in order, each decided or left for a later watermark.

    matches: (row of each variable, moment at which it was decided)
    """

    def __init__(self, pattern: Pattern, rows: pa.RecordBatch, watermark: int) -> None:
        self.rows = rows
        self.matches: list[tuple[list[int], int]] = []
        self._pattern = pattern
        self._watermark = watermark
        self._first = pattern.variables[0].name
        self._blocks = _blocks(pattern.variables)
        self._ts = _integers(rows, "ts")
        self._frame = Frame(rows)
        keys = _integers(rows, "_key")
        self._keys = keys
        starts = np.flatnonzero(_fits(pattern.variables[0].condition, self._frame))
        self._starts = starts
        self._ends = np.searchsorted(keys, keys[starts], side="right")
        self._deadlines = self._ts[starts] + pattern.within_us
        #: First rows, ends and deadlines of keys with an undecided start.
        self._left: list[tuple[int, int, int]] = []

    def run(self) -> None:
        """Decides the starts."""
        after, failed = self._anchored()
        occurrences = [self._occurrences(block) for block in self._blocks[1:]]
        width, overlaps = len(self._blocks[0]), self._pattern.overlaps
        next_start, current, moment = 0, -1, NONE
        columns = (self._starts, self._ends, self._deadlines, after, failed)
        for start, end, deadline, fits, failed_at in zip(*(one.tolist() for one in columns), strict=True):
            if end != current:
                current, moment = end, NONE
            if start < next_start:
                continue
            at: list[int] | None = None
            fails = failed_at
            if fits:
                at = self._follow(list(range(start, start + width)), end, deadline, occurrences)
                fails = deadline if deadline <= self._watermark else _UNKNOWN
            if at is not None:
                moment = max(moment, int(self._ts[at[-1]]) + 1)
                self.matches.append((at, moment))
                next_start = start + 1 if overlaps else at[-1] + 1
            elif fails == _UNKNOWN:
                self._left.append((start, end, deadline))
                next_start = end
            else:
                moment = max(moment, fails)

    def undecided(self) -> tuple[pa.RecordBatch, _Int64]:
        """Rows from the first undecided start of each key on, and when it is given up, row by row."""
        left = np.array(self._left, dtype=np.int64).reshape(-1, 3)
        length = left[:, 1] - left[:, 0]
        at = np.repeat(left[:, 0] - np.concatenate(([0], np.cumsum(length)[:-1]))[: len(left)], length)
        at += np.arange(len(at))
        return self.rows.take(pa.array(at)), np.repeat(left[:, 2], length)

    def _anchored(self) -> tuple[_Mask, _Int64]:
        """Whether the rows right after each start fit, and when it was known that they do not; _UNKNOWN: not yet."""
        fits = np.ones(len(self._starts), dtype=np.bool_)
        failed = np.full(len(self._starts), _UNKNOWN, dtype=np.int64)
        given_up = np.where(self._deadlines <= self._watermark, self._deadlines, _UNKNOWN)
        for step, variable in enumerate(self._blocks[0][1:], 1):
            at = np.minimum(self._starts + step, len(self._ts) - 1)
            outside = (self._starts + step >= self._ends) | (self._ts[at] >= self._deadlines)
            failed = np.where(fits & outside, given_up, failed)
            fits &= ~outside
            other = fits & ~self._compared(variable, at)
            failed = np.where(other, self._ts[at] + 1, failed)
            fits &= ~other
        return fits, failed

    def _compared(self, variable: Variable, at: _Int64) -> _Mask:
        """Whether the row at each place fits, beside the start of the same index."""
        if not variable.compares:
            return _fits(variable.condition, self._frame)[at]
        return self._beside(variable, self.rows.take(pa.array(at)), self._starts)

    def _beside(self, variable: Variable, rows: pa.RecordBatch, starts: _Int64) -> _Mask:
        assert variable.condition is not None
        columns = dict(zip(rows.schema.names, rows.columns, strict=True))
        for name in self._pattern.columns:
            named = column_of(self._first, name)
            if named in variable.condition.columns:
                columns[named] = self.rows.column(name).take(pa.array(starts))
        return variable.condition.evaluate(pa.record_batch(columns))[0]

    def _occurrences(self, block: list[Variable]) -> list[int] | None:
        """Where rows fit the block, whatever the start; None where that depends on it."""
        if any(variable.compares for variable in block):
            return None
        masks = [_fits(variable.condition, self._frame) for variable in block]
        found = _together(masks)
        found &= self._keys[: len(found)] == self._keys[len(block) - 1 :]
        return np.flatnonzero(found).tolist()

    def _follow(
        self, at: list[int], end: int, deadline: int, occurrences: list[list[int] | None]
    ) -> list[int] | None:
        """The rows of all variables, those of the first block given; None where there are not all of them.

        Each block's first occurrence leaves the most rows to those after it, since none of them depends on it.
        """
        for block, places in zip(self._blocks[1:], occurrences, strict=True):
            if places is None:
                found = self._first_beside(block, at, end, deadline)
            else:
                index = bisect_left(places, at[-1] + 1)
                found = places[index] if index < len(places) else end
            last = found + len(block) - 1
            if last >= end or self._ts[last] >= deadline:
                return None
            at += range(found, last + 1)
        return at

    def _first_beside(self, block: list[Variable], at: list[int], end: int, deadline: int) -> int:
        """Where rows fit the block beside this start first, `end` where nowhere."""
        low = at[-1] + 1
        high = low + int(np.searchsorted(self._ts[low:end], deadline))
        if high - low < len(block):
            return end
        rows, starts = self.rows.slice(low, high - low), np.full(high - low, at[0])
        frame = Frame(rows)
        masks = [
            self._beside(one, rows, starts) if one.compares else _fits(one.condition, frame) for one in block
        ]
        found = _together(masks)
        return low + int(found.argmax()) if found.any() else end


def _blocks(variables: Sequence[Variable]) -> list[list[Variable]]:
    """Variables whose rows follow each other directly."""
    blocks: list[list[Variable]] = []
    for variable in variables:
        if variable.loose or not blocks:
            blocks.append([])
        blocks[-1].append(variable)
    return blocks


def _together(masks: Sequence[_Mask]) -> _Mask:
    """Where the first mask is true, the second one row later, and so on."""
    count = max(len(masks[0]) - len(masks) + 1, 0)
    found = masks[0][:count].copy()
    for step, mask in enumerate(masks[1:], 1):
        found &= mask[step : step + count]
    return found


def _fits(condition: Any, frame: Frame) -> _Mask:
    if condition is None:
        return np.ones(frame.rows, dtype=np.bool_)
    found: _Mask = condition.evaluate(frame)[0]
    return found


def _integers(rows: pa.RecordBatch, name: str) -> _Int64:
    found: _Int64 = rows.column(name).cast(pa.int64()).to_numpy()
    return found


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.record_batch([pa.array([], field.type) for field in schema], schema=schema)

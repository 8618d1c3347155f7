"""The state of one query and how rows change it: a deterministic machine without log, clock or disk.

The live query and the replay drive the same machine. What it does follows from the rows, their order and the idle marks
alone: a row is late when an earlier row (or idle mark) has closed its window, wherever batches are cut.

Order: rows up to the one that raises the boundary; then all windows closed by it, before any further row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from headwater import _native
from headwater.config import EngineSettings
from headwater.errors import LogFullError, QueryLimitError
from headwater.records import Schema
from headwater.streams.batches import Intake, Rows
from headwater.streams.checkpoint import State
from headwater.streams.matcher import Matcher
from headwater.streams.plan import Plan
from headwater.streams.watermarks import NONE, Watermarks

#: Windows open or held at a time, at most; engine.state_bytes bounds their memory.
MAX_PANES: Final = 1 << 16
#: More result rows than there can be.
ALL: Final = 1 << 31
COUNTERS: Final = (
    "rows",
    "filtered",
    "late",
    "dropped",
    "amendments_skipped",
    "windows_closed",
    "amendments",
    "early",
)
#: Early results have revisions from here on; the final one of a window has 0.
FIRST_EARLY: Final = -(1 << 31)


@dataclass(frozen=True, slots=True)
class Terms:
    """Settings that decide what is in which result.

    lateness_us, held_windows: how far the watermark stays behind, and how many closed windows late rows may amend
    early_us:                  open windows show results each time the watermark passes a multiple of it; None: none do
    """

    lateness_us: int
    held_windows: int
    early_us: int | None = None


class Windows:
    """Windows of one query.

    floor_us: rows before it are left out; None: none are
    states: of a checkpoint: window state and keys, whole ones, then changes; none for a new query

    raises: ValueError when they are not understood
    """

    def __init__(
        self,
        plan: Plan,
        source: Schema,
        settings: EngineSettings,
        offsets: Sequence[int],
        terms: Terms,
        floor_us: int | None = None,
        states: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        later = iter(states)
        windows, keys = next(later, (b"", b""))
        self.marks = Watermarks(len(offsets), terms.lateness_us, plan.shape.grid(), terms.early_us)
        self.intake = Intake(plan, source, settings.max_keys, keys)
        #: Next row to take, per partition.
        self.offsets = list(offsets)
        #: Windows below the boundary are being written; no row is taken meanwhile.
        self.closing = False
        #: Rows have amended windows whose new revision is not written yet.
        self.amended = False
        self._terms = terms
        #: At which early results were last out.
        self._early_tick = self.marks.early_tick
        self.floor_us = floor_us
        self.counters = dict.fromkeys(COUNTERS, 0)
        self._name = plan.name
        #: Sessions and matches close at any watermark: the kernel takes that of each row, rows are not cut where it
        #: rises.
        self.sessions = plan.shape.kind in ("session", "match")
        self._shorter = (
            "the window larger" if plan.pattern is None else "WITHIN or the stream's lateness shorter"
        )
        self._kernel = self._decoded(plan, source, settings.state_bytes, windows)
        for windows, keys in later:
            self._kernel.apply(windows)
            if self.intake.interner is not None:
                self.intake.interner.apply(keys)

    def _decoded(self, plan: Plan, source: Schema, state_bytes: int, windows: bytes) -> Any:
        if plan.pattern is not None:
            types = {column.name: column.type for column in source.columns}
            return Matcher(plan, types, state_bytes, windows)
        what = (self.intake.kernel_aggregates, self.intake.kernel_inputs)
        if self.sessions:
            gap = plan.shape.size_us
            if not windows:
                return _native.SessionWindows(gap, *what, state_bytes)
            return _native.SessionWindows.decode(windows, gap, *what, state_bytes)
        shape = plan.shape.kernel
        if not windows:
            return _native.AlignedWindows(shape, *what, state_bytes, MAX_PANES)
        return _native.AlignedWindows.decode(windows, shape, *what, state_bytes, MAX_PANES)

    def prepare(self, batch: pa.RecordBatch) -> Rows:
        """Rows of the source as the kernel takes them.

        raises: QueryLimitError at engine.max_keys
        """
        try:
            return self.intake.rows(batch, self.floor_us, self.counters)
        except LogFullError as error:
            raise self._limit(error, "Raise engine.max_keys, or group by fewer columns") from error

    def take(self, rows: Rows) -> None:
        """Adds rows up to the next rise of the boundary, which begins closing.

        raises: QueryLimitError at engine.state_bytes, with all rows added that fit and none besides
        """
        limit = len(rows) - rows.start
        while True:
            try:
                return self._take(rows, limit)
            except LogFullError as error:
                if limit == 1:
                    raise self._limit(error, f"Raise engine.state_bytes, or make {self._shorter}") from error
                limit //= 2  # many rows may be many windows: those at the front may fit

    def _take(self, rows: Rows, limit: int) -> None:
        """At most `limit` rows, or none of them: LogFullError of the kernel."""
        start, before = rows.start, self.marks.copy()
        partition, ts = rows.partition[start : start + limit], rows.ts[start : start + limit]
        at: Any = before.boundary
        if self.sessions:
            at, taken = pa.array(self.marks.take_all(partition, ts)), len(ts)
            rose = self.marks.watermark > before.watermark
        else:
            taken, rose = self.marks.take(partition, ts)
        end = start + taken
        try:
            _, late, dropped = self._kernel.add(
                rows.keys.slice(start, taken),
                rows.times.slice(start, taken),
                [values.slice(start, taken) for values in rows.inputs],
                None if rows.select is None else rows.select.slice(start, taken),
                at,
            )
        except LogFullError:
            self.marks = before
            raise
        rows.start, self.closing = end, rose
        self.counters["late"] += late
        self.counters["dropped"] += dropped
        self.amended = self.amended or late > 0
        partition, offset = rows.partition[start:end], rows.offset[start:end]
        for index in np.flatnonzero(np.bincount(partition)):
            last = taken - 1 - int((partition[::-1] == index).argmax())
            self.offsets[index] = int(offset[last]) + 1

    def close(self, budget: int, written: list[pa.RecordBatch] | None = None) -> int:
        """Takes at most `budget` closed windows from the kernel; closing ends when there are no more.

        written: they are appended here, as the kernel gives them
        returns: their number
        """
        taken = 0
        while taken < budget:
            closed = self._kernel.close(self.marks.boundary, budget - taken)
            if closed is None or closed.num_rows == 0:
                self.amended = False
                closed = self._early(budget - taken)
            if closed is None:
                self.closing = False
                if self.marks.watermark != NONE and not self.sessions:
                    self._kernel.forget(self.marks.behind(self._terms.held_windows))
                break
            taken += closed.num_rows
            revision = closed.column("revision").to_numpy()
            amendments, early = int(np.count_nonzero(revision > 0)), int(np.count_nonzero(revision < 0))
            self.counters["amendments"] += amendments
            self.counters["early"] += early
            self.counters["windows_closed"] += closed.num_rows - amendments - early
            if written is not None:
                written.append(closed)
        return taken

    def _early(self, most: int) -> pa.RecordBatch | None:
        """At most so many early results that the watermark calls for; None: there are no more."""
        tick, early_us = self.marks.early_tick, self._terms.early_us
        if early_us is None or tick == self._early_tick:
            return None
        found = self._kernel.early(self.marks.watermark, most)
        if found is None:
            self._early_tick = tick
            return None
        # Ticks since the window began: one number for all keys, which only grows.
        started = found.column("window_start").cast(pa.int64()).to_numpy() // early_us
        at = found.schema.get_field_index("revision")
        revision = pa.array(FIRST_EARLY + tick - started, pa.int64())
        return found.set_column(at, found.schema.field(at), revision)

    @property
    def terms(self) -> Terms:
        """What the windows go by."""
        return self._terms

    @terms.setter
    def terms(self, terms: Terms) -> None:
        """Other ones, from here on."""
        self._terms = terms
        self.marks.lateness_us, self.marks.early_us = terms.lateness_us, terms.early_us
        self._early_tick = self.marks.early_tick

    def set_idle(self, idle: Sequence[bool]) -> None:
        """Replaces the idle marks, which may begin closing."""
        self.closing = self.marks.set_idle(idle)

    def position(self) -> tuple[list[int | None], int | None]:
        """Highest event time per partition, and the watermark; None where there is none yet."""
        highest = [_none(value) for value in self.marks.highest.tolist()]
        return highest, _none(self.marks.watermark)

    def restore(
        self, highest: Sequence[int | None], idle: Sequence[bool], watermark: int | None, amended: bool
    ) -> None:
        """Sets what `position` gave, idle marks and pending amendments."""
        self.marks.highest[:] = [NONE if value is None else value for value in highest]
        self.marks.idle[:] = idle
        self.marks.watermark = NONE if watermark is None else watermark
        self.amended = amended
        self._early_tick = self.marks.early_tick

    def freeze(self, whole: bool) -> tuple[State, State | None]:
        """State of the kernel and of the keys as they are now: all, or what has changed since they were frozen last."""
        interner = self.intake.interner
        return self._kernel.freeze(whole), None if interner is None else interner.freeze(whole)

    def state_bytes(self) -> int:
        """Memory of open and held windows."""
        return int(self._kernel.stats().get("bytes", 0))

    def _limit(self, error: LogFullError, remedy: str) -> QueryLimitError:
        return QueryLimitError(f"query {self._name}: {error}; its input waits in the log. {remedy}")


def _none(us: int) -> int | None:
    return None if us == NONE else us

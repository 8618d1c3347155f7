"""The state of one query and how rows change it: a deterministic machine without log, clock or disk.

The live query and the replay drive the same machine. What it does follows from the rows, their order and the idle marks
alone: a row is late when an earlier row (or idle mark) has closed its window, wherever batches are cut.

Order: rows up to the one that raises the boundary; then all windows closed by it, before any further row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from headwater import _native
from headwater.config import EngineSettings
from headwater.errors import LogFullError, QueryLimitError
from headwater.records import Schema
from headwater.streams.batches import Intake, Rows
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
)


class Windows:
    """Windows of one query.

    lateness_us, held_windows: how far the watermark stays behind, and how many closed windows late rows may amend
    floor_us: rows before it are left out; None: none are
    windows, keys: encoded state, empty for a new query
    """

    def __init__(
        self,
        plan: Plan,
        source: Schema,
        settings: EngineSettings,
        offsets: Sequence[int],
        lateness_us: int,
        held_windows: int,
        floor_us: int | None = None,
        windows: bytes = b"",
        keys: bytes = b"",
    ) -> None:
        self.marks = Watermarks(len(offsets), lateness_us, plan.shape.grid())
        self.intake = Intake(plan, source, settings.max_keys, keys)
        #: Next row to take, per partition.
        self.offsets = list(offsets)
        #: Windows below the boundary are being written; no row is taken meanwhile.
        self.closing = False
        #: Rows have amended windows whose new revision is not written yet.
        self.amended = False
        self.held_windows = held_windows
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
                self.closing = self.amended = False
                if self.marks.watermark != NONE and not self.sessions:
                    self._kernel.forget(self.marks.behind(self.held_windows))
                break
            taken += closed.num_rows
            amendments = int(np.count_nonzero(closed.column("revision").to_numpy()))
            self.counters["amendments"] += amendments
            self.counters["windows_closed"] += closed.num_rows - amendments
            if written is not None:
                written.append(closed)
        return taken

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

    def encode(self) -> tuple[bytes, bytes]:
        """State of the kernel and of the keys."""
        interner = self.intake.interner
        return self._kernel.encode(), b"" if interner is None else interner.encode()

    def state_bytes(self) -> int:
        """Memory of open and held windows."""
        return int(self._kernel.stats().get("bytes", 0))

    def _limit(self, error: LogFullError, remedy: str) -> QueryLimitError:
        return QueryLimitError(f"query {self._name}: {error}; its input waits in the log. {remedy}")


def _none(us: int) -> int | None:
    return None if us == NONE else us

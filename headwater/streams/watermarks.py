"""Event time of one query: how far its source has come, partition by partition.

A pure function of rows in log order and of idle marks: however the rows are cut into batches, the boundary rises at the
same row. That makes a replay the same computation as the first run.

source: Akidau et al. 2015, The Dataflow Model, section 2.3 (watermarks); Flink documentation, "Idle sources"
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from headwater.streams.shapes import Grid

#: No event time yet. Far enough from the end of int64 to subtract any lateness.
NONE: Final = -(1 << 62)
_NEVER: Final = 1 << 62
#: Rows looked at first for the next rise, and by how much more each time: rises are either rare or close together.
_FIRST_LOOK: Final = 512
_LOOK_FACTOR: Final = 8

_Int64 = npt.NDArray[np.int64]


class Watermarks:
    """Highest event time and idle mark of each partition, and the watermark that follows.

    The watermark is the lowest `highest - lateness` over the partitions that are not idle, and never goes back.
    With all partitions idle it stays. A row makes its partition active again.
    """

    def __init__(self, partitions: int, lateness_us: int, grid: Grid, early_us: int | None = None) -> None:
        self.highest = np.full(partitions, NONE, dtype=np.int64)
        self.idle = np.zeros(partitions, dtype=np.bool_)
        self.watermark = NONE
        self.lateness_us = lateness_us
        #: Multiples of it are stops, too, where results of open windows are wanted.
        self.early_us = early_us
        self._grid = grid

    def copy(self) -> Watermarks:
        """The same state, from here on on its own."""
        copy = Watermarks(len(self.highest), self.lateness_us, self._grid, self.early_us)
        copy.highest[:], copy.idle[:], copy.watermark = self.highest, self.idle, self.watermark
        return copy

    @property
    def boundary(self) -> int:
        """End of the newest pane that the watermark has passed: windows ending at or before it are closed."""
        return self.behind(0)

    @property
    def early_tick(self) -> int:
        """The number of the last multiple of `early_us` that the watermark has passed."""
        return 0 if self.early_us is None else self.watermark // self.early_us

    def behind(self, panes: int) -> int:
        """The end of a pane so many before that one."""
        return self._grid.start(self._grid.number(self.watermark) - panes)

    def take(self, partition: npt.NDArray[np.uint16], ts: _Int64) -> tuple[int, bool]:
        """Takes rows up to and including the first one at which `boundary` or `early_tick` rises.

        partition, ts: of rows in log order; ts in microseconds, NONE for a row without event time
        returns:       (rows taken, whether one of them rose)
        """
        start, look = 0, _FIRST_LOOK
        while start < len(ts):
            part, times = partition[start : start + look], ts[start : start + look]
            rises_at = self._absorb(part, times)
            if rises_at is not None:
                return start + rises_at + 1, True
            start += len(times)
            look *= _LOOK_FACTOR
        return len(ts), False

    def take_all(self, partition: npt.NDArray[np.uint16], ts: _Int64) -> _Int64:
        """Takes all rows; the watermark before each of them."""
        if not len(ts):
            return ts
        running = self._running(partition, ts, np.bincount(partition, minlength=len(self.idle)) > 0)
        before = np.concatenate(([self.watermark], running[:-1]))
        self._advance(partition, ts, int(running[-1]))
        return before

    def set_idle(self, idle: Sequence[bool]) -> bool:
        """Replaces the idle marks; returns whether `boundary` or `early_tick` rose.

        When the last active partitions become idle together, those that had rows still count this once: a partition
        without any row must not keep their windows open for good.
        """
        before, was_active = self.watermark, ~self.idle
        self.idle[:] = idle
        without = self.idle
        if without.all():
            without = ~(was_active & (self.highest != NONE))
        self.watermark = max(self.watermark, self._lowest(self.highest, without))
        return bool(self._rises(before, self.watermark))

    def _absorb(self, partition: npt.NDArray[np.uint16], ts: _Int64) -> int | None:
        """Takes all rows, or those up to the one that raises the boundary: its index."""
        highest = self.highest.copy()
        np.maximum.at(highest, partition, ts)
        seen = np.bincount(partition, minlength=len(self.idle)) > 0
        # Without a partition waking up the minimum only grows, so its last value tells whether it crosses.
        if not (self.idle & seen).any():
            watermark = max(self.watermark, self._lowest(highest, self.idle))
            if not self._rises(self.watermark, watermark):
                self.highest, self.watermark = highest, watermark
                return None
        running = self._running(partition, ts, seen)
        rises = self._rises(self.watermark, running)
        at = int(rises.argmax()) if rises.any() else None
        end = len(ts) if at is None else at + 1
        self._advance(partition[:end], ts[:end], int(running[end - 1]))
        return at

    def _rises(self, before: int, after: Any) -> Any:
        """Whether a watermark, or each of an array, has passed a stop since the one before."""
        rises = self._grid.number(after) > self._grid.number(before)
        return rises if self.early_us is None else rises | (after // self.early_us > before // self.early_us)

    def _advance(self, partition: npt.NDArray[np.uint16], ts: _Int64, watermark: int) -> None:
        np.maximum.at(self.highest, partition, ts)
        self.idle[partition] = False
        self.watermark = watermark

    def _running(self, partition: npt.NDArray[np.uint16], ts: _Int64, seen: npt.NDArray[np.bool_]) -> _Int64:
        """The watermark after each row."""
        lowest = np.full(
            len(ts), self._lowest(self.highest, self.idle | seen, default=_NEVER), dtype=np.int64
        )
        for index in np.flatnonzero(seen):
            own = partition == index
            highest = np.where(own, ts, NONE)
            highest[0] = max(highest[0], self.highest[index])
            np.maximum.accumulate(highest, out=highest)
            highest -= self.lateness_us
            if self.idle[index]:
                highest[: own.argmax()] = _NEVER
            np.minimum(lowest, highest, out=lowest)
        lowest[lowest == _NEVER] = NONE  # nobody active at that row: the watermark stays
        lowest[0] = max(lowest[0], self.watermark)
        np.maximum.accumulate(lowest, out=lowest)
        return lowest

    def _lowest(self, highest: _Int64, without: npt.NDArray[np.bool_], default: int = NONE) -> int:
        counted = highest[~without]
        if not len(counted):
            return default
        lowest = int(counted.min())
        return NONE if lowest == NONE else lowest - self.lateness_us

"""The windows of a query: what SQL says of them, and where they begin and end.

A grid cuts time into panes, whose ends are the moments at which windows can close. Pure; the rules of time zones are
those of the `tzdata` that Python finds.

source: Apache Flink documentation, "Windowing table-valued functions"; calendar windows are ours
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final, Literal, Protocol
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

Unit = Literal["day", "week", "month"]
#: Panes of one window at most; the kernel has the same bound.
MAX_PANES: Final = 1440
#: Longest window, gap or WITHIN.
MAX_LENGTH_US: Final = 366 * 86_400_000_000
#: First and last day of calendars: rows outside are in no window.
CALENDAR: Final = (date(1969, 12, 1), date(2101, 1, 31))


@dataclass(frozen=True, slots=True)
class Shape:
    """Windows of one kind; lengths in microseconds.

    size_us: length of a window; of a session the gap; of a match WITHIN; of a calendar 0
    pane_us: what windows share: the slide of HOP, the step of CUMULATE, else the size
    unit, zone: of calendar windows: the local day, week (from Monday) or month of a time zone
    """

    kind: Literal["tumble", "hop", "cumulate", "session", "calendar", "match"]
    size_us: int = 0
    pane_us: int = 0
    unit: Unit | None = None
    zone: str | None = None

    @classmethod
    def tumble(cls, size_us: int) -> Shape:
        """Fixed windows."""
        return cls("tumble", size_us, size_us)

    @property
    def kernel(self) -> tuple[str, list[int]]:
        """Kind and times as the kernel of aligned windows takes them."""
        if self.kind == "calendar":
            return "calendar", self.grid().starts.tolist()
        return self.kind, [self.size_us] if self.kind == "tumble" else [self.pane_us, self.size_us]

    @property
    def meaning(self) -> dict[str, Any]:
        """What tells it from another shape; of a fixed window the size alone."""
        if self.kind == "tumble":
            return {"size_us": self.size_us}
        return {"size_us": self.size_us, "windows": [self.kind, self.pane_us, self.unit, self.zone]}

    def grid(self) -> Any:
        """The Grid of its panes. Sessions close at any moment, and so do matches."""
        if self.kind == "calendar":
            assert self.unit is not None
            assert self.zone is not None
            return _calendar(self.unit, self.zone)
        return FixedGrid(1 if self.kind in ("session", "match") else self.pane_us)


class Grid(Protocol):
    """Panes by number, ascending with time; microseconds UTC."""

    def number(self, us: Any) -> Any:
        """The pane that holds a time, or each of an array of times."""

    def start(self, number: int) -> int:
        """Where a pane begins."""


@dataclass(frozen=True, slots=True)
class FixedGrid:
    """Panes of one length, aligned to the Unix epoch."""

    pane_us: int

    def number(self, us: Any) -> Any:
        return us // self.pane_us

    def start(self, number: int) -> int:
        return number * self.pane_us


@dataclass(frozen=True, slots=True)
class CalendarGrid:
    """Panes between neighbours of ascending starts; -1 is before the first."""

    starts: npt.NDArray[np.int64]

    def number(self, us: Any) -> Any:
        found = np.searchsorted(self.starts, us, side="right") - 1
        return found if isinstance(us, np.ndarray) else int(found)

    def start(self, number: int) -> int:
        return -(1 << 62) if number < 0 else int(self.starts[number])


@functools.lru_cache(maxsize=32)
def _calendar(unit: Unit, zone: str) -> CalendarGrid:
    """Local midnights that begin a unit: the first instant of the local date, whatever daylight saving does to it."""
    info = ZoneInfo(zone)
    starts = [
        round(datetime(day.year, day.month, day.day, tzinfo=info).timestamp()) * 1_000_000
        for day in _first_days(unit)
    ]
    # A date that a zone skipped is as long as nothing.
    return CalendarGrid(np.maximum.accumulate(np.array(starts, dtype=np.int64)))


def _first_days(unit: Unit) -> Iterator[date]:
    day, last = CALENDAR  # 1 December 1969 is a Monday
    while day <= last:
        yield day
        if unit == "month":
            day = (day + timedelta(days=31)).replace(day=1)
        else:
            day += timedelta(days=7 if unit == "week" else 1)

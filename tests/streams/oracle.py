"""What a query must give, computed row by row in plain Python: slow, obvious, and without any code of the engine."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

#: One row of the source: partition, offset in it, and its columns by name (`ts` in microseconds).
Row = tuple[int, int, Mapping[str, Any]]
#: Idle marks set when the source had been read up to these offsets.
Mark = tuple[Sequence[int], Sequence[bool]]
#: Group values and start of the window in microseconds; its end, too, where windows are no fixed ones.
Key = tuple[Any, ...]
#: Start and end.
Bounds = tuple[int, int]
Aggregated = Sequence[tuple[str, str | None, int]]


@dataclass(frozen=True)
class Windowing:
    """Which windows hold a time. kind: tumble | hop | cumulate | session | calendar; lengths in microseconds."""

    kind: str
    size_us: int
    pane_us: int
    unit: str | None = None
    zone: str | None = None

    def of(self, ts: int) -> list[Bounds]:
        """All windows that hold `ts`, by the definitions; none for a session."""
        if self.kind == "calendar":
            return [self._local(ts)]
        last = ts // self.pane_us * self.pane_us
        if self.kind == "hop":
            starts = range(last, last - self.size_us, -self.pane_us)
            return [(start, start + self.size_us) for start in starts]
        start = ts // self.size_us * self.size_us
        ends = range(start + self.pane_us, start + self.size_us + 1, self.pane_us)
        return [(start, end) for end in ends if end > ts]

    def pane(self, ts: int) -> int:
        """Start of the shortest span that all windows share."""
        return self._local(ts)[0] if self.kind == "calendar" else ts // self.pane_us * self.pane_us

    def closed_to(self, watermark: int, held: int) -> int:
        """Windows that end at or before this are closed, and are not among the last `held` ends of panes."""
        if self.kind != "calendar":
            return (watermark // self.pane_us - held) * self.pane_us
        start = self._local(watermark)[0]
        for _ in range(held):
            start = self._local(start - 1)[0]
        return start

    def name(self, bounds: Bounds) -> tuple[int, ...]:
        return bounds[:1] if self.kind == "tumble" else bounds

    def _local(self, ts: int) -> Bounds:
        zone = ZoneInfo(self.zone or "")
        day = datetime.fromtimestamp(ts // 1_000_000, zone).date()
        if self.unit == "day":
            first, after = day, day + timedelta(days=1)
        elif self.unit == "week":
            first = day - timedelta(days=day.weekday())
            after = first + timedelta(days=7)
        else:
            first = day.replace(day=1)
            after = (first + timedelta(days=31)).replace(day=1)
        return _first_instant(first, zone), _first_instant(after, zone)


def _first_instant(day: date, zone: ZoneInfo) -> int:
    """The first second whose local date is `day` or later, found by halving."""
    middle = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
    low, high = middle - 30 * 3600, middle + 30 * 3600
    while high - low > 1:
        half = (low + high) // 2
        if datetime.fromtimestamp(half, zone).date() >= day:
            high = half
        else:
            low = half
    return high * 1_000_000


@dataclass
class Expected:
    """windows: values of each aggregate by key, for windows that closed.

    dropped: rows too late for any window; late: rows for a window already closed that is held
    """

    windows: dict[Key, list[Any]] = field(default_factory=dict)
    dropped: int = 0
    late: int = 0
    watermark: int | None = None
    #: Results of windows that were open: name, revision, values.
    early: list[tuple[Key, int, list[Any]]] = field(default_factory=list)


def run(
    rows: Iterable[Row],
    marks: Sequence[Mark],
    partitions: int,
    groups: Sequence[str],
    aggregates: Aggregated,
    windowing: Windowing,
    lateness_us: int,
    held: int,
    where: Callable[[Mapping[str, Any]], bool] | None = None,
    early_us: int | None = None,
) -> Expected:
    """Rows in log order. held: how many closed windows late rows may amend (0: late rows are dropped).

    where: rows for which it is false are in no window, but move the watermark
    early_us: when the watermark passes a multiple of it, windows that have begun and are open give what has changed
    """
    highest: list[int | None] = [None] * partitions
    idle = [False] * partitions
    at = [0] * partitions
    watermark: int | None = None
    waiting = list(marks)
    kept = _Sessions(windowing.size_us) if windowing.kind == "session" else _Aligned(windowing, held)
    expected = Expected()

    def lowest(counted: Iterable[int]) -> None:
        nonlocal watermark
        before = watermark
        found = [highest[p] for p in counted]
        if found and None not in found:
            candidate = min(h for h in found if h is not None) - lateness_us
            watermark = candidate if watermark is None else max(watermark, candidate)
        if early_us is None or watermark is None:
            return
        if before is None or watermark // early_us > before // early_us:
            assert isinstance(kept, _Aligned)
            kept.early(watermark, early_us, aggregates, expected)

    def set_due_marks() -> None:
        nonlocal idle
        while waiting and list(waiting[0][0]) == at:
            new = list(waiting.pop(0)[1])
            active = [p for p in range(partitions) if not new[p]]
            if not active and idle != new:
                active = [p for p in range(partitions) if not idle[p] and highest[p] is not None]
            idle = new
            lowest(active)

    set_due_marks()
    for partition, offset, values in rows:
        ts = values["ts"]
        if where is None or where(values):
            kept.add(tuple(values[g] for g in groups), values, watermark, expected)
        before = highest[partition]
        highest[partition] = ts if before is None else max(before, ts)
        idle[partition] = False
        at[partition] = offset + 1
        lowest(p for p in range(partitions) if not idle[p])
        set_due_marks()
    assert not waiting, f"marks at offsets that no row has: {waiting}"
    for group, bounds, members in kept.all():
        if watermark is not None and bounds[1] <= watermark:
            name = (*group, *windowing.name(bounds))
            expected.windows[name] = [aggregate(*one, members) for one in aggregates]
    expected.watermark = watermark
    return expected


class _Aligned:
    """Rows by group and window."""

    def __init__(self, windowing: Windowing, held: int) -> None:
        self._windowing = windowing
        self._held = held
        self._inside: dict[tuple[Key, Bounds], list[Mapping[str, Any]]] = defaultdict(list)
        #: Event times of rows that no early result has.
        self._unseen: dict[tuple[Key, Bounds], list[int]] = defaultdict(list)

    def add(self, group: Key, row: Mapping[str, Any], watermark: int | None, to: Expected) -> None:
        windows = self._windowing.of(row["ts"])
        if watermark is not None:
            gone = self._windowing.closed_to(watermark, self._held)
            windows = [bounds for bounds in windows if bounds[1] > gone]
            to.late += any(bounds[1] <= watermark for bounds in windows)
        to.dropped += not windows
        for bounds in windows:
            self._inside[group, bounds].append(row)
            self._unseen[group, bounds].append(row["ts"])

    def early(self, watermark: int, early_us: int, aggregates: Aggregated, to: Expected) -> None:
        """Open windows that have begun and changed. A pane that has not begun is shown again each time."""
        for (group, bounds), rows in self._inside.items():
            if bounds[0] <= watermark < bounds[1] and self._unseen[group, bounds]:
                revision = watermark // early_us - bounds[0] // early_us - (1 << 31)
                name = (*group, *self._windowing.name(bounds))
                to.early.append((name, revision, [aggregate(*one, rows) for one in aggregates]))
        for key, times in self._unseen.items():
            self._unseen[key] = [ts for ts in times if self._windowing.pane(ts) > watermark]

    def all(self) -> Iterable[tuple[Key, Bounds, list[Mapping[str, Any]]]]:
        return ((group, bounds, rows) for (group, bounds), rows in self._inside.items())


class _Sessions:
    """Rows by group and session: rows no further apart than the gap, of those that were open together."""

    def __init__(self, gap_us: int) -> None:
        self._gap_us = gap_us
        self._sessions: list[tuple[Key, list[Mapping[str, Any]]]] = []

    def add(self, group: Key, row: Mapping[str, Any], watermark: int | None, to: Expected) -> None:
        ts = row["ts"]
        joined = []
        for session in self._sessions:
            start, end = self._bounds(session[1])
            still_open = watermark is None or end > watermark
            if session[0] == group and still_open and start - self._gap_us <= ts <= end:
                joined.append(session)
        if not joined and watermark is not None and ts + self._gap_us <= watermark:
            to.dropped += 1
            return
        self._sessions = [session for session in self._sessions if session not in joined]
        self._sessions.append((group, [*(r for session in joined for r in session[1]), row]))

    def all(self) -> Iterable[tuple[Key, Bounds, list[Mapping[str, Any]]]]:
        return ((group, self._bounds(rows), rows) for group, rows in self._sessions)

    def _bounds(self, rows: Sequence[Mapping[str, Any]]) -> Bounds:
        return min(r["ts"] for r in rows), max(r["ts"] for r in rows) + self._gap_us


@dataclass(frozen=True)
class Near:
    """A value that is estimated."""

    value: float
    tolerance: float


def aggregate(function: str, column: str | None, parameter: int, rows: Sequence[Mapping[str, Any]]) -> Any:
    """One aggregate with the meaning of Flink: NULL does not count, AVG of integers truncates towards zero."""
    if column is None:
        return len(rows)
    with_value = [row for row in rows if row[column] is not None]
    values = [row[column] for row in with_value]
    match function:
        case "count":
            return len(values)
        case "count_distinct":
            return len(set(values))
    if not values:
        return None
    match function:
        case "min":
            return min(values)
        case "max":
            return max(values)
        case "first_value":
            return min(with_value, key=lambda row: row["ts"])[column]
        case "last_value":
            return max(reversed(with_value), key=lambda row: row["ts"])[column]
        case "percentile":
            return _percentile(sorted(values), parameter / 1e6)
        case "var_pop":
            return statistics.pvariance(map(float, values))
        case "stddev_pop":
            return statistics.pstdev(map(float, values))
        case "var_samp":
            return statistics.variance(map(float, values)) if len(values) > 1 else None
        case "stddev_samp":
            return statistics.stdev(map(float, values)) if len(values) > 1 else None
    if isinstance(values[0], int):
        total = sum(values)
        cut = abs(total) // len(values)
        return total if function == "sum" else cut if total >= 0 else -cut
    total = math.fsum(values)
    return total if function == "sum" else total / len(values)


def _percentile(ordered: Sequence[float], share: float) -> Near:
    position = share * (len(ordered) - 1)
    low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
    value = low + (position - math.floor(position)) * (high - low)
    return Near(value, 0.0101 * max(abs(low), abs(high)))


def same(found: Any, expected: Any) -> bool:
    """Equality, with a tolerance for doubles: the engine adds them up in log order, the oracle exactly."""
    if isinstance(expected, Near):
        return found is not None and abs(found - expected.value) <= expected.tolerance
    if isinstance(expected, float) and isinstance(found, float):
        return math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-6)
    return bool(found == expected)

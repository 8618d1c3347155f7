"""What a query must give, computed row by row in plain Python: slow, obvious, and without any code of the engine."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: One row of the source: partition, offset in it, and its columns by name (`ts` in microseconds).
Row = tuple[int, int, Mapping[str, Any]]
#: Idle marks set when the source had been read up to these offsets.
Mark = tuple[Sequence[int], Sequence[bool]]
#: Group values and start of the window in microseconds.
Key = tuple[Any, ...]


@dataclass
class Expected:
    """windows: values of each aggregate by key, for windows that closed.

    dropped: rows too late for any window; late: rows for a window already closed that is held
    """

    windows: dict[Key, list[Any]] = field(default_factory=dict)
    dropped: int = 0
    late: int = 0
    watermark: int | None = None


def run(
    rows: Iterable[Row],
    marks: Sequence[Mark],
    partitions: int,
    groups: Sequence[str],
    aggregates: Sequence[tuple[str, str | None]],
    size_us: int,
    lateness_us: int,
    held: int,
    where: Callable[[Mapping[str, Any]], bool] | None = None,
) -> Expected:
    """Rows in log order. held: how many closed windows late rows may amend (0: late rows are dropped).

    where: rows for which it is false are in no window, but move the watermark
    """
    highest: list[int | None] = [None] * partitions
    idle = [False] * partitions
    at = [0] * partitions
    watermark: int | None = None
    waiting = list(marks)
    inside: dict[Key, list[Mapping[str, Any]]] = defaultdict(list)
    expected = Expected()

    def lowest(counted: Iterable[int]) -> None:
        nonlocal watermark
        found = [highest[p] for p in counted]
        if found and None not in found:
            candidate = min(h for h in found if h is not None) - lateness_us
            watermark = candidate if watermark is None else max(watermark, candidate)

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
        start = ts // size_us * size_us
        end = start + size_us
        closed_to = -math.inf if watermark is None else watermark // size_us * size_us
        if where is not None and not where(values):
            pass
        elif end <= closed_to - held * size_us:
            expected.dropped += 1
        else:
            expected.late += end <= closed_to
            inside[(*(values[g] for g in groups), start)].append(values)
        before = highest[partition]
        highest[partition] = ts if before is None else max(before, ts)
        idle[partition] = False
        at[partition] = offset + 1
        lowest(p for p in range(partitions) if not idle[p])
        set_due_marks()
    assert not waiting, f"marks at offsets that no row has: {waiting}"
    for key, members in inside.items():
        if watermark is not None and key[-1] + size_us <= watermark:
            expected.windows[key] = [aggregate(function, column, members) for function, column in aggregates]
    expected.watermark = watermark
    return expected


def aggregate(function: str, column: str | None, rows: Sequence[Mapping[str, Any]]) -> Any:
    """One aggregate with the meaning of Flink: NULL does not count, AVG of integers truncates towards zero."""
    if column is None:
        return len(rows)
    values = [row[column] for row in rows if row[column] is not None]
    if function == "count":
        return len(values)
    if not values:
        return None
    if function == "min":
        return min(values)
    if function == "max":
        return max(values)
    if isinstance(values[0], int):
        total = sum(values)
        cut = abs(total) // len(values)
        return total if function == "sum" else cut if total >= 0 else -cut
    total = math.fsum(values)
    return total if function == "sum" else total / len(values)


def same(found: Any, expected: Any) -> bool:
    """Equality, with a tolerance for doubles: the engine adds them up in log order, the oracle exactly."""
    if isinstance(expected, float) and isinstance(found, float):
        return math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-6)
    return bool(found == expected)

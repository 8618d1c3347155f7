"""What a pattern must give, row by row in plain Python: every way is tried, no code of the engine used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
#: Whether a row fits, given the row of the first variable.
Fits = Callable[[Row, Row], bool]


@dataclass(frozen=True)
class Pattern:
    """variables: (whether other rows may lie before it, whether a row fits)."""

    variables: Sequence[tuple[bool, Fits]]
    within_us: int
    overlaps: bool


@dataclass(frozen=True)
class Expected:
    """matches: rows of all variables; dropped: rows that came behind the watermark."""

    matches: list[list[Row]]
    dropped: int


def run(rows: Sequence[Row], group: str | None, pattern: Pattern, lateness_us: int) -> Expected:
    """Rows of one partition in log order."""
    watermark: int | None = None
    kept: dict[Any, list[Row]] = {}
    dropped = 0
    for row in rows:
        if watermark is not None and row["ts"] < watermark:
            dropped += 1
        else:
            kept.setdefault(row[group] if group else None, []).append(row)
        watermark = max(row["ts"] - lateness_us, row["ts"] - lateness_us if watermark is None else watermark)
    if watermark is None:
        return Expected([], 0)
    found: list[list[Row]] = []
    for members in kept.values():
        ordered = sorted((row for row in members if row["ts"] < watermark), key=lambda row: row["ts"])
        found += _of_key(ordered, pattern, watermark)
    return Expected(found, dropped)


def _of_key(rows: Sequence[Row], pattern: Pattern, watermark: int) -> list[list[Row]]:
    found = []
    start = 0
    while start < len(rows):
        ways = (
            list(_ways(rows, pattern, [start], 1))
            if pattern.variables[0][1](rows[start], rows[start])
            else []
        )
        complete = [way for way in ways if way is not None]
        if complete:
            best = min(complete, key=lambda way: (way[-1], way))
            found.append([rows[at] for at in best])
            start = start + 1 if pattern.overlaps else best[-1] + 1
            continue
        if None in ways and rows[start]["ts"] + pattern.within_us > watermark:
            break  # a row to come may complete it, and no later start is before it
        start += 1
    return found


def _ways(rows: Sequence[Row], pattern: Pattern, at: list[int], variable: int) -> Iterator[list[int] | None]:
    """All ways to go on; None: with a row that is not there yet."""
    if variable == len(pattern.variables):
        yield at
        return
    loose, fits = pattern.variables[variable]
    last = len(rows) if loose else at[-1] + 1
    for place in range(at[-1] + 1, last + 1):
        if place == len(rows):
            yield None
        elif rows[place]["ts"] - rows[at[0]]["ts"] < pattern.within_us and fits(rows[place], rows[at[0]]):
            yield from _ways(rows, pattern, [*at, place], variable + 1)

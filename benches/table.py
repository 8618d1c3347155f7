"""Rows of the table: what was to be reached, what was found, and the verdict; as Markdown and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

PASS, SHORT, NOT_MEASURED, SHOWN = "pass", "falls short", "not measured", "no bound"


@dataclass
class Row:
    """One line of the table.

    number:  of the row in `docs/performance.md`, with a letter where a row has parts
    what:    what is measured
    reach:   the bound, as text
    found:   the figures, as text; for a row that was not measured the reason
    verdict: one of PASS, SHORT, NOT_MEASURED and SHOWN (a figure without a bound)
    figures: every figure behind it, for the JSON
    notes:   lines below the table: a profile where the row falls short, sizes that were lowered
    """

    number: str
    what: str
    reach: str
    found: str
    verdict: str
    figures: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def judged(holds: bool) -> str:
    """The verdict on a bound that was measured."""
    return PASS if holds else SHORT


def not_measured(number: str, what: str, reach: str, why: str) -> Row:
    """A row without figures."""
    return Row(number, what, reach, why, NOT_MEASURED)


def median(values: Sequence[float]) -> float:
    """Median of the rounds."""
    return float(statistics.median(values))


def say(line: str = "") -> None:
    """One line of output, at once."""
    print(line, flush=True)  # noqa: T201


def show(rows: Iterable[Row]) -> str:
    """The table and its notes, as Markdown for `docs/performance.md`."""
    lines = ["| row | what | to reach | found | verdict |", "| --- | --- | --- | --- | --- |"]
    rows = list(rows)
    lines += [f"| {row.number} | {row.what} | {row.reach} | {row.found} | {row.verdict} |" for row in rows]
    for row in rows:
        if row.notes:
            lines += ["", f"Row {row.number}:", "", *(f"- {note}" for note in row.notes)]
    return "\n".join(lines)

"""What windows and alarms must give, in plain Python that shares no line with the product."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

#: A reading: event time in microseconds UTC, and its value.
Reading = tuple[int, float]


def us(text: str) -> int:
    """Microseconds since the Unix epoch of an ISO 8601 time; without a zone it is UTC."""
    at = datetime.fromisoformat(text)
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
    passed = at - datetime(1970, 1, 1, tzinfo=UTC)
    return (passed.days * 86_400 + passed.seconds) * 1_000_000 + passed.microseconds


def transitions(
    readings: Iterable[Reading],
    raises: Callable[[float], bool],
    clears: Callable[[float], bool],
    for_us: int,
) -> list[tuple[str, int]]:
    """Transitions of one key, as (state, event time of the row that caused it), rows in log order."""
    found: list[tuple[str, int]] = []
    since: int | None = None
    firing = False
    for at, value in readings:
        if firing:
            if clears(value):
                found.append(("resolved", at))
                since, firing = None, False
        elif since is None:
            if raises(value):
                found.append(("pending", at))
                since = at
                if for_us == 0:
                    found.append(("firing", at))
                    firing = True
        elif not raises(value):
            found.append(("inactive", at))
            since = None
        elif at - since >= for_us:
            found.append(("firing", at))
            firing = True
    return found


@dataclass
class Window:
    """Aggregates of one key and window."""

    count: int = 0
    total: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.low = min(self.low, value)
        self.high = max(self.high, value)


def windows(readings: Iterable[Reading], size_us: int) -> dict[int, Window]:
    """Tumbling windows aligned to the epoch, by their start in microseconds."""
    found: defaultdict[int, Window] = defaultdict(Window)
    for at, value in readings:
        found[at // size_us * size_us].add(value)
    return dict(found)


def recorded_revisions(directory: Path, query: str) -> dict[tuple[str, int], list[int]]:
    """Revisions in the files of a query's table, ascending, by device and start of the window in microseconds."""
    found: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for uri in DeltaTable(directory / "tables" / query).file_uris():
        rows = pq.read_table(uri, columns=["device", "window_start", "revision"])
        starts = rows["window_start"].cast(pa.int64()).to_pylist()
        for device, start, revision in zip(
            rows["device"].to_pylist(), starts, rows["revision"].to_pylist(), strict=True
        ):
            found[device, start].append(revision)
    return {window: sorted(revisions) for window, revisions in found.items()}


def recorded_transitions(directory: Path, alarm: str) -> dict[str, list[tuple[str, int]]]:
    """Transitions in the database of a stopped Headwater, in log order, by the value of their one key column."""
    database = sqlite3.connect(f"file:{directory / 'headwater.db'}?mode=ro", uri=True)
    try:
        rows = database.execute(
            'SELECT "key", state, at FROM alarm_transitions WHERE alarm = ? ORDER BY "partition", "offset",'
            " CASE state WHEN 'pending' THEN 0 ELSE 1 END",
            (alarm,),
        ).fetchall()
    finally:
        database.close()
    found: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    for key, state, at in rows:
        [value] = json.loads(key).values()
        found[value].append((state, at))
    return dict(found)

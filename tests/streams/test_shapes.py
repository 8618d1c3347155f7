"""Grids: panes of one length, and local calendars against a plain search."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.streams.shapes import CALENDAR, CalendarGrid, FixedGrid, Shape, Unit
from tests.streams.oracle import Windowing

ZONES = (
    "UTC",
    "Europe/Paris",
    "America/New_York",
    "America/Sao_Paulo",  # until 2019 the clock changed at midnight
    "Asia/Beirut",  # at midnight, too
    "Asia/Kathmandu",
    "Australia/Lord_Howe",  # by half an hour
    "Pacific/Apia",  # has no 30 December 2011
)
S = 1_000_000


def us(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * S


def test_fixed_panes_are_aligned_to_the_epoch() -> None:
    grid = FixedGrid(10)
    assert grid.number(np.array([-11, -10, -1, 0, 9, 10])).tolist() == [-2, -1, -1, 0, 0, 1]
    assert (grid.number(-1), grid.start(-1)) == (-1, -10)


@pytest.mark.parametrize(
    ("unit", "zone", "inside", "start", "end"),
    [
        ("day", "Europe/Paris", "2026-03-29T12:00", "2026-03-28T23:00", "2026-03-29T22:00"),
        ("day", "Europe/Paris", "2026-10-25T12:00", "2026-10-24T22:00", "2026-10-25T23:00"),
        ("day", "America/Sao_Paulo", "2018-11-04T12:00", "2018-11-04T03:00", "2018-11-05T02:00"),
        ("week", "UTC", "2026-01-31T12:00", "2026-01-26T00:00", "2026-02-02T00:00"),
        ("month", "Asia/Kathmandu", "2024-02-29T12:00", "2024-01-31T18:15", "2024-02-29T18:15"),
        ("day", "Pacific/Apia", "2011-12-30T12:00", "2011-12-30T10:00", "2011-12-31T10:00"),
    ],
)
def test_local_days_weeks_and_months(unit: Unit, zone: str, inside: str, start: str, end: str) -> None:
    grid = Shape("calendar", unit=unit, zone=zone).grid()
    number = grid.number(us(inside))
    assert (grid.start(number), grid.start(number + 1)) == (us(start), us(end))


@settings(deadline=None)  # the first look at a zone makes its calendar
@given(
    unit=st.sampled_from(["day", "week", "month"]),
    zone=st.sampled_from(ZONES),
    second=st.integers(us("1970-01-02T00:00") // S, us("2037-01-01T00:00") // S),
)
def test_a_calendar_is_what_a_search_of_local_dates_gives(unit: Unit, zone: str, second: int) -> None:
    grid = Shape("calendar", unit=unit, zone=zone).grid()
    expected = Windowing("calendar", 0, 0, unit, zone).of(second * S)[0]
    number = grid.number(second * S)
    assert (grid.start(number), grid.start(number + 1)) == expected


def test_outside_of_a_calendar_there_is_no_pane() -> None:
    grid = Shape("calendar", unit="month", zone="UTC").grid()
    assert isinstance(grid, CalendarGrid)
    assert grid.number(us("1950-01-01T00:00")) == -1
    assert grid.start(-1) < us("1950-01-01T00:00")
    assert grid.start(0) == us(CALENDAR[0].isoformat())
    assert len(grid.starts) == grid.number(us("2300-01-01T00:00")) + 1

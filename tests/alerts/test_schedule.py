"""Active hours, by local time, also on the days on which clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from headwater.alarm_settings import DAYS, ScheduleSettings
from headwater.alerts.schedule import Schedule

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def us(text: str, zone: str = "UTC", fold: int = 0) -> int:
    at = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return round((at - EPOCH).total_seconds()) * 1_000_000


def schedule_of(*hours: dict[str, Any]) -> Schedule:
    return Schedule([ScheduleSettings.model_validate(each) for each in hours])


def test_days_and_hours_of_the_zone() -> None:
    office = schedule_of(
        {
            "days": ["mon", "tue", "wed", "thu", "fri"],
            "from": "08:00",
            "to": "18:00",
            "zone": "Europe/Berlin",
        }
    )
    monday = "2026-07-06"
    for time, active in (("07:59", False), ("08:00", True), ("17:59", True), ("18:00", False)):
        assert office.active(us(f"{monday} {time}", "Europe/Berlin")) is active
    assert not office.active(us("2026-07-05 12:00", "Europe/Berlin"))
    assert office.next_active(us("2026-07-03 18:00", "Europe/Berlin")) == us(
        f"{monday} 08:00", "Europe/Berlin"
    )


def test_a_night_belongs_to_the_day_on_which_it_begins() -> None:
    night = schedule_of({"days": ["fri"], "from": "22:00", "to": "06:00"})
    assert night.active(us("2026-07-03 23:00"))
    assert night.active(us("2026-07-04 05:59"))
    assert not night.active(us("2026-07-04 06:00"))
    assert not night.active(us("2026-07-03 05:00"))


def test_an_hour_that_does_not_exist_has_no_active_minute() -> None:
    early = schedule_of({"from": "02:00", "to": "03:00", "zone": "Europe/Berlin"})
    assert early.active(us("2026-03-28 02:30", "Europe/Berlin"))
    day = [us("2026-03-28 23:00") + minute * 60_000_000 for minute in range(24 * 60)]
    assert not any(early.active(at) for at in day[: 23 * 60])
    assert early.next_active(us("2026-03-29 00:00", "Europe/Berlin")) == us(
        "2026-03-30 02:00", "Europe/Berlin"
    )


def test_an_hour_that_comes_twice_is_active_twice() -> None:
    early = schedule_of({"from": "02:00", "to": "03:00", "zone": "Europe/Berlin"})
    for fold in (0, 1):
        assert early.active(us("2026-10-25 02:30", "Europe/Berlin", fold))
    active = [early.active(us("2026-10-24 22:00") + minute * 60_000_000) for minute in range(25 * 60)]
    assert sum(active) == 120


def test_always_and_never_soon() -> None:
    assert not Schedule([])
    assert Schedule([]).active(0)
    assert Schedule([]).mask(np.array([1, 2])).tolist() == [True, True]
    assert schedule_of({}).next_active(5) == 5


def test_times_beyond_any_calendar_are_judged_too() -> None:
    office = schedule_of({"from": "08:00", "to": "18:00", "zone": "Asia/Kathmandu"})
    assert office.mask(np.array([-(2**63), 2**63 - 1])).dtype == np.bool_


HOURS = st.fixed_dictionaries(
    {
        "days": st.lists(st.sampled_from(DAYS), min_size=1, unique=True),
        "from": st.sampled_from(["00:00", "02:30", "08:00", "22:15"]),
        "to": st.sampled_from(["02:15", "06:00", "18:30", "24:00"]),
        "zone": st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe"]),
    }
)


@settings(max_examples=200, deadline=None)
@given(st.lists(HOURS, min_size=1, max_size=2), st.integers(0, 4 * 366 * 1440))
def test_equal_to_the_local_calendar(hours: list[dict[str, Any]], minute: int) -> None:
    utc = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)
    wanted = False
    for each in hours:
        local = utc.astimezone(ZoneInfo(each["zone"]))
        for back in (0, 1):
            day = local.date() - timedelta(days=back)
            begin = datetime.fromisoformat(f"{day} {each['from']}")
            end = datetime.fromisoformat(f"{day} {each['to'].replace('24:00', '00:00')}")
            if end <= begin:
                end += timedelta(days=1)
            inside = begin <= local.replace(tzinfo=None) < end
            wanted |= inside and DAYS[day.weekday()] in each["days"]
    at_us = round((utc - EPOCH).total_seconds()) * 1_000_000
    schedule = schedule_of(*hours)
    assert schedule.active(at_us + 59_999_999) is wanted
    assert schedule.mask(np.array([at_us, at_us])).tolist() == [wanted, wanted]
    following = schedule.next_active(at_us)
    assert schedule.active(following)
    assert following == at_us or not schedule.active(following - 1)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"zone": "Europe/Berlim"}, "'Europe/Berlim' is no time zone"),
        ({"zone": "../etc/passwd"}, "is no time zone"),
        ({"from": "8:00"}, "'8:00' is no time of day"),
        ({"from": "08:00", "to": "08:00"}, "is no time at all"),
        ({"from": "24:00", "to": "08:00"}, "write that"),
        ({"days": ["monday"]}, "days"),
        ({"days": []}, "days"),
    ],
)
def test_a_wrong_schedule_is_refused(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ScheduleSettings.model_validate(given_)

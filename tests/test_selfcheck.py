"""Headwater's own alarms: they fire, are told, resolve, and wait for a database that cannot take them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from headwater.alerts.listing import alarms
from headwater.database import NOTIFICATIONS, Database
from headwater.selfcheck import OwnAlarm, SelfCheck

SECOND_US = 1_000_000


class Plant:
    """What is wrong, set by the test, and a clock of its own."""

    def __init__(self, directory: Path) -> None:
        self.database = Database.in_directory(directory, None)
        self.now_us = 1_700_000_000 * SECOND_US
        self.wrong: dict[str, str] = {}
        self.alarms = [
            OwnAlarm("headwater:at_once", "critical", lambda: self._find("at_once"), notify=("ops",)),
            OwnAlarm("headwater:patient", "major", lambda: self._find("patient"), checks=3),
        ]
        self.start()

    def _find(self, name: str) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
        for key, detail in self.wrong.items():
            if key.startswith(name):
                yield {"part": key}, {"detail": detail}

    def start(self) -> None:
        self.check = SelfCheck(self.database, self.alarms, lambda: self.now_us)

    def step(self, **wrong: str) -> list[tuple[str, str, str]]:
        """One check a second later; every alarm as (name, part, state), latest first."""
        self.now_us += SECOND_US
        self.wrong = wrong
        self.check.step()
        return self.shown()

    def shown(self) -> list[tuple[str, str, str]]:
        found = alarms(self.database)
        return [(each["alarm"], each["key"]["part"], each["state"]) for each in found]


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    plant = Plant(tmp_path)
    yield plant
    plant.database.close()


def test_it_fires_once_and_resolves_and_tells_both(plant: Plant) -> None:
    assert plant.step() == []
    fired = [("headwater:at_once", "at_once", "firing")]
    assert plant.step(at_once="broken") == fired
    assert plant.step(at_once="still") == fired
    assert alarms(plant.database)[0]["reading"] == {"detail": "broken"}
    assert plant.step() == [("headwater:at_once", "at_once", "resolved")]
    assert plant.step(at_once="again")[0][2] == "firing"
    with plant.database.read() as connection:
        told = connection.execute(sa.select(NOTIFICATIONS.c.target).order_by(NOTIFICATIONS.c.sequence)).all()
    assert [row.target for row in told] == ["ops"] * 3


def test_parts_have_instances_of_their_own(plant: Plant) -> None:
    plant.step(at_once_a="1", at_once_b="2")
    assert sorted(plant.step(at_once_b="2")) == [
        ("headwater:at_once", "at_once_a", "resolved"),
        ("headwater:at_once", "at_once_b", "firing"),
    ]


def test_what_may_pass_must_be_found_several_times_in_a_row(plant: Plant) -> None:
    for _ in range(2):
        assert plant.step(patient="hm") == []
    assert plant.step() == []
    for _ in range(2):
        assert plant.step(patient="hm") == []
    assert plant.step(patient="hm") == [("headwater:patient", "patient", "firing")]


def test_after_a_restart_an_open_alarm_is_the_same_one(plant: Plant) -> None:
    plant.step(at_once="broken")
    plant.start()
    assert plant.step(at_once="broken") == [("headwater:at_once", "at_once", "firing")]
    plant.start()
    assert plant.step() == [("headwater:at_once", "at_once", "resolved")]


def test_a_database_that_cannot_take_them_gets_them_later(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise sa.exc.OperationalError("INSERT", {}, OSError("database or disk is full"))

    with monkeypatch.context() as patch:
        patch.setattr(plant.database, "begin", full)
        with pytest.raises(sa.exc.OperationalError):
            plant.step(at_once="full")
        with pytest.raises(sa.exc.OperationalError):
            plant.step()
    assert plant.step() == [("headwater:at_once", "at_once", "resolved")]
    [found] = alarms(plant.database)
    assert found["reading"] == {"detail": "full"}
    assert found["fired_at"] < found["resolved_at"]

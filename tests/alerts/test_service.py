"""The alarm service over a real log and database: transitions, restarts, failures, changed configurations."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from oracle import Definition, Oracle
from plant import SECOND, TELEMETRY, Plant

from headwater.alarm_settings import AlarmSettings, RepeatSettings
from headwater.alerts.history import HISTORY_US, NO_ROUTES
from headwater.alerts.service import AlarmService, alarms
from headwater.database import (
    ALARM_ROWS,
    ALARM_STATES,
    ALARM_TRANSITIONS,
    NOTIFICATIONS,
    Database,
    load_offsets,
)
from headwater.errors import ConfigError, DataDirectoryError

HOT = AlarmSettings(on="telemetry", where="temperature > 80", severity="critical")
THREE = RepeatSettings(count=3, of=3)


def above_80(row: dict[str, Any]) -> bool | None:
    return None if row["temperature"] is None else row["temperature"] > 80


def smaller(row: dict[str, Any], limit: float) -> bool | None:
    return None if row["temperature"] is None else row["temperature"] < limit


def larger(row: dict[str, Any], limit: float, column: str = "temperature") -> bool | None:
    return None if row[column] is None else row[column] > limit


def service_of(plant: Plant, database: Database | None = None, **settings: AlarmSettings) -> AlarmService:
    schemas = {"telemetry": TELEMETRY}
    return AlarmService(plant.log, database or plant.database, settings or {"hot": HOT}, schemas, plant.clock)


def drain(service: AlarmService) -> None:
    while service.step():
        pass


def transitions(plant: Plant, alarm: str = "hot") -> list[tuple[str, int, int, str]]:
    """(key, partition, offset, state) in the order of the key's rows, pending before firing."""
    query = sa.select(ALARM_TRANSITIONS).where(ALARM_TRANSITIONS.c.alarm == alarm)
    with plant.database.read() as connection:
        rows = connection.execute(query).all()
    found = [(row.key, row.partition, row.offset, row.state) for row in rows]
    return sorted(found, key=lambda one: (one[0], one[1], one[2], one[3] != "pending", one[3]))


def test_an_alarm_fires_shows_its_reading_and_resolves(plant: Plant) -> None:
    service = service_of(plant)
    plant.append({"site": "a", "device": "d1", "ts": 1, "temperature": 81.5, "state": "on"})
    drain(service)
    (alarm,) = alarms(plant.database)
    assert len(alarm.pop("id")) == 24
    assert alarm == {
        "alarm": "hot",
        "key": {"device": "d1"},
        "state": "firing",
        "severity": "critical",
        "since": "1970-01-01T00:00:01Z",
        "fired_at": "1970-01-01T00:00:01Z",
        "resolved_at": None,
        "reading": {
            "site": "a",
            "device": "d1",
            "ts": "1970-01-01T00:00:01Z",
            "received_at": None,
            "temperature": 81.5,
            "state": "on",
        },
        "acknowledged_at": None,
        "acknowledged_by": None,
        "assignee": None,
    }
    plant.append({"device": "d1", "ts": 2.5, "temperature": 80.0})
    drain(service)
    (alarm,) = alarms(plant.database, state="resolved")
    assert (alarm["state"], alarm["resolved_at"]) == ("resolved", "1970-01-01T00:00:02.500000Z")
    assert alarms(plant.database, state="firing") == []


def test_pending_is_shown_and_becomes_the_same_alarm(plant: Plant) -> None:
    service = service_of(plant, hot=HOT.model_copy(update={"for_": 10 * SECOND}))
    plant.append({"device": "d1", "ts": 1, "temperature": 90.0})
    drain(service)
    (pending,) = alarms(plant.database)
    assert (pending["state"], pending["severity"], pending["reading"]) == ("pending", "critical", None)
    plant.append({"device": "d1", "ts": 11, "temperature": 91.0})
    drain(service)
    (firing,) = alarms(plant.database)
    assert firing["id"] == pending["id"]
    assert (firing["since"], firing["fired_at"]) == ("1970-01-01T00:00:01Z", "1970-01-01T00:00:11Z")


def test_several_alarms_share_one_read_and_limits_apply(plant: Plant) -> None:
    service = service_of(
        plant,
        hot=HOT,
        off=AlarmSettings(on="telemetry", where="state = 'off'", key=["site"]),
        cold=AlarmSettings(on="telemetry", where="temperature < 0"),
    )
    plant.append(
        *({"site": "a", "device": f"d{n}", "ts": n, "temperature": 90.0, "state": "off"} for n in range(5))
    )
    drain(service)
    assert len(alarms(plant.database, alarm="hot")) == 5
    assert [one["key"] for one in alarms(plant.database, alarm="off")] == [{"site": "a"}]
    newest = alarms(plant.database, alarm="hot", limit=2)
    assert [one["key"]["device"] for one in newest] == ["d4", "d3"]
    assert alarms(plant.database, alarm="cold") == []


def test_a_new_alarm_begins_at_the_end_and_loses_nothing_after(plant: Plant) -> None:
    plant.append({"device": "old", "ts": 1, "temperature": 90.0})
    service_of(plant)  # killed before its first step
    plant.append({"device": "new", "ts": 2, "temperature": 90.0})
    drain(service_of(plant))
    assert [one["key"] for one in alarms(plant.database)] == [{"device": "new"}]


def test_an_alarm_added_beside_an_older_one_does_not_see_older_rows(plant: Plant) -> None:
    service_of(plant)
    plant.append({"device": "d1", "ts": 1, "temperature": 90.0})
    both = {"hot": HOT, "hotter": HOT}
    service = service_of(plant, **both)  # the reader is behind, for the older alarm's sake
    plant.append({"device": "d2", "ts": 1, "temperature": 90.0})
    drain(service)
    assert len(alarms(plant.database, alarm="hot")) == 2
    assert [one["key"] for one in alarms(plant.database, alarm="hotter")] == [{"device": "d2"}]


def test_a_removed_alarm_stays_visible_and_goes_on_when_it_is_back(plant: Plant) -> None:
    first = service_of(plant)
    plant.append({"device": "d1", "ts": 1, "temperature": 90.0})
    drain(first)
    first.close()
    service_of(plant, other=HOT).close()
    assert [one["alarm"] for one in alarms(plant.database, state="firing")] == ["hot"]
    plant.append({"device": "d1", "ts": 2, "temperature": 70.0})  # nobody judges this one
    again = service_of(plant)
    drain(again)
    assert [one["state"] for one in alarms(plant.database)] == ["firing"]
    plant.append({"device": "d1", "ts": 3, "temperature": 70.0})
    drain(again)
    assert [one["state"] for one in alarms(plant.database)] == ["resolved"]


def test_a_changed_condition_judges_the_open_instances(plant: Plant) -> None:
    first = service_of(plant)
    plant.append({"device": "d1", "ts": 1, "temperature": 90.0})
    drain(first)
    changed = service_of(plant, hot=HOT.model_copy(update={"where": "temperature > 95"}))
    plant.append({"device": "d1", "ts": 2, "temperature": 90.0})
    drain(changed)
    assert [one["state"] for one in alarms(plant.database)] == ["resolved"]


def test_instances_of_another_key_stay_as_they_are(plant: Plant) -> None:
    first = service_of(plant)
    plant.append({"site": "a", "device": "d1", "ts": 1, "temperature": 90.0})
    drain(first)
    by_site = service_of(plant, hot=HOT.model_copy(update={"key": ["site"]}))
    plant.append({"site": "a", "device": "d1", "ts": 2, "temperature": 70.0})
    drain(by_site)
    assert [(one["key"], one["state"]) for one in alarms(plant.database)] == [({"device": "d1"}, "firing")]


def test_alarms_change_between_two_steps(plant: Plant) -> None:
    """What stays goes on, what is new begins with the next row, what changed keeps its instances."""
    schemas = {"telemetry": TELEMETRY}
    service = service_of(
        plant, hot=HOT, off=AlarmSettings(on="telemetry", where="state = 'off'", repeat=THREE)
    )
    plant.append(*({"device": "d1", "ts": n, "temperature": 90.0, "state": "off"} for n in (1, 2)))
    drain(service)
    [hot] = alarms(plant.database)
    plant.append({"device": "d1", "ts": 3, "temperature": 85.0, "state": "off"})  # not judged yet
    changed = {
        "hot": HOT.model_copy(update={"where": "temperature > 70"}),
        "off": AlarmSettings(on="telemetry", where="state = 'off'", repeat=THREE),
        "new": AlarmSettings(on="telemetry", where="temperature > 60"),
    }
    service.change(changed, schemas, NO_ROUTES)
    drain(service)
    # The row that was there before the change is judged by what is declared now, except by the alarm that is new.
    assert {one["alarm"]: one["state"] for one in alarms(plant.database)} == {
        "hot": "firing",
        "off": "firing",
    }
    assert hot["id"] in {one["id"] for one in alarms(plant.database)}
    plant.append({"device": "d1", "ts": 4, "temperature": 65.0, "state": "on"})
    drain(service)
    assert {one["alarm"]: one["state"] for one in alarms(plant.database)} == {
        "hot": "resolved",
        "off": "resolved",
        "new": "firing",
    }
    service.change({}, schemas, NO_ROUTES)
    assert service.position() == {}
    assert not service.step()


def test_a_wrong_change_leaves_everything_as_it_is(plant: Plant) -> None:
    service = service_of(plant)
    wrong = HOT.model_copy(update={"where": "nothing > 1"})
    with pytest.raises(ConfigError):
        service.change({"hot": HOT, "wrong": wrong}, {"telemetry": TELEMETRY}, NO_ROUTES)
    plant.append({"device": "d1", "ts": 1, "temperature": 90.0})
    drain(service)
    assert [one["state"] for one in alarms(plant.database)] == ["firing"]


def test_instances_that_nobody_can_resolve_are_resolved_once_and_told(plant: Plant) -> None:
    schemas = {"telemetry": TELEMETRY}
    told = HOT.model_copy(update={"notify": ["ops"], "labels": {"team": "a"}})
    settings = {"gone": told, "paused": told, "other_key": told, "stays": told}
    service = AlarmService(plant.log, plant.database, settings, schemas, plant.clock, ended=True)
    plant.append({"site": "a", "device": "d1", "ts": 1, "temperature": 90.0})
    drain(service)
    service.close()
    by_site = told.model_copy(update={"key": ["site"]})
    for _ in range(2):  # a start, and another
        plant.now_us += SECOND
        AlarmService(
            plant.log,
            plant.database,
            {"stays": told, "other_key": by_site},
            schemas,
            plant.clock,
            ended=True,
            paused=["paused"],
        )
    assert {one["alarm"]: one["state"] for one in alarms(plant.database)} == {
        "gone": "resolved",
        "paused": "firing",
        "other_key": "resolved",
        "stays": "firing",
    }
    with plant.database.read() as connection:
        ids = connection.scalars(sa.select(NOTIFICATIONS.c.id)).all()
        left = connection.scalars(sa.select(ALARM_STATES.c.alarm).order_by(ALARM_STATES.c.alarm)).all()
    assert sorted(id_.split("-")[1] for id_ in ids) == ["firing"] * 4 + ["resolved"] * 2
    assert left == ["paused", "stays"]


def test_offsets_without_changes_are_committed_once_a_second(plant: Plant) -> None:
    service = service_of(plant)

    def committed() -> int:
        with plant.database.read() as connection:
            return sum(load_offsets(connection, "alarms", TELEMETRY.stream))

    for expected in (0, 0):
        plant.append({"device": "d1", "ts": 1, "temperature": 20.0})
        drain(service)
        assert committed() == expected
    plant.now_us += SECOND
    service.step()
    assert committed() == 2
    plant.append({"device": "d1", "ts": 1, "temperature": 20.0})
    drain(service)
    service.close()
    assert committed() == 3


def test_history_is_bounded(plant: Plant) -> None:
    service = service_of(plant)
    plant.append(
        {"device": "d1", "ts": 1, "temperature": 90.0}, {"device": "d2", "ts": 1, "temperature": 90.0}
    )
    plant.append({"device": "d1", "ts": 2, "temperature": 20.0})
    drain(service)
    plant.now_us += HISTORY_US + SECOND
    service.step()
    assert [(one["key"], one["state"]) for one in alarms(plant.database)] == [({"device": "d2"}, "firing")]
    assert transitions(plant) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"where": "temprature > 80"},
            r"alarms.hot.where = 'temprature > 80': at position 0: no column 'temprature'; did",
        ),
        ({"clear": "temperature"}, "alarms.hot.clear = .*DOUBLE is no condition"),
        ({"key": ["devise"]}, "alarms.hot.key: 'telemetry' has no column 'devise'; did you mean 'device'?"),
        ({"key": ["temperature"]}, "alarms.hot.key: 'temperature' is double; a key is"),
        ({"on": "telemtry"}, "alarms.hot.on: 'telemtry' is no stream or query; did you mean 'telemetry'?"),
    ],
)
def test_a_wrong_alarm_is_named(plant: Plant, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        service_of(plant, hot=HOT.model_copy(update=settings))
    with pytest.raises(ConfigError, match=message):
        AlarmService.check({"hot": HOT.model_copy(update=settings)}, {"telemetry": TELEMETRY})


class Failing(Database):
    """A database whose transactions fail at the end when `fail` says so."""

    fail = False

    @contextlib.contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        with super().begin() as connection:
            yield connection
            if self.fail:
                raise OSError("disk full")


def test_an_alarm_of_before_goes_on(plant: Plant) -> None:
    """A database as earlier versions left it has no memories: state and first row say all."""
    first = service_of(plant, hot=HOT.model_copy(update={"for_": 10 * SECOND}))
    plant.append(
        {"device": "d1", "ts": 1, "temperature": 90.0}, {"device": "d2", "ts": 1, "temperature": 90.0}
    )
    plant.append({"device": "d1", "ts": 11, "temperature": 90.0})
    drain(first)
    with plant.database.begin() as connection:
        assert connection.scalars(sa.select(ALARM_STATES.c.memory)).all() == [None, None]
    again = service_of(plant, hot=HOT.model_copy(update={"for_": 10 * SECOND}))
    plant.append(
        {"device": "d2", "ts": 11, "temperature": 90.0}, {"device": "d1", "ts": 12, "temperature": 0.0}
    )
    drain(again)
    assert [(one["key"]["device"], one["state"]) for one in alarms(plant.database)] in (
        [("d1", "resolved"), ("d2", "firing")],
        [("d2", "firing"), ("d1", "resolved")],
    )


def test_severity_steps_up_and_down(plant: Plant) -> None:
    steps = [
        {"where": "temperature > 80", "severity": "minor"},
        {"where": "temperature > 90", "clear": "temperature < 85", "severity": "critical"},
    ]
    service = service_of(
        plant, hot=AlarmSettings.model_validate({"on": "telemetry", "steps": steps, "notify": ["ops"]})
    )
    found = []
    for ts, temperature in enumerate([81.0, 95.0, 87.0, 84.0, 70.0]):
        plant.append({"device": "d1", "ts": ts + 1, "temperature": temperature})
        drain(service)
        [alarm] = alarms(plant.database)
        found.append((alarm["state"], alarm["severity"]))
    assert found == [
        ("firing", "minor"), ("firing", "critical"), ("firing", "critical"), ("firing", "minor"),
        ("resolved", "minor"),
    ]  # fmt: skip
    with plant.database.read() as connection:
        bodies = connection.scalars(sa.select(NOTIFICATIONS.c.body).order_by(NOTIFICATIONS.c.sequence)).all()
    told = [(body["state"], body["severity"]) for body in map(json.loads, bodies)]
    assert told == [("firing", "minor"), ("firing", "critical"), ("resolved", "minor")]


SILENT = AlarmSettings(on="telemetry", silent=300 * SECOND)


def test_silence_fires_by_the_wall_clock_while_nothing_comes(plant: Plant) -> None:
    service = service_of(plant, quiet=SILENT)
    plant.append({"site": "a", "device": "d1", "ts": 1000, "temperature": 1.0})
    drain(service)
    plant.now_us += 299 * SECOND
    service.step()
    assert alarms(plant.database) == []
    plant.now_us += 2 * SECOND
    service.step()
    [alarm] = alarms(plant.database)
    assert (alarm["state"], alarm["key"], alarm["fired_at"]) == (
        "firing",
        {"device": "d1"},
        "1970-01-01T00:21:40Z",
    )
    assert alarm["reading"] == {"device": "d1", "last_seen": "1970-01-01T00:16:40Z"}
    plant.append({"device": "d1", "ts": 1400, "temperature": 1.0})
    drain(service)
    [alarm] = alarms(plant.database)
    assert (alarm["state"], alarm["resolved_at"]) == ("resolved", "1970-01-01T00:23:20Z")


def test_other_devices_move_the_time_of_a_silent_one(plant: Plant) -> None:
    service = service_of(plant, quiet=SILENT)
    plant.append(*({"device": f"d{n}", "ts": 1000, "temperature": 1.0} for n in range(3)))
    plant.append(*({"device": f"d{n}", "ts": 1301, "temperature": 1.0} for n in range(2)))
    drain(service)
    firing = [one["key"]["device"] for one in alarms(plant.database, state="firing")]
    assert "d2" in firing


def test_a_wait_for_silence_goes_on_after_a_restart(plant: Plant) -> None:
    service = service_of(plant, quiet=SILENT)
    plant.append({"device": "d1", "ts": 1000, "temperature": 1.0})
    drain(service)
    for _ in range(30):
        plant.now_us += 6 * SECOND
        service.step()
    again = service_of(plant, quiet=SILENT)  # the first one was killed
    plant.now_us += 115 * SECOND
    again.step()
    assert alarms(plant.database) == []
    plant.now_us += 10 * SECOND
    again.step()
    assert [one["state"] for one in alarms(plant.database)] == ["firing"]


def test_time_without_headwater_is_no_silence(plant: Plant) -> None:
    first = service_of(plant, quiet=SILENT)
    plant.append(*({"device": f"d{n}", "ts": 1000, "temperature": 1.0} for n in range(3)))
    drain(first)
    first.close()
    plant.now_us += 3600 * SECOND
    again = service_of(plant, quiet=SILENT)
    plant.append({"device": "d0", "ts": 4600, "temperature": 1.0})  # the first one to be back
    drain(again)
    assert alarms(plant.database) == []
    plant.now_us += 301 * SECOND
    again.step()
    assert len(alarms(plant.database, state="firing")) == 3


def test_an_alarm_that_comes_back_remembers_no_one_it_did_not_hear(plant: Plant) -> None:
    first = service_of(plant, quiet=SILENT)
    plant.append({"device": "d1", "ts": 1000, "temperature": 1.0})
    drain(first)
    first.close()
    service_of(plant, other=HOT).close()
    again = service_of(plant, quiet=SILENT)
    plant.append({"device": "d2", "ts": 9000, "temperature": 1.0})
    drain(again)
    assert alarms(plant.database) == []


def test_rows_are_remembered_in_few_records(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.alerts.recovery.MAX_RECORDS", 5)
    service = service_of(plant, quiet=SILENT)
    for ts in range(1000, 1040):
        plant.append({"device": f"d{ts % 7}", "ts": ts, "temperature": 1.0})
        plant.now_us += 2 * SECOND
        drain(service)
        service.step()
    with plant.database.read() as connection:
        assert 1 <= (connection.scalar(sa.select(sa.func.count()).select_from(ALARM_ROWS)) or 0) <= 5
    plant.now_us += 400 * SECOND
    service_of(plant, quiet=SILENT)
    service.step()
    assert len(alarms(plant.database, state="firing")) == 7


def test_a_damaged_record_is_named(plant: Plant) -> None:
    service = service_of(plant, quiet=SILENT)
    plant.append({"device": "d1", "ts": 1000, "temperature": 1.0})
    drain(service)
    service.close()
    with plant.database.begin() as connection:
        record = connection.scalar(sa.select(ALARM_ROWS.c.record))
        assert record is not None
        connection.execute(sa.update(ALARM_ROWS).values(record=record[:-1] + bytes([record[-1] ^ 1])))
    with pytest.raises(
        DataDirectoryError, match=r"alarm 'quiet' remembers of its keys: a record .* is damaged"
    ):
        service_of(plant, quiet=SILENT)


def test_flapping_is_told_once_and_its_end_too(plant: Plant) -> None:
    service = service_of(
        plant,
        hot=AlarmSettings.model_validate(
            {
                "on": "telemetry",
                "where": "temperature > 80",
                "flap": {"changes": 3, "within": "1m"},
                "notify": ["ops"],
            }
        ),
    )
    for ts in range(1, 21):
        plant.append({"device": "d1", "ts": ts, "temperature": 90.0 if ts % 2 else 20.0})
    drain(service)
    states = [one["state"] for one in alarms(plant.database)]
    assert sorted(states) == ["flapping", "resolved"]
    plant.now_us += 61 * SECOND
    service.step()
    assert [one["state"] for one in alarms(plant.database)] == ["resolved", "resolved"]
    with plant.database.read() as connection:
        bodies = connection.scalars(sa.select(NOTIFICATIONS.c.body).order_by(NOTIFICATIONS.c.sequence)).all()
    assert [json.loads(body)["state"] for body in bodies] == [
        "firing", "resolved", "firing", "flapping", "resolved",
    ]  # fmt: skip


def test_a_failed_transaction_is_judged_again(plant: Plant) -> None:
    database = Failing(f"sqlite:///{plant.directory / 'headwater.db'}")
    service = service_of(plant, database, hot=HOT.model_copy(update={"notify": ["ops"]}))
    plant.append({"device": "d1", "ts": 1, "temperature": 90.0})
    database.fail = True
    for _ in range(2):
        with pytest.raises(OSError, match="disk full"):
            service.step()
    assert transitions(plant) == []
    database.fail = False
    drain(service)
    assert [state for *_, state in transitions(plant)] == ["pending", "firing"]
    with plant.database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(NOTIFICATIONS)) == 1
    database.close()


@pytest.mark.parametrize("seed", range(8))
def test_kills_and_failures_lose_and_double_nothing(plant: Plant, seed: int) -> None:
    """Any mix of rows, kills and failed commits gives the transitions of the rows judged one by one."""
    rng = random.Random(seed)
    settings = {
        "hot": HOT.model_copy(
            update={"clear": "temperature < 75", "for_": 2 * SECOND, "notify": ["ops", "team"]}
        ),
        "site": HOT.model_copy(update={"key": ["site", "state"], "notify": ["ops"]}),
    }
    database = Failing(f"sqlite:///{plant.directory / 'headwater.db'}")
    service = service_of(plant, database, **settings)
    for ts in range(60):
        plant.append(
            *(
                {
                    "site": rng.choice("ab"),
                    "device": f"d{rng.randrange(6)}",
                    "ts": ts + rng.randrange(-2, 3),
                    "temperature": rng.choice([None, 70.0, 78.0, 85.0, 90.0]),
                    "state": rng.choice([None, "on", "off"]),
                }
                for _ in range(rng.randrange(1, 8))
            )
        )
        plant.now_us += rng.randrange(2 * SECOND)
        database.fail = rng.random() < 0.2
        for _ in range(rng.randrange(3)):
            with contextlib.suppress(OSError):
                service.step()
        database.fail = False
        if rng.random() < 0.2:
            service = service_of(plant, database, **settings)
    drain(service)
    rows = all_rows(plant)
    hot = Definition([(above_80, None)], lambda row: smaller(row, 75), for_us=2 * SECOND)
    assert transitions(plant, "hot") == expected(rows, ["device"], hot)
    assert transitions(plant, "site") == expected(rows, ["site", "state"], Definition([(above_80, None)]))
    assert {"inactive", "resolved"} <= {one[-1] for one in transitions(plant, "hot")}
    states = [one[-1] for one in transitions(plant, "hot")] * 2 + [
        one[-1] for one in transitions(plant, "site")
    ]
    with plant.database.read() as connection:
        told = connection.execute(sa.select(NOTIFICATIONS)).all()
    assert len(told) == len({row.id for row in told}) == states.count("firing") + states.count("resolved")
    database.close()


MEMORIES = {
    "steps": (
        {
            "steps": [
                {"where": "temperature > 80", "severity": "minor"},
                {"where": "temperature > 87", "severity": "critical"},
            ],
            "clear": "temperature < 75",
        },
        Definition([(above_80, None), (lambda row: larger(row, 87), None)], lambda row: smaller(row, 75)),
    ),
    "repeat": (
        {"where": "temperature > 80", "repeat": {"count": 2, "of": 3}},
        Definition([(above_80, None)], repeat=(2, 3)),
    ),
    "clear_after": (
        {"where": "temperature > 80", "clear_after": "4s"},
        Definition([(above_80, None)], clear_after_us=4 * SECOND),
    ),
    "silent": ({"silent": "5s"}, Definition(silent_us=5 * SECOND)),
    "rate": (
        {"where": "rate > 6", "rate": {"of": "temperature", "per": "1s"}},
        Definition([(lambda row: larger(row, 6, "rate"), None)], rate=("temperature", SECOND)),
    ),
    "flap": (
        {"where": "temperature > 80", "flap": {"changes": 2, "within": "6s"}},
        Definition([(above_80, None)], flap=(2, 6 * SECOND)),
    ),
}


@pytest.mark.parametrize("kind", sorted(MEMORIES))
@pytest.mark.parametrize("seed", range(3))
def test_no_memory_is_lost_or_doubled_by_kills_and_failures(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, kind: str, seed: int
) -> None:
    rng = random.Random(seed)
    # The wall clock stands still, so that rows alone move time; so commits are due always, or only with a transition.
    monkeypatch.setattr("headwater.alerts.service._COMMIT_INTERVAL_US", seed % 2)
    words, definition = MEMORIES[kind]
    settings = {"hot": AlarmSettings.model_validate({"on": "telemetry", **words})}
    database = Failing(f"sqlite:///{plant.directory / 'headwater.db'}")
    service = service_of(plant, database, **settings)
    for ts in range(1000, 1060):
        plant.append(
            *(
                {
                    "device": f"d{rng.randrange(6)}",
                    "ts": ts + rng.randrange(-2, 3),
                    "temperature": rng.choice([None, 70.0, 78.0, 85.0, 90.0]),
                }
                for _ in range(rng.randrange(1, 5))
            )
        )
        database.fail = rng.random() < 0.2
        for _ in range(rng.randrange(3)):
            with contextlib.suppress(OSError):
                service.step()
        database.fail = False
        if rng.random() < 0.2:
            service = service_of(plant, database, **settings)
        while rng.random() < 0.5 and service.step():
            pass
    drain(service)
    found = transitions(plant, "hot")
    assert found == expected(all_rows(plant), ["device"], definition)
    assert len(found) > 10
    database.close()


def all_rows(plant: Plant) -> list[dict[str, Any]]:
    reader, rows = plant.log.reader(TELEMETRY.stream, ()), []
    while (batch := reader.read(10_000)) is not None:
        rows += batch.to_pylist()
    return rows


def expected(
    rows: list[dict[str, Any]], key: list[str], definition: Definition, end: int = 0
) -> list[tuple[str, int, int, str]]:
    """What the oracle says about these rows, as `transitions` gives it."""
    oracle = Oracle(definition)
    for row in rows:
        text = json.dumps({name: row[name] for name in key}, separators=(",", ":"))
        oracle.row(text, {**row, "ts": round(row["ts"].timestamp() * SECOND)})
    if end:
        oracle.tick(end)
    found = [(key, partition, offset, state) for key, state, _, partition, offset, _ in oracle.told]
    return sorted(found, key=lambda one: (one[0], one[1], one[2], one[3] != "pending", one[3]))

"""Operators act on alarms, and what is muted is not told, over a real log and database."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from plant import SECOND, TELEMETRY, Plant

from headwater.alarm_settings import AlarmSettings
from headwater.alerts.listing import alarms
from headwater.alerts.muting import MAX_SILENCES, create_silence, end_silence, silences
from headwater.alerts.operators import MAX_ACTIONS, Operators
from headwater.alerts.service import AlarmService
from headwater.database import ALARM_ACTIONS, NOTIFICATIONS, SILENCES
from headwater.errors import AlarmStateError, NotFoundError, RecordError


class Watch:
    """One alarm with two steps of severity, and what operators do with it."""

    def __init__(self, plant: Plant) -> None:
        self.plant = plant
        settings = AlarmSettings.model_validate(
            {
                "on": "telemetry",
                "steps": [
                    {"where": "temperature > 80", "severity": "minor"},
                    {"where": "temperature > 90", "severity": "critical"},
                ],
                "key": ["site", "device"],
                "labels": {"team": "pumps"},
                "notify": ["ops"],
            }
        )
        self.service = AlarmService(
            plant.log, plant.database, {"hot": settings}, {"telemetry": TELEMETRY}, plant.clock
        )
        self.operators = Operators(plant.database)
        self.ts = 0

    def send(self, *temperatures: float, device: str = "d1") -> str:
        """Rows of one device; gives the id of its latest alarm."""
        for temperature in temperatures:
            self.ts += 1
            self.plant.append({"site": "a", "device": device, "ts": self.ts, "temperature": temperature})
        while self.service.step():
            pass
        return str(next(one["id"] for one in alarms(self.plant.database) if one["key"]["device"] == device))

    def told(self) -> list[str]:
        query = sa.select(NOTIFICATIONS.c.id).order_by(NOTIFICATIONS.c.sequence)
        with self.plant.database.read() as connection:
            return [id_.split("-")[1] for id_ in connection.scalars(query)]


@pytest.fixture
def watch(plant: Plant) -> Watch:
    return Watch(plant)


def kinds(alarm: dict[str, Any]) -> list[str]:
    return [entry.get("state") or entry["action"] for entry in alarm["history"]]


def test_every_transition_and_action_is_in_the_history(watch: Watch) -> None:
    id_ = watch.send(85)
    watch.plant.now_us += SECOND
    alarm = watch.operators.acknowledge(id_, "ann", "on my way", watch.plant.now_us)
    assert (alarm["state"], alarm["acknowledged_by"]) == ("acknowledged", "ann")
    assert alarm["labels"] == {
        "site": "a", "device": "d1", "team": "pumps", "alarm": "hot", "severity": "minor",
    }  # fmt: skip
    watch.operators.assign(id_, "ann", "bob", watch.plant.now_us)
    watch.operators.comment(id_, "bob", "a filter", watch.plant.now_us)
    watch.plant.now_us += SECOND
    watch.send(20)
    alarm = watch.operators.detail(id_, watch.plant.now_us)
    assert kinds(alarm) == ["pending", "firing", "acknowledge", "assign", "comment", "resolved"]
    assert alarm["history"][2] == {
        "recorded_at": "2023-11-14T22:13:21Z", "action": "acknowledge", "who": "ann", "detail": "on my way",
    }  # fmt: skip
    assert alarm["history"][-1] == {
        "recorded_at": "2023-11-14T22:13:22Z", "state": "resolved", "at": "1970-01-01T00:00:02Z",
    }  # fmt: skip
    assert (alarm["state"], alarm["assignee"]) == ("resolved", "bob")
    assert watch.operators.assign(id_, "ann", "", watch.plant.now_us)["assignee"] is None


def test_a_higher_severity_takes_the_acknowledgement_back(watch: Watch) -> None:
    id_ = watch.send(85)
    watch.operators.acknowledge(id_, "ann", "", watch.plant.now_us)
    assert [one["id"] for one in alarms(watch.plant.database, state="acknowledged")] == [id_]
    assert alarms(watch.plant.database, state="firing") == []
    watch.send(95)
    [alarm] = alarms(watch.plant.database, state="firing")
    assert (alarm["severity"], alarm["acknowledged_by"]) == ("critical", None)
    watch.operators.acknowledge(id_, "ann", "", watch.plant.now_us)
    watch.send(85)
    assert alarms(watch.plant.database)[0]["state"] == "acknowledged"


def test_a_shelved_key_changes_state_and_is_not_told(watch: Watch) -> None:
    id_ = watch.send(85)
    until = watch.plant.now_us + 60 * SECOND
    alarm = watch.operators.shelve(id_, "ann", until, "cleaning", watch.plant.now_us)
    assert alarm["shelved_until"] == "2023-11-14T22:14:20Z"
    assert alarm["history"][-1]["detail"] == "until 2023-11-14T22:14:20Z: cleaning"
    watch.send(95, device="d2")
    again = watch.send(95, 20, 95)
    assert again != id_
    # Its end is told, as its beginning was; the next one's beginning is not. Another key is told of.
    assert watch.told() == ["firing", "firing", "resolved"]
    assert kinds(watch.operators.detail(again, watch.plant.now_us)) == ["pending", "firing"]
    watch.send(20)
    assert watch.told() == ["firing", "firing", "resolved"]
    watch.operators.unshelve(again, "ann", watch.plant.now_us)
    watch.send(85)
    assert watch.told()[3:] == ["firing"]


def test_a_shelf_ends_by_itself(watch: Watch) -> None:
    id_ = watch.send(85, 20)
    watch.operators.shelve(id_, "ann", watch.plant.now_us + SECOND, "", watch.plant.now_us)
    watch.plant.now_us += SECOND
    assert watch.operators.detail(id_, watch.plant.now_us)["shelved_until"] is None
    watch.send(85)
    assert watch.told() == ["firing", "resolved", "firing"]
    with pytest.raises(AlarmStateError, match="it is not shelved"):
        watch.operators.unshelve(id_, "ann", watch.plant.now_us)


def silence(watch: Watch, *matchers: str, after_s: int = 0, for_s: int = 60) -> dict[str, Any]:
    now_us = watch.plant.now_us
    starts_us = now_us + after_s * SECOND
    return create_silence(
        watch.plant.database, matchers, starts_us, starts_us + for_s * SECOND, "ann", "", now_us
    )


def test_a_silence_mutes_those_that_match_while_it_lasts(watch: Watch) -> None:
    made = silence(watch, "device=d1", "severity!=critical", after_s=10)
    assert made["state"] == "to come"
    watch.send(85, 20)
    watch.plant.now_us += 10 * SECOND
    id_ = watch.send(85)
    assert watch.operators.detail(id_, watch.plant.now_us)["silenced_by"] == [made["id"]]
    watch.send(85, device="d2")
    assert watch.told() == ["firing", "resolved", "firing"]
    watch.send(95)
    assert watch.told()[3:] == ["severity_up"]
    ended = end_silence(watch.plant.database, made["id"], "bob", watch.plant.now_us)
    assert (ended["state"], ended["ended_by"]) == ("over", "bob")
    assert silences(watch.plant.database, watch.plant.now_us) == []
    assert silences(watch.plant.database, watch.plant.now_us, over=True) == [ended]
    watch.send(20, 85)
    assert watch.told()[4:] == ["resolved", "firing"]


def test_wrong_silences_are_refused(watch: Watch) -> None:
    for matchers, for_s in (((), 1), (("x",), 1), (("a=b",), 0), (("a=b",), 400 * 86_400)):
        with pytest.raises(RecordError):
            silence(watch, *matchers, for_s=for_s)
    with pytest.raises(RecordError, match="in the future"):
        silence(watch, "a=b", after_s=-100)
    with pytest.raises(NotFoundError, match="ending silence 'x'"):
        end_silence(watch.plant.database, "x", "ann", 0)


def test_silences_and_actions_are_bounded(watch: Watch) -> None:
    now_us = watch.plant.now_us
    row = {
        "matchers": '["a=b"]',
        "starts_at": now_us,
        "ends_at": now_us + 1,
        "who": "x",
        "comment": "",
        "created_at": 0,
    }
    id_ = watch.send(85)
    action = {"alarm_id": id_, "at": 1, "who": "x", "action": "comment", "detail": "y"}
    with watch.plant.database.begin() as connection:
        connection.execute(sa.insert(SILENCES), [{"id": str(n), **row} for n in range(MAX_SILENCES)])
        connection.execute(sa.insert(ALARM_ACTIONS), [action] * MAX_ACTIONS)
    with pytest.raises(RecordError, match="end one first"):
        silence(watch, "a=b")
    with pytest.raises(AlarmStateError, match="1000 actions"):
        watch.operators.comment(id_, "ann", "one more", now_us)
    watch.plant.now_us += SECOND
    silence(watch, "a=b")


def test_what_makes_no_sense_is_refused(watch: Watch) -> None:
    id_ = watch.send(85, 20)
    operators, now_us = watch.operators, watch.plant.now_us
    with pytest.raises(
        AlarmStateError, match=f"acknowledging alarm {id_}: it is resolved since 1970-01-01T00:00:02Z"
    ):
        operators.acknowledge(id_, "ann", "", now_us)
    with pytest.raises(NotFoundError, match="alarm 'x': no alarm of this id has fired"):
        operators.comment("x", "ann", "y", now_us)
    for text, who in (("", "ann"), ("x" * 4001, "ann"), ("x", ""), ("x", "y" * 129)):
        with pytest.raises(RecordError):
            operators.comment(id_, who, text, now_us)
    with pytest.raises(RecordError, match="within the next 366 days"):
        operators.shelve(id_, "ann", now_us, "", now_us)
    with pytest.raises(RecordError, match="a name has at most"):
        operators.assign(id_, "ann", "y" * 129, now_us)
    assert kinds(operators.detail(id_, now_us)) == ["pending", "firing", "resolved"]

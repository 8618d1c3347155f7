"""Who is told of an alarm, when and how often: routes with escalation, incidents of several alarms, mutes that end."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import sqlalchemy as sa
from plant import SECOND, TELEMETRY, Plant

from headwater.alarm_settings import AlarmSettings
from headwater.alerts import escalation
from headwater.alerts.listing import alarms
from headwater.alerts.muting import create_silence
from headwater.alerts.operators import Operators
from headwater.alerts.routing import Router
from headwater.alerts.service import AlarmService
from headwater.database import ALARM_ESCALATIONS, NOTIFICATIONS
from headwater.errors import ConfigError
from headwater.notify_settings import RouteSettings

CRITICAL = {
    "match": {"severity": "critical"},
    "steps": [
        {"after": "0s", "to": ["ops"]},
        {"after": "15m", "to": ["boss"]},
        {"after": "1h", "to": ["ops", "ceo"]},
    ],
}
REST = {"steps": [{"to": ["desk"]}]}
STEPS = [
    {"where": "temperature > 80", "severity": "minor"},
    {"where": "temperature > 90", "severity": "critical"},
]


def router_of(*routes: dict[str, Any]) -> Router:
    return Router([RouteSettings.model_validate(each) for each in routes])


class Desk:
    """A fleet's alarms, their routes, and what is told to whom."""

    def __init__(self, plant: Plant, *routes: dict[str, Any], **words: Any) -> None:
        self.plant = plant
        settings = AlarmSettings.model_validate(
            {"on": "telemetry", "steps": STEPS, "key": ["site", "device"], **words}
        )
        self.service = AlarmService(
            plant.log,
            plant.database,
            {"hot": settings},
            {"telemetry": TELEMETRY},
            plant.clock,
            router_of(*(routes or (CRITICAL, REST))),
        )
        self.operators = Operators(plant.database)
        self.ts = 0
        self.read = 0

    def send(self, *rows: tuple[str, float], site: str = "a") -> None:
        """Rows (device, temperature), all in one batch."""
        self.ts += 1
        self.plant.append(
            *({"site": site, "device": device, "ts": self.ts, "temperature": t} for device, t in rows)
        )
        while self.service.step():
            pass

    def wait(self, seconds: float) -> None:
        self.plant.now_us += round(seconds * SECOND)
        while escalation.take_due(self.plant.database, self.plant.now_us):
            pass

    def told(self) -> list[str]:
        """Target, device and state of what has been told since the last call."""
        query = sa.select(NOTIFICATIONS).order_by(NOTIFICATIONS.c.sequence)
        with self.plant.database.read() as connection:
            rows = connection.execute(query).all()
        fresh, self.read = rows[self.read :], len(rows)
        bodies = [(row.target, json.loads(row.body)) for row in fresh]
        return [f"{target} {body['key']['device']} {body['state']}" for target, body in bodies]

    def id(self, device: str = "d1") -> str:
        return str(next(one["id"] for one in alarms(self.plant.database) if one["key"]["device"] == device))

    def waiting(self) -> int:
        with self.plant.database.read() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(ALARM_ESCALATIONS)) or 0


# ---- routes


def test_the_first_route_that_matches_counts_unless_it_continues() -> None:
    labels = {"severity": "critical", "site": "hall-3", "alarm": "hot"}
    assert router_of(CRITICAL, REST).plan(labels, []) == [
        (0, ["ops"]), (900 * SECOND, ["boss"]), (3600 * SECOND, ["ceo"]),
    ]  # fmt: skip
    assert router_of(CRITICAL, REST).plan({"severity": "minor"}, ["own"]) == [(0, ["own", "desk"])]
    both = router_of({**CRITICAL, "continue": True}, REST)
    assert both.plan(labels, ["ops"])[0] == (0, ["ops", "desk"])
    assert router_of({"match": ["site=hall-*", "alarm!=hot"], **REST}).plan(labels, []) == []
    assert Router().plan(labels, []) == []


def test_a_wrong_route_is_named() -> None:
    with pytest.raises(ConfigError, match=r"routes\[1\].match: matcher 'Site=x'"):
        router_of(REST, {"match": {"Site": "x"}, **REST})


# ---- escalation


def test_escalation_goes_on_until_it_is_acknowledged(plant: Plant) -> None:
    desk = Desk(plant)
    desk.send(("d1", 95))
    assert desk.told() == ["ops d1 firing"]
    desk.wait(899)
    assert desk.told() == []
    desk.wait(1)
    assert desk.told() == ["boss d1 firing"]
    desk.operators.acknowledge(desk.id(), "ann", "", plant.now_us)
    desk.wait(10_000)
    assert desk.told() == []
    assert desk.waiting() == 0
    desk.send(("d1", 20))
    assert desk.told() == ["ops d1 resolved", "boss d1 resolved"]


def test_being_resolved_ends_escalation_also_in_the_same_batch(plant: Plant) -> None:
    desk = Desk(plant)
    desk.send(("d1", 95))
    desk.send(("d1", 20))
    desk.send(("d1", 95), ("d1", 20), ("d1", 95), ("d1", 20))
    assert desk.told() == ["ops d1 firing", "ops d1 resolved"] * 3
    assert desk.waiting() == 0


def test_a_rise_in_severity_is_routed_anew(plant: Plant) -> None:
    desk = Desk(plant)
    desk.send(("d1", 85))
    assert desk.told() == ["desk d1 firing"]
    desk.operators.acknowledge(desk.id(), "ann", "", plant.now_us)
    desk.send(("d1", 95))
    assert desk.told() == ["ops d1 firing"]
    desk.send(("d1", 85))
    desk.wait(900)
    assert desk.told() == ["boss d1 firing"]
    desk.send(("d1", 20))
    assert desk.told() == ["desk d1 resolved", "ops d1 resolved", "boss d1 resolved"]


def test_steps_survive_a_restart_with_other_routes(plant: Plant) -> None:
    desk = Desk(plant)
    desk.send(("d1", 95))
    again = Desk(plant, REST)
    again.wait(900)
    assert again.told() == ["ops d1 firing", "boss d1 firing"]


def test_a_step_waits_for_the_end_of_a_silence(plant: Plant) -> None:
    desk = Desk(plant)
    create_silence(
        plant.database, ["device=d1"], plant.now_us, plant.now_us + 1800 * SECOND, "ann", "", plant.now_us
    )
    desk.send(("d1", 95), ("d2", 95))
    assert desk.told() == ["ops d2 firing"]
    desk.wait(1000)
    assert desk.told() == ["boss d2 firing"]
    desk.wait(799)
    assert desk.told() == []
    desk.wait(1)
    assert desk.told() == ["ops d1 firing", "boss d1 firing"]
    desk.send(("d1", 20))
    assert desk.told() == ["ops d1 resolved", "boss d1 resolved"]


def test_what_came_and_went_in_silence_is_never_told(plant: Plant) -> None:
    desk = Desk(plant)
    create_silence(
        plant.database, ["device=d1"], plant.now_us, plant.now_us + 1800 * SECOND, "ann", "", plant.now_us
    )
    desk.send(("d1", 95))
    desk.send(("d1", 20))
    desk.wait(10_000)
    assert desk.told() == []


def test_a_shelf_put_up_later_holds_the_next_step(plant: Plant) -> None:
    desk = Desk(plant)
    desk.send(("d1", 95))
    desk.operators.shelve(desk.id(), "ann", plant.now_us + 1000 * SECOND, "", plant.now_us)
    desk.wait(950)
    assert desk.told() == ["ops d1 firing"]
    desk.wait(50)
    assert desk.told() == ["boss d1 firing"]


# ---- incidents


def test_a_group_is_told_once_and_resolved_with_its_last(plant: Plant) -> None:
    desk = Desk(plant, group=["site"])
    for device, temperature in (("d1", 95), ("d2", 95), ("d3", 85)):
        desk.send((device, temperature))
    desk.send(("d9", 95), site="b")
    assert desk.told() == ["ops d1 firing", "ops d9 firing"]
    desk.send(("d2", 20))
    desk.send(("d1", 20))
    assert desk.told() == []
    desk.wait(900)
    assert sorted(desk.told()) == ["boss d3 firing", "boss d9 firing"]
    desk.send(("d4", 95))
    desk.send(("d3", 20))
    desk.send(("d4", 20))
    assert desk.told() == ["ops d4 resolved", "boss d4 resolved"]
    assert len(alarms(plant.database, state="resolved")) == 4


def test_a_dedupe_name_joins_alarms_of_several_kinds(plant: Plant) -> None:
    words = {
        "on": "telemetry",
        "where": "temperature > 80",
        "dedupe": "heat-{site}",
        "key": ["site", "device"],
    }
    first = AlarmSettings.model_validate({**words, "notify": ["ops"]})
    second = first.model_copy(update={"where": "temperature > 70"})
    service = AlarmService(
        plant.log, plant.database, {"a": first, "b": second}, {"telemetry": TELEMETRY}, plant.clock
    )
    for ts, temperature in enumerate((75.0, 85.0, 75.0, 60.0)):
        plant.append({"site": "a", "device": "d1", "ts": ts + 1, "temperature": temperature})
        while service.step():
            pass
    with plant.database.read() as connection:
        bodies = connection.scalars(sa.select(NOTIFICATIONS.c.body).order_by(NOTIFICATIONS.c.sequence)).all()
    told = [(body["alarm"], body["state"], body["dedupe_key"]) for body in map(json.loads, bodies)]
    assert told == [("b", "firing", "heat-a"), ("b", "resolved", "heat-a")]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("group", [[], ["site"]])
def test_every_receiver_hears_of_each_incident_once_and_of_its_end(
    plant: Plant, seed: int, group: list[str]
) -> None:
    """Whatever happens: for each target, messages of an incident are firing (once or more), then one resolved."""
    rng = random.Random(seed)
    desk = Desk(plant, group=group)
    for _ in range(40):
        desk.send(
            *((f"d{rng.randrange(3)}", rng.choice([20.0, 85.0, 95.0])) for _ in range(rng.randrange(1, 4))),
            site=rng.choice("ab"),
        )
        desk.wait(rng.choice([0, 100, 1000]))
        if rng.random() < 0.2 and (open_ := alarms(plant.database, state="firing")):
            id_ = rng.choice(open_)["id"]
            if rng.random() < 0.5:
                desk.operators.acknowledge(id_, "ann", "", plant.now_us)
            else:
                desk.operators.shelve(
                    id_, "ann", plant.now_us + rng.randrange(1, 500) * SECOND, "", plant.now_us
                )
    desk.wait(10_000)
    for site in "ab":
        desk.send(*((f"d{n}", 20.0) for n in range(3)), site=site)
    assert alarms(plant.database, state="firing") == []
    assert desk.waiting() == 0
    heard: dict[tuple[str, str], list[str]] = {}
    query = sa.select(NOTIFICATIONS).order_by(NOTIFICATIONS.c.sequence)
    with plant.database.read() as connection:
        for row in connection.execute(query):
            body = json.loads(row.body)
            heard.setdefault((row.target, body["dedupe_key"]), []).append(body["state"])
    assert len(heard) > 2
    for states in heard.values():
        assert states[0] == "firing"
        assert states[-1] == "resolved"
        assert "resolved resolved" not in " ".join(states)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"group": ["state"]}, "alarms.hot.group: 'state' is no key column; there are site, device"),
        ({"dedupe": "x-{severity}"}, "alarms.hot.dedupe: 'severity' is no label that stays"),
        ({"dedupe": "x-{site"}, "alarms.hot.dedupe: write a text with labels in braces"),
    ],
)
def test_a_wrong_incident_is_named(plant: Plant, words: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Desk(plant, **words)

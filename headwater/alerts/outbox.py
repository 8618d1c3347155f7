"""Who is told of transitions: messages for targets, written in the transaction that holds the transitions.

A muted alarm (shelved, or silenced by a matcher) is not told. Being resolved is told to exactly those targets that
were told of the alarm before, so that no receiver is left with an alarm that never ends, or hears of the end of one
it never had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import sqlalchemy as sa

from headwater.alerts.labels import labels_of
from headwater.alerts.listing import shown
from headwater.alerts.machine import State
from headwater.alerts.muting import Mutes
from headwater.alerts.times import iso
from headwater.alerts.tracker import Transition
from headwater.database import ALARMS, NOTIFICATIONS

#: States whose alarm is told to targets.
TOLD: Final = (State.FIRING, State.SEVERITY_UP, State.FLAPPING, State.RESOLVED)

_BATCH: Final = 500  # keys in one IN list; SQLite takes 32,766 parameters


@dataclass(slots=True)
class _Open:
    """An alarm as it is after the transitions so far; `key` in JSON."""

    body: dict[str, Any]
    key: str
    labels: Mapping[str, str]
    told: list[str]
    changed: bool = False


@dataclass(slots=True)
class Outbox:
    """Collects the messages of one transaction and writes them at its end."""

    connection: sa.Connection
    now_us: int
    _rows: list[dict[str, Any]] = field(default_factory=list)

    def put(self, id_: str, alarm_id: str, target: str, body: Mapping[str, Any]) -> None:
        """One message; `id_` is its idempotency key."""
        self._rows.append(
            {
                "id": id_,
                "alarm_id": alarm_id,
                "target": target,
                "body": orjson.dumps(body).decode(),
                "state": "waiting",
                "attempts": 0,
                "next_at": self.now_us,
                "last_error": None,
            }
        )

    def write(self) -> None:
        last = self.connection.scalar(sa.select(sa.func.max(NOTIFICATIONS.c.sequence))) or 0
        rows = [{**row, "sequence": last + at} for at, row in enumerate(self._rows, 1)]
        if rows:
            self.connection.execute(sa.insert(NOTIFICATIONS), rows)


def announce(
    connection: sa.Connection,
    targets: Sequence[str],
    declared: Mapping[str, str],
    transitions: Sequence[tuple[str, Transition]],
    now_us: int,
) -> None:
    """Puts the messages about these transitions into the outbox.

    targets:     those of the alarm
    declared:    its labels
    transitions: with the alarm's id, in their order; their alarms are in the database as they were before
    """
    alarms = _load(connection, dict.fromkeys(id_ for id_, _ in transitions), targets, declared)
    mutes = Mutes.load(connection, now_us)
    outbox = Outbox(connection, now_us)
    for id_, one in transitions:
        alarm = alarms[id_]
        _enter(alarm, one)
        if one.state is State.RESOLVED:
            told = alarm.told
        elif mutes.until(str(alarm.body["alarm"]), alarm.key, alarm.labels) is not None:
            told = []
        else:
            told = list(targets)
        for target in told:
            outbox.put(f"{id_}-{_name(one)}-{target}", id_, target, alarm.body)
            if target not in alarm.told:
                alarm.told.append(target)
                alarm.changed = True
    outbox.write()
    changed = [
        {"id_": id_, "told_": orjson.dumps(alarm.told).decode()}
        for id_, alarm in alarms.items()
        if alarm.changed
    ]
    if changed:
        update = sa.update(ALARMS).where(ALARMS.c.id == sa.bindparam("id_"))
        connection.execute(update.values(told=sa.bindparam("told_")), changed)


def _load(
    connection: sa.Connection, ids: Mapping[str, None], targets: Sequence[str], declared: Mapping[str, str]
) -> dict[str, _Open]:
    found: dict[str, _Open] = {}
    wanted = list(ids)
    for at in range(0, len(wanted), _BATCH):
        rows = connection.execute(sa.select(ALARMS).where(ALARMS.c.id.in_(wanted[at : at + _BATCH])))
        for row in rows:
            body = shown(row)
            labels = labels_of(row.alarm, row.severity, body["key"], declared)
            # Alarms that fired before this was kept were told to all targets.
            told = list(targets) if row.told is None else orjson.loads(row.told)
            found[row.id] = _Open(body, row.key, labels, told)
    return found


def _enter(alarm: _Open, one: Transition) -> None:
    """The alarm as the message about this transition shows it."""
    body = dict(alarm.body)
    if one.severity is not None:
        body["severity"] = one.severity
        alarm.labels = {**alarm.labels, "severity": one.severity}
    if one.state is State.SEVERITY_UP:
        body |= {"acknowledged_at": None, "acknowledged_by": None}
        body["state"] = "firing" if body["state"] == "acknowledged" else body["state"]
    elif one.state is State.RESOLVED:
        body |= {"state": "resolved", "resolved_at": iso(one.at_us)}
    elif one.state is State.FIRING:
        body["state"] = "firing" if body["acknowledged_at"] is None else "acknowledged"
    elif one.state is State.FLAPPING:
        body["state"] = "flapping"
    alarm.body = body


def _name(one: Transition) -> str:
    """Firing for the first time and being resolved come once; anything else is told apart by its row."""
    if one.state is State.RESOLVED or (one.state is State.FIRING and one.fresh):
        return one.state.value
    return f"{one.state.value}-{one.partition}.{one.offset}"

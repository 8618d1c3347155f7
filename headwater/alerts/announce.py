"""Who is told of transitions, in the transaction that holds them.

Firing is told to the alarm's own targets and by the steps of its routes; a rise in severity is routed anew. A muted
alarm (shelved, or silenced by a matcher) waits until it is no more. Alarms of one group (`group`, `dedupe`) are one
incident: the first that fires is told, and the last that is resolved. Being resolved is told to exactly those
targets that were told of the incident before, so that no receiver is left with an alarm that never ends, or hears
of the end of one it never had.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
import sqlalchemy as sa

from headwater.alerts import escalation
from headwater.alerts.labels import labels_of
from headwater.alerts.listing import shown
from headwater.alerts.machine import State
from headwater.alerts.muting import Mutes
from headwater.alerts.outbox import Outbox, full_body
from headwater.alerts.routing import Router
from headwater.alerts.times import iso
from headwater.alerts.tracker import Transition
from headwater.database import ALARM_ESCALATIONS, ALARMS

#: States of which targets are told.
TOLD: Final = (State.FIRING, State.SEVERITY_UP, State.FLAPPING, State.RESOLVED)

_BATCH: Final = 500  # keys in one IN list; SQLite takes 32,766 parameters


@dataclass(slots=True)
class _Open:
    """An alarm as it is after the transitions so far; `key` in JSON."""

    body: dict[str, Any]
    key: str
    labels: Mapping[str, str]
    dedupe_key: str | None
    told: list[str]
    changed: bool = False


class Announcement:
    """The messages about the transitions of one alarm in one transaction.

    targets:  those that the alarm names itself
    declared: its labels
    """

    def __init__(
        self,
        connection: sa.Connection,
        router: Router,
        targets: Sequence[str],
        declared: Mapping[str, str],
        now_us: int,
    ) -> None:
        self._connection = connection
        self._router = router
        self._targets = targets
        self._declared = declared
        self._now_us = now_us
        self._mutes = Mutes.load(connection, now_us)
        self._outbox = Outbox(connection, now_us)
        self._open: dict[str, _Open] = {}
        #: By incident: ids of its open alarms, in the order in which they fired.
        self._groups: dict[str, dict[str, None]] = {}
        self._later: dict[str, list[dict[str, object]]] = {}
        self._stopped: dict[str, None] = {}

    def tell(self, transitions: Sequence[tuple[str, Transition]]) -> None:
        """transitions: with the alarm's id, in their order; their alarms are in the database as they were before."""
        self._load(dict.fromkeys(id_ for id_, _ in transitions))
        self._load_groups({id_ for id_, one in transitions if one.fresh})
        for id_, one in transitions:
            alarm = self._open[id_]
            _enter(alarm, one)
            if one.state is State.RESOLVED:
                self._resolved(id_, alarm, one)
            elif one.fresh:
                self._fired(id_, alarm, one)
            elif one.state is State.SEVERITY_UP:
                if self._leads(id_, alarm):
                    self._route(id_, alarm, one)
            elif self._muted(alarm) is None:
                self._put(id_, alarm, one, alarm.told)
        self._write()

    def _fired(self, id_: str, alarm: _Open, one: Transition) -> None:
        group = self._group(alarm)
        if group is not None:
            group[id_] = None
            if len(group) > 1:
                return
        self._route(id_, alarm, one)

    def _route(self, id_: str, alarm: _Open, one: Transition) -> None:
        """Takes the step that is due at once, and puts the later ones down."""
        plan = self._router.plan(alarm.labels, self._targets)
        muted = self._muted(alarm)
        self._stopped[id_] = None
        self._later[id_] = escalation.later(id_, plan, self._now_us, muted)
        if plan and plan[0][0] == 0 and muted is None:
            self._put(id_, alarm, one, plan[0][1])

    def _resolved(self, id_: str, alarm: _Open, one: Transition) -> None:
        group = self._group(alarm)
        if group is not None:
            group.pop(id_, None)
            if group:
                self._hand_over(id_, alarm, next(iter(group)))
                return
        self._later.pop(id_, None)
        self._stopped[id_] = None
        self._put(id_, alarm, one, alarm.told)

    def _hand_over(self, id_: str, alarm: _Open, heir: str) -> None:
        """The incident goes on with another alarm, which takes over who has been told and the steps to come."""
        if heir not in self._open:
            self._load({heir: None})
        to = self._open[heir]
        to.told = list(dict.fromkeys([*to.told, *alarm.told]))
        alarm.told, alarm.changed, to.changed = [], True, True
        if id_ in self._later:
            self._later[heir] = [{**row, "alarm_id": heir} for row in self._later.pop(id_)]
            self._stopped[id_] = self._stopped[heir] = None
        elif id_ not in self._stopped:
            mine = ALARM_ESCALATIONS.c.alarm_id == id_
            if self._connection.scalar(sa.select(sa.func.count()).where(mine)):
                escalation.stop(self._connection, [heir])
                self._connection.execute(sa.update(ALARM_ESCALATIONS).where(mine).values(alarm_id=heir))

    def _put(self, id_: str, alarm: _Open, one: Transition, targets: Iterable[str]) -> None:
        body = full_body(alarm.body, alarm.labels, alarm.dedupe_key)
        for target in list(targets):
            self._outbox.put(f"{id_}-{_name(one)}-{target}", id_, target, body)
            if target not in alarm.told:
                alarm.told.append(target)
                alarm.changed = True

    def _write(self) -> None:
        self._outbox.write()
        changed = [
            {"id_": id_, "told_": orjson.dumps(alarm.told).decode()}
            for id_, alarm in self._open.items()
            if alarm.changed
        ]
        if changed:
            update = sa.update(ALARMS).where(ALARMS.c.id == sa.bindparam("id_"))
            self._connection.execute(update.values(told=sa.bindparam("told_")), changed)
        escalation.stop(self._connection, list(self._stopped))
        later = [row for rows in self._later.values() for row in rows]
        if later:
            self._connection.execute(sa.insert(ALARM_ESCALATIONS), later)

    def _muted(self, alarm: _Open) -> int | None:
        return self._mutes.until(str(alarm.body["alarm"]), alarm.key, alarm.labels)

    def _group(self, alarm: _Open) -> dict[str, None] | None:
        return None if alarm.dedupe_key is None else self._groups.setdefault(alarm.dedupe_key, {})

    def _leads(self, id_: str, alarm: _Open) -> bool:
        """Whether this alarm is the one of its incident that is told."""
        group = self._group(alarm)
        return not group or next(iter(group)) == id_

    def _load(self, ids: Mapping[str, None]) -> None:
        wanted = list(ids)
        for at in range(0, len(wanted), _BATCH):
            query = sa.select(ALARMS).where(ALARMS.c.id.in_(wanted[at : at + _BATCH]))
            for row in self._connection.execute(query):
                body = shown(row)
                labels = labels_of(row.alarm, row.severity, body["key"], self._declared)
                # Alarms that fired before this was kept were told to all targets.
                told = list(self._targets) if row.told is None else orjson.loads(row.told)
                self._open[row.id] = _Open(body, row.key, labels, row.dedupe_key, told)

    def _load_groups(self, fresh: set[str]) -> None:
        """Open alarms of the incidents concerned; those that fire in this transaction join in their turn."""
        keys = list({alarm.dedupe_key for alarm in self._open.values() if alarm.dedupe_key is not None})
        for at in range(0, len(keys), _BATCH):
            query = (
                sa.select(ALARMS.c.id, ALARMS.c.dedupe_key)
                .where(ALARMS.c.dedupe_key.in_(keys[at : at + _BATCH]), ALARMS.c.resolved_at.is_(None))
                .order_by(ALARMS.c.fired_at, ALARMS.c.id)
            )
            for row in self._connection.execute(query):
                if row.id not in fresh:
                    self._groups.setdefault(row.dedupe_key, {})[row.id] = None


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

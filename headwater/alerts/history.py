"""What alarms leave in the database, in the caller's transaction: transitions, alarms, memories, and who is to be
told."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import orjson
import sqlalchemy as sa

from headwater.alerts.announce import TOLD, Announcement
from headwater.alerts.conditions import Incident
from headwater.alerts.labels import labels_of
from headwater.alerts.machine import Mark, Memory, Phase, State, from_json, to_json
from headwater.alerts.routing import Router
from headwater.alerts.tracker import Transition
from headwater.database import ALARM_ACTIONS, ALARM_SHELVES, ALARM_STATES, ALARM_TRANSITIONS, ALARMS

#: A row of the log: (partition, offset).
Position = tuple[int, int]

#: Resolved alarms and transitions are kept for so long after they were recorded. Ours.
HISTORY_US: Final = 90 * 86_400 * 1_000_000

#: What `ALARMS.state` says after a transition; severity changes leave it as it is.
_OPEN: Final = {State.FIRING: "firing", State.FLAPPING: "flapping", State.RESOLVED: "resolved"}


NO_ROUTES: Final = Router()


class Alarm(Protocol):
    """What is written of an alarm: one of the configuration, or one about Headwater itself."""

    @property
    def name(self) -> str: ...

    @property
    def severities(self) -> Sequence[str]: ...

    @property
    def labels(self) -> Mapping[str, str]: ...

    @property
    def notify(self) -> Sequence[str]: ...

    @property
    def incident(self) -> Incident | None: ...


def memories(connection: sa.Connection, alarm: Alarm) -> dict[str, Memory]:
    """What is remembered of an alarm's keys, by their key in JSON."""
    rows = connection.execute(sa.select(ALARM_STATES).where(ALARM_STATES.c.alarm == alarm.name))
    return {row.key: _memory(row, alarm.severities) for row in rows}


def save_memories(connection: sa.Connection, alarm: Alarm, changed: Mapping[str, Memory | None]) -> None:
    """Writes what is remembered of these keys from now on; None: nothing."""
    if not changed:
        return
    was = sa.and_(ALARM_STATES.c.alarm == alarm.name, ALARM_STATES.c.key == sa.bindparam("key_"))
    connection.execute(sa.delete(ALARM_STATES).where(was), [{"key_": key} for key in changed])
    rows = []
    for key, memory in changed.items():
        if memory is None:
            continue
        shown = memory.shown or Mark(0, 0, 0)
        rows.append(
            {
                "alarm": alarm.name,
                "key": key,
                "state": memory.state.value,
                "pending_since": shown.at_us,
                "partition": shown.partition,
                "offset": shown.offset,
                "severity": alarm.severities[max(memory.level, 1) - 1],
                "alarm_id": alarm_id(alarm.name, key, shown) if memory.shown else "",
                "memory": None if _is_plain(memory) else to_json(memory),
            }
        )
    if rows:
        connection.execute(sa.insert(ALARM_STATES), rows)


def save(
    connection: sa.Connection,
    alarm: Alarm,
    transitions: Sequence[Transition],
    readings: Mapping[Position, Mapping[str, Any]],
    now_us: int,
    router: Router = NO_ROUTES,
) -> None:
    """Writes transitions in their order, the alarms they fire, change or resolve, and who is to be told.

    readings: the whole row, ready for JSON, of every transition that is fresh and has no reading of its own
    """
    history: list[dict[str, Any]] = []
    told: list[tuple[str, Transition]] = []
    for one in transitions:
        id_ = alarm_id(alarm.name, one.key, one.shown)
        history.append(
            {
                "alarm": alarm.name,
                "key": one.key,
                "partition": one.partition,
                "offset": one.offset,
                "state": one.state.value,
                "alarm_id": id_,
                "at": one.at_us,
                "recorded_at": now_us,
                "severity": one.severity,
            }
        )
        if one.state in TOLD:
            told.append((id_, one))
    if not history:
        return
    connection.execute(sa.insert(ALARM_TRANSITIONS), history)
    fresh = [
        {
            "id": id_,
            "alarm": alarm.name,
            "key": one.key,
            "state": _OPEN[one.state],
            "severity": one.severity or alarm.severities[0],
            "pending_since": one.shown.at_us,
            "fired_at": one.at_us,
            "resolved_at": None,
            "reading": orjson.dumps(
                readings[one.partition, one.offset] if one.reading is None else one.reading
            ).decode(),
            "labels": orjson.dumps(dict(alarm.labels)).decode(),
            "told": "[]",
            "dedupe_key": _incident(alarm, one),
        }
        for id_, one in told
        if one.fresh
    ]
    if fresh:
        connection.execute(sa.insert(ALARMS), fresh)
    if told and (alarm.notify or router):
        Announcement(connection, router, alarm.notify, alarm.labels, now_us).tell(told)
    _change_alarms(connection, alarm, transitions)


def alarm_id(alarm: str, key: str, shown: Mark) -> str:
    """The alarm's name: the same whenever the same rows are judged again."""
    text = f"{alarm}\n{key}\n{shown.partition}\n{shown.offset}"
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def purge(connection: sa.Connection, before_us: int) -> None:
    """Drops transitions recorded before, and resolved alarms none of whose transitions is left."""
    connection.execute(sa.delete(ALARM_TRANSITIONS).where(ALARM_TRANSITIONS.c.recorded_at < before_us))
    left = sa.select(ALARM_TRANSITIONS.c.alarm_id).where(ALARM_TRANSITIONS.c.alarm_id.is_not(None))
    connection.execute(
        sa.delete(ALARMS).where(ALARMS.c.state == State.RESOLVED.value, ALARMS.c.id.not_in(left))
    )
    # A shelf is known by its time alone; one that is over by so long belongs to no alarm that is kept.
    connection.execute(sa.delete(ALARM_SHELVES).where(ALARM_SHELVES.c.until < before_us))
    connection.execute(
        sa.delete(ALARM_ACTIONS).where(ALARM_ACTIONS.c.alarm_id.not_in(sa.select(ALARMS.c.id)))
    )


def _incident(alarm: Alarm, one: Transition) -> str | None:
    if alarm.incident is None:
        return None
    severity = one.severity or alarm.severities[0]
    return alarm.incident.key(labels_of(alarm.name, severity, orjson.loads(one.key), alarm.labels))


def _memory(row: Any, severities: Sequence[str]) -> Memory:
    if row.memory is not None:
        return from_json(row.memory)
    start = Mark(row.pending_since, row.partition, row.offset)
    level = severities.index(row.severity) + 1 if row.severity in severities else 1
    phase = Phase.FIRING if row.state == State.FIRING else Phase.PENDING
    return Memory(phase=phase, level=level, start=start, shown=start)


def _is_plain(memory: Memory) -> bool:
    """Whether the columns beside it say all of this memory."""
    return memory.phase is not Phase.IDLE and memory == Memory(
        phase=memory.phase, level=memory.level, start=memory.shown, shown=memory.shown
    )


def _change_alarms(connection: sa.Connection, alarm: Alarm, transitions: Sequence[Transition]) -> None:
    changes: dict[str, dict[str, Any]] = {}
    for one in transitions:
        values: dict[str, Any] = {}
        if one.state in _OPEN and not one.fresh:
            values["state"] = _OPEN[one.state]
        if one.state is State.RESOLVED:
            values["resolved_at"] = one.at_us
        if one.state is State.SEVERITY_UP:
            # Worse than what was acknowledged.
            values |= {"acknowledged_at": None, "acknowledged_by": None}
        if one.severity is not None and not one.fresh and one.state is not State.PENDING:
            values["severity"] = one.severity
        if values:
            changes.setdefault(alarm_id(alarm.name, one.key, one.shown), {}).update(values)
    by_columns: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for id_, values in changes.items():
        by_columns.setdefault(tuple(sorted(values)), []).append({"id_": id_, **values})
    for columns, rows in by_columns.items():
        update = sa.update(ALARMS).where(ALARMS.c.id == sa.bindparam("id_"))
        connection.execute(
            update.values({name: sa.bindparam(f"new_{name}") for name in columns}),
            [{"id_": row["id_"], **{f"new_{name}": row[name] for name in columns}} for row in rows],
        )

"""Alarms in the database: what a batch's transitions write, in the caller's transaction, and what the API shows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

import orjson
import sqlalchemy as sa

from headwater.alerts.machine import Instance, State
from headwater.alerts.tracker import Transition
from headwater.database import ALARM_STATES, ALARM_TRANSITIONS, ALARMS, NOTIFICATIONS, Database

#: A row of the log: (partition, offset).
Position = tuple[int, int]

#: Resolved alarms and transitions are kept for so long after they were recorded. Ours.
HISTORY_US: Final = 90 * 86_400 * 1_000_000

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_BATCH: Final = 500  # keys in one IN list; SQLite takes 32,766 parameters


class Alarm(Protocol):
    """What is written of an alarm: one of the configuration, or one about Headwater itself."""

    @property
    def name(self) -> str: ...

    @property
    def severity(self) -> str: ...

    @property
    def notify(self) -> Sequence[str]: ...


def alarms(
    database: Database, state: str | None = None, alarm: str | None = None, limit: int = 1000
) -> list[dict[str, Any]]:
    """Alarm instances as the API shows them, the latest first.

    state: `pending`, `firing` or `resolved`; None: all
    gives: `id`, `alarm`, `key` (object), `state`, `severity`, `since` (it became pending), `fired_at`, `resolved_at`
           (ISO 8601 UTC or None), `reading` (the row that fired; None while pending)
    """
    found: list[dict[str, Any]] = []
    with database.read() as connection:
        if state in (None, State.PENDING):
            pending = sa.select(ALARM_STATES).where(ALARM_STATES.c.state == State.PENDING.value)
            if alarm is not None:
                pending = pending.where(ALARM_STATES.c.alarm == alarm)
            for row in connection.execute(pending.order_by(ALARM_STATES.c.pending_since.desc()).limit(limit)):
                found.append(_shown(row, row.alarm_id, None, None, None))
        if state != State.PENDING:
            fired = sa.select(ALARMS)
            if state is not None:
                fired = fired.where(ALARMS.c.state == state)
            if alarm is not None:
                fired = fired.where(ALARMS.c.alarm == alarm)
            for row in connection.execute(fired.order_by(ALARMS.c.pending_since.desc()).limit(limit)):
                found.append(_shown(row, row.id, row.fired_at, row.resolved_at, orjson.loads(row.reading)))
    found.sort(key=lambda shown: (shown["since"], shown["id"]), reverse=True)
    return found[:limit]


def open_instances(connection: sa.Connection, alarm: str) -> dict[str, Instance]:
    """Pending and firing instances of an alarm by their key in JSON."""
    rows = connection.execute(sa.select(ALARM_STATES).where(ALARM_STATES.c.alarm == alarm))
    return {
        row.key: Instance(row.pending_since, row.partition, row.offset, row.state == State.FIRING)
        for row in rows
    }


def save(
    connection: sa.Connection,
    alarm: Alarm,
    transitions: Sequence[Transition],
    readings: Mapping[Position, Mapping[str, Any]],
    now_us: int,
) -> None:
    """Writes transitions in log order, what they leave open, the alarms they fire or resolve, and who is to be told.

    readings: the whole row, ready for JSON, of every transition to firing
    """
    states: dict[str, dict[str, Any]] = {}
    fired: dict[str, dict[str, Any]] = {}
    resolved: list[dict[str, Any]] = []
    told: list[tuple[str, State]] = []
    history: list[dict[str, Any]] = []
    for one in transitions:
        id_, position = alarm_id(alarm.name, one.key, one.instance), (one.partition, one.offset)
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
            }
        )
        states[one.key] = {
            "alarm": alarm.name,
            "key": one.key,
            "state": one.state.value,
            "pending_since": one.instance.since_us,
            "partition": one.instance.partition,
            "offset": one.instance.offset,
            "severity": alarm.severity,
            "alarm_id": id_,
        }
        if one.state is State.FIRING:
            fired[id_] = {
                "id": id_,
                "alarm": alarm.name,
                "key": one.key,
                "state": State.FIRING.value,
                "severity": alarm.severity,
                "pending_since": one.instance.since_us,
                "fired_at": one.at_us,
                "resolved_at": None,
                "reading": orjson.dumps(readings[position]).decode(),
            }
        if one.state is State.RESOLVED:
            resolved.append({"id_": id_, "at": one.at_us})
        if one.state in (State.FIRING, State.RESOLVED):
            told.append((id_, one.state))

    connection.execute(sa.insert(ALARM_TRANSITIONS), history)
    was = sa.and_(ALARM_STATES.c.alarm == alarm.name, ALARM_STATES.c.key == sa.bindparam("key_"))
    connection.execute(sa.delete(ALARM_STATES).where(was), [{"key_": key} for key in states])
    still = [row for row in states.values() if row["state"] in (State.PENDING, State.FIRING)]
    if still:
        connection.execute(sa.insert(ALARM_STATES), still)
    if fired:
        connection.execute(sa.insert(ALARMS), list(fired.values()))
    if resolved:
        update = sa.update(ALARMS).where(ALARMS.c.id == sa.bindparam("id_"))
        connection.execute(
            update.values(state=State.RESOLVED.value, resolved_at=sa.bindparam("at")), resolved
        )
    if alarm.notify and told:
        _notify(connection, alarm.notify, told, now_us)


def alarm_id(alarm: str, key: str, instance: Instance) -> str:
    """The instance's name: the same whenever the same rows are judged again."""
    text = f"{alarm}\n{key}\n{instance.partition}\n{instance.offset}"
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def purge(connection: sa.Connection, before_us: int) -> None:
    """Drops transitions recorded before, and resolved alarms none of whose transitions is left."""
    connection.execute(sa.delete(ALARM_TRANSITIONS).where(ALARM_TRANSITIONS.c.recorded_at < before_us))
    left = sa.select(ALARM_TRANSITIONS.c.alarm_id).where(ALARM_TRANSITIONS.c.alarm_id.is_not(None))
    connection.execute(
        sa.delete(ALARMS).where(ALARMS.c.state == State.RESOLVED.value, ALARMS.c.id.not_in(left))
    )


def iso(at_us: int) -> str:
    """A time as the API writes it: ISO 8601, UTC."""
    return (_EPOCH + timedelta(microseconds=at_us)).isoformat().replace("+00:00", "Z")


def _notify(
    connection: sa.Connection, targets: Sequence[str], told: Sequence[tuple[str, State]], now_us: int
) -> None:
    rows: dict[str, Any] = {}
    ids = list(dict.fromkeys(id_ for id_, _ in told))
    for at in range(0, len(ids), _BATCH):
        for row in connection.execute(sa.select(ALARMS).where(ALARMS.c.id.in_(ids[at : at + _BATCH]))):
            rows[row.id] = row
    sequence = connection.scalar(sa.select(sa.func.max(NOTIFICATIONS.c.sequence))) or 0
    outbox = []
    for id_, state in told:
        row = rows[id_]
        # The alarm may be resolved in the same batch; the first message still says firing.
        resolved_at = row.resolved_at if state is State.RESOLVED else None
        shown = _shown(row, id_, row.fired_at, resolved_at, orjson.loads(row.reading)) | {
            "state": state.value
        }
        for target in targets:
            sequence += 1
            outbox.append(
                {
                    "id": f"{id_}-{state.value}-{target}",
                    "sequence": sequence,
                    "alarm_id": id_,
                    "target": target,
                    "body": orjson.dumps(shown).decode(),
                    "state": "waiting",
                    "attempts": 0,
                    "next_at": now_us,
                    "last_error": None,
                }
            )
    connection.execute(sa.insert(NOTIFICATIONS), outbox)


def _shown(row: Any, id_: str, fired_at: int | None, resolved_at: int | None, reading: Any) -> dict[str, Any]:
    return {
        "id": id_,
        "alarm": row.alarm,
        "key": orjson.loads(row.key),
        "state": row.state,
        "severity": row.severity,
        "since": iso(row.pending_since),
        "fired_at": None if fired_at is None else iso(fired_at),
        "resolved_at": None if resolved_at is None else iso(resolved_at),
        "reading": reading,
    }

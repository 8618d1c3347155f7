"""What alarms leave in the database, in the caller's transaction: transitions, alarms, memories, and who is to be told."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

import orjson
import sqlalchemy as sa

from headwater.alerts.machine import Mark, Memory, Phase, State, from_json, to_json
from headwater.alerts.tracker import Transition
from headwater.database import ALARM_STATES, ALARM_TRANSITIONS, ALARMS, NOTIFICATIONS

#: A row of the log: (partition, offset).
Position = tuple[int, int]

#: Resolved alarms and transitions are kept for so long after they were recorded. Ours.
HISTORY_US: Final = 90 * 86_400 * 1_000_000

#: States whose alarm is told to targets.
_TOLD: Final = (State.FIRING, State.SEVERITY_UP, State.FLAPPING, State.RESOLVED)
#: What `ALARMS.state` says after a transition; severity changes leave it as it is.
_OPEN: Final = {State.FIRING: "firing", State.FLAPPING: "flapping", State.RESOLVED: "resolved"}

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_BATCH: Final = 500  # keys in one IN list; SQLite takes 32,766 parameters


class Alarm(Protocol):
    """What is written of an alarm: one of the configuration, or one about Headwater itself."""

    @property
    def name(self) -> str: ...

    @property
    def severities(self) -> Sequence[str]: ...

    @property
    def notify(self) -> Sequence[str]: ...


def memories(connection: sa.Connection, alarm: Alarm) -> dict[str, Memory]:
    """What is remembered of an alarm's keys, by their key in JSON."""
    rows = connection.execute(sa.select(ALARM_STATES).where(ALARM_STATES.c.alarm == alarm.name))
    return {row.key: _memory(row, alarm.severities) for row in rows}


def save_memories(
    connection: sa.Connection, alarm: Alarm, changed: Mapping[str, Memory | None]
) -> None:
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
        if one.state in _TOLD:
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
        }
        for id_, one in told
        if one.fresh
    ]
    if fresh:
        connection.execute(sa.insert(ALARMS), fresh)
    # What the messages say is each alarm as it was with its transition, though later ones may be in the same batch.
    bodies = _bodies(connection, told) if alarm.notify and told else []
    _change_alarms(connection, alarm, transitions)
    if bodies:
        _notify(connection, alarm.notify, bodies, now_us)


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


def iso(at_us: int) -> str:
    """A time as the API writes it: ISO 8601, UTC."""
    return (_EPOCH + timedelta(microseconds=at_us)).isoformat().replace("+00:00", "Z")


def shown(row: Any) -> dict[str, Any]:
    """A row of `alarms` as the API shows it."""
    return {
        "id": row.id,
        "alarm": row.alarm,
        "key": orjson.loads(row.key),
        "state": row.state,
        "severity": row.severity,
        "since": iso(row.pending_since),
        "fired_at": iso(row.fired_at),
        "resolved_at": None if row.resolved_at is None else iso(row.resolved_at),
        "reading": orjson.loads(row.reading),
    }


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


def _bodies(
    connection: sa.Connection, told: Sequence[tuple[str, Transition]]
) -> list[tuple[str, dict[str, Any]]]:
    """Name and body of the message about each transition."""
    rows: dict[str, dict[str, Any]] = {}
    ids = list(dict.fromkeys(id_ for id_, _ in told))
    for at in range(0, len(ids), _BATCH):
        for row in connection.execute(sa.select(ALARMS).where(ALARMS.c.id.in_(ids[at : at + _BATCH]))):
            rows[row.id] = shown(row)
    found = []
    for id_, one in told:
        alarm = rows[id_]
        if one.state in _OPEN:
            alarm["state"] = _OPEN[one.state]
        if one.severity is not None:
            alarm["severity"] = one.severity
        if one.state is State.RESOLVED:
            alarm["resolved_at"] = iso(one.at_us)
        # Firing for the first time and being resolved come once; anything else is told apart by its row.
        name = f"{id_}-{one.state.value}"
        if not (one.state is State.RESOLVED or (one.state is State.FIRING and one.fresh)):
            name += f"-{one.partition}.{one.offset}"
        found.append((name, dict(alarm)))
    return found


def _notify(
    connection: sa.Connection,
    targets: Sequence[str],
    bodies: Sequence[tuple[str, dict[str, Any]]],
    now_us: int,
) -> None:
    sequence = connection.scalar(sa.select(sa.func.max(NOTIFICATIONS.c.sequence))) or 0
    outbox = []
    for name, body in bodies:
        for target in targets:
            sequence += 1
            outbox.append(
                {
                    "id": f"{name}-{target}",
                    "sequence": sequence,
                    "alarm_id": body["id"],
                    "target": target,
                    "body": orjson.dumps(body).decode(),
                    "state": "waiting",
                    "attempts": 0,
                    "next_at": now_us,
                    "last_error": None,
                }
            )
    connection.execute(sa.insert(NOTIFICATIONS), outbox)

"""Alarms as the API shows them."""

from __future__ import annotations

from typing import Any, Final

import orjson
import sqlalchemy as sa

from headwater.alerts.machine import State
from headwater.alerts.times import iso
from headwater.database import ALARM_STATES, ALARMS, Database

#: What `state` may ask for.
STATES: Final = ("pending", "firing", "acknowledged", "flapping", "resolved")


def alarms(
    database: Database, state: str | None = None, alarm: str | None = None, limit: int = 1000
) -> list[dict[str, Any]]:
    """Alarm instances, the latest first.

    state: one of STATES; None: all
    gives: `id`, `alarm`, `key` (object), `state`, `severity`, `since` (it became pending), `fired_at`, `resolved_at`
           (ISO 8601 UTC or None), `reading` (the row that fired; None while pending), `acknowledged_at`,
           `acknowledged_by`, `assignee`
    """
    found: list[dict[str, Any]] = []
    with database.read() as connection:
        if state in (None, State.PENDING):
            pending = sa.select(ALARM_STATES).where(ALARM_STATES.c.state == State.PENDING.value)
            if alarm is not None:
                pending = pending.where(ALARM_STATES.c.alarm == alarm)
            rows = connection.execute(pending.order_by(ALARM_STATES.c.pending_since.desc()).limit(limit))
            found += [_pending(row) for row in rows]
        if state != State.PENDING:
            fired = sa.select(ALARMS)
            if state in ("firing", "acknowledged"):
                acknowledged = ALARMS.c.acknowledged_at.is_not(None)
                fired = fired.where(
                    ALARMS.c.state == "firing", acknowledged if state != "firing" else ~acknowledged
                )
            elif state is not None:
                fired = fired.where(ALARMS.c.state == state)
            if alarm is not None:
                fired = fired.where(ALARMS.c.alarm == alarm)
            rows = connection.execute(fired.order_by(ALARMS.c.pending_since.desc()).limit(limit))
            found += [shown(row) for row in rows]
    found.sort(key=lambda each: (each["since"], each["id"]), reverse=True)
    return found[:limit]


def shown(row: Any) -> dict[str, Any]:
    """A row of `alarms` as the API shows it."""
    state = row.state
    if state == State.FIRING and row.acknowledged_at is not None:
        state = "acknowledged"
    return {
        "id": row.id,
        "alarm": row.alarm,
        "key": orjson.loads(row.key),
        "state": state,
        "severity": row.severity,
        "since": iso(row.pending_since),
        "fired_at": iso(row.fired_at),
        "resolved_at": None if row.resolved_at is None else iso(row.resolved_at),
        "reading": orjson.loads(row.reading),
        "acknowledged_at": None if row.acknowledged_at is None else iso(row.acknowledged_at),
        "acknowledged_by": row.acknowledged_by,
        "assignee": row.assignee,
    }


def _pending(row: Any) -> dict[str, Any]:
    return {
        "id": row.alarm_id,
        "alarm": row.alarm,
        "key": orjson.loads(row.key),
        "state": row.state,
        "severity": row.severity,
        "since": iso(row.pending_since),
        "fired_at": None,
        "resolved_at": None,
        "reading": None,
        "acknowledged_at": None,
        "acknowledged_by": None,
        "assignee": None,
    }

"""Alarms as the API shows them."""

from __future__ import annotations

from typing import Any, Final

import orjson
import sqlalchemy as sa

from headwater.alerts.history import iso, shown
from headwater.alerts.machine import State
from headwater.database import ALARM_STATES, ALARMS, Database

#: What `state` may ask for.
STATES: Final = ("pending", "firing", "flapping", "resolved")


def alarms(
    database: Database, state: str | None = None, alarm: str | None = None, limit: int = 1000
) -> list[dict[str, Any]]:
    """Alarm instances, the latest first.

    state: one of STATES; None: all
    gives: `id`, `alarm`, `key` (object), `state`, `severity`, `since` (it became pending), `fired_at`, `resolved_at`
           (ISO 8601 UTC or None), `reading` (the row that fired; None while pending)
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
            if state is not None:
                fired = fired.where(ALARMS.c.state == state)
            if alarm is not None:
                fired = fired.where(ALARMS.c.alarm == alarm)
            rows = connection.execute(fired.order_by(ALARMS.c.pending_since.desc()).limit(limit))
            found += [shown(row) for row in rows]
    found.sort(key=lambda each: (each["since"], each["id"]), reverse=True)
    return found[:limit]


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
    }

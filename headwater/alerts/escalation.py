"""Steps of routes that come later: rows that wait for their time, and what becomes of them then.

A step is taken in one transaction with its row, so each is taken once. It is dropped when the alarm was
acknowledged or resolved, and waits while the alarm is muted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import orjson
import sqlalchemy as sa

from headwater.alerts.labels import row_labels
from headwater.alerts.listing import shown
from headwater.alerts.muting import Mutes
from headwater.alerts.outbox import Outbox, full_body
from headwater.alerts.routing import Plan
from headwater.database import ALARM_ESCALATIONS, ALARMS, Database

#: Steps taken in one transaction.
_BATCH: Final = 200


def later(alarm_id: str, plan: Plan, now_us: int, muted_until_us: int | None) -> list[dict[str, object]]:
    """Rows for the steps of a plan that are not taken at once."""
    rows = []
    for number, (after_us, targets) in enumerate(plan):
        due_us = max(now_us + after_us, muted_until_us or 0)
        if due_us > now_us:
            rows.append(
                {
                    "alarm_id": alarm_id,
                    "number": number,
                    "due_at": due_us,
                    "targets": orjson.dumps(targets).decode(),
                }
            )
    return rows


def stop(connection: sa.Connection, alarm_ids: Sequence[str]) -> None:
    """These alarms are told to nobody further."""
    ids = list(alarm_ids)
    for at in range(0, len(ids), 500):
        connection.execute(
            sa.delete(ALARM_ESCALATIONS).where(ALARM_ESCALATIONS.c.alarm_id.in_(ids[at : at + 500]))
        )


def take_due(database: Database, now_us: int) -> bool:
    """Takes the steps that are due; True where there were some."""
    due = sa.select(ALARM_ESCALATIONS).where(ALARM_ESCALATIONS.c.due_at <= now_us)
    due = due.order_by(ALARM_ESCALATIONS.c.due_at).limit(_BATCH)
    with database.read() as connection:
        if connection.execute(due.limit(1)).first() is None:
            return False
    with database.begin() as connection:
        rows = connection.execute(due).all()
        mutes, outbox = Mutes.load(connection, now_us), Outbox(connection, now_us)
        for row in rows:
            mine = sa.and_(
                ALARM_ESCALATIONS.c.alarm_id == row.alarm_id, ALARM_ESCALATIONS.c.number == row.number
            )
            alarm = connection.execute(sa.select(ALARMS).where(ALARMS.c.id == row.alarm_id)).first()
            if alarm is not None and alarm.resolved_at is None and alarm.acknowledged_at is None:
                labels = row_labels(alarm)
                muted = mutes.until(alarm.alarm, alarm.key, labels)
                if muted is not None:
                    connection.execute(sa.update(ALARM_ESCALATIONS).where(mine).values(due_at=muted))
                    continue
                told = orjson.loads(alarm.told or "[]")
                targets = orjson.loads(row.targets)
                body = full_body(shown(alarm), labels, alarm.dedupe_key) | {"escalation": row.number}
                for target in targets:
                    name = f"{alarm.id}-escalation-{row.number}.{row.due_at}-{target}"
                    outbox.put(name, alarm.id, target, body)
                told = list(dict.fromkeys([*told, *targets]))
                connection.execute(
                    sa.update(ALARMS).where(ALARMS.c.id == alarm.id).values(told=orjson.dumps(told).decode())
                )
            connection.execute(sa.delete(ALARM_ESCALATIONS).where(mine))
        outbox.write()
    return True

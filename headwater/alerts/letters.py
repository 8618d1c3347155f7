"""Notifications in the outbox: listed, and the dead ones sent again."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import orjson
import sqlalchemy as sa

from headwater.alerts.times import iso
from headwater.database import NOTIFICATIONS, Database


def notifications(
    database: Database, state: str | None = None, target: str | None = None, limit: int = 100
) -> list[dict[str, Any]]:
    """Notifications, the latest first: those that wait, and those that were sent or are dead, of the last 7 days.

    gives: `notification` (its idempotency key), `target`, `state` (waiting, sent, dead), `attempts`, `error` (of the
           last try), `created_at`, `changed_at` (of one that waits: its next try), `digest` (the message it was sent
           in), `alarm` (the body)
    """
    query = sa.select(NOTIFICATIONS).order_by(NOTIFICATIONS.c.sequence.desc()).limit(limit)
    if state is not None:
        query = query.where(NOTIFICATIONS.c.state == state)
    if target is not None:
        query = query.where(NOTIFICATIONS.c.target == target)
    with database.read() as connection:
        return [
            {
                "notification": row.id,
                "target": row.target,
                "state": row.state,
                "attempts": row.attempts,
                "error": row.last_error,
                "created_at": None if row.created_at is None else iso(row.created_at),
                "changed_at": iso(row.next_at),
                "digest": row.digest,
                "alarm": orjson.loads(row.body),
            }
            for row in connection.execute(query)
        ]


def replay(
    database: Database,
    configured: Collection[str],
    now_us: int,
    target: str | None = None,
    notification: str | None = None,
) -> int:
    """Lets dead notifications wait again, behind what waits already, with the same idempotency keys.

    configured: only notifications for these targets; for others they would be dead again
    gives:      how many
    """
    dead = sa.select(NOTIFICATIONS.c.id).where(
        NOTIFICATIONS.c.state == "dead", NOTIFICATIONS.c.target.in_(list(configured))
    )
    if target is not None:
        dead = dead.where(NOTIFICATIONS.c.target == target)
    if notification is not None:
        dead = dead.where(NOTIFICATIONS.c.id == notification)
    with database.begin() as connection:
        ids = connection.scalars(dead.order_by(NOTIFICATIONS.c.sequence)).all()
        last = connection.scalar(sa.select(sa.func.max(NOTIFICATIONS.c.sequence))) or 0
        rows = [{"id_": id_, "sequence_": last + at} for at, id_ in enumerate(ids, 1)]
        if rows:
            again = sa.update(NOTIFICATIONS).where(NOTIFICATIONS.c.id == sa.bindparam("id_"))
            connection.execute(
                again.values(
                    state="waiting",
                    attempts=0,
                    next_at=now_us,
                    digest=None,
                    sequence=sa.bindparam("sequence_"),
                ),
                rows,
            )
    return len(ids)

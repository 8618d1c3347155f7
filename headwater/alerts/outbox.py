"""Messages for targets, written in the transaction that holds what they tell of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import sqlalchemy as sa

from headwater.database import NOTIFICATIONS


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
                "created_at": self.now_us,
                "next_at": self.now_us,
                "last_error": None,
            }
        )

    def write(self) -> None:
        last = self.connection.scalar(sa.select(sa.func.max(NOTIFICATIONS.c.sequence))) or 0
        rows = [{**row, "sequence": last + at} for at, row in enumerate(self._rows, 1)]
        if rows:
            self.connection.execute(sa.insert(NOTIFICATIONS), rows)


def full_body(alarm: Mapping[str, Any], labels: Mapping[str, str], dedupe_key: str | None) -> dict[str, Any]:
    """What a message says: the alarm as the API shows it, its labels, and what names its incident to a receiver.

    dedupe_key: of a group; None: each key of each alarm is an incident of its own
    """
    own = f"{alarm['alarm']}:{orjson.dumps(alarm['key'], option=orjson.OPT_SORT_KEYS).decode()}"
    return {**alarm, "labels": dict(labels), "dedupe_key": own if dedupe_key is None else dedupe_key}

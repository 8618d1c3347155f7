"""The books: what came in must be what is accounted for. Both equations are computed from independent counts.

Messages: received = decoded + raw only + live only + dead-lettered + shed + refused + in flight, counted by the
gateway since its start. Rows, per stream and over restarts: decoded (end of the log, and duplicates since the start) =
stored ever (rows of the table's files) + duplicates + in flight (rows the store holds in memory or has not read yet).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from headwater.api.parts import Parts
from headwater.records import DEAD_LETTERS_SCHEMA, REPLAYS_SCHEMA

#: Terms of the right side of the equation of messages.
OUTCOMES = ("decoded", "raw_only", "live_only", "dead_lettered", "shed", "refused", "in_flight")


def books(parts: Parts) -> dict[str, Any]:
    """Both equations with their terms and whether they hold.

    returns: {"messages": {...}, "rows": {stream: {...}}, "balanced": bool}
    """
    counters = parts.gateway.counters()
    messages: dict[str, Any] = {"received": counters["received"]}
    messages |= {outcome: counters[outcome] for outcome in OUTCOMES}
    messages["balanced"] = counters["received"] == sum(counters[outcome] for outcome in OUTCOMES)
    rows = {}
    if parts.store is not None:
        for schema in [*parts.schemas.values(), DEAD_LETTERS_SCHEMA, REPLAYS_SCHEMA]:
            account = parts.store.account(schema.name)
            rows[schema.name] = {**asdict(account), "balanced": account.balanced}
    balanced = messages["balanced"] and all(stream["balanced"] for stream in rows.values())
    return {"messages": messages, "rows": rows, "balanced": balanced}

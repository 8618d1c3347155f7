"""The books: what came in must be what is accounted for. Both equations are computed from independent counts.

Messages: received = decoded + raw only + live only + dead-lettered + shed + refused + in flight, counted by the
gateway since its start. Rows, per stream and over restarts: decoded (end of the log, and duplicates since the start) =
stored ever (rows of the table's files) + duplicates + in flight (rows the store holds in memory or has not read yet).
Rows of a stream whose setting `books` names captured levels, per value: the ledger's count = stored + in flight.
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

    returns: {"messages": {...}, "rows": {stream: {..., "levels": {level: {value: {...}}}}}, "balanced": bool}
    """
    counters = parts.gateway.counters()
    messages: dict[str, Any] = {"received": counters["received"]}
    messages |= {outcome: counters[outcome] for outcome in OUTCOMES}
    messages["balanced"] = counters["received"] == sum(counters[outcome] for outcome in OUTCOMES)
    rows = {}
    if parts.store is not None:
        for schema in [*parts.schemas.all(), DEAD_LETTERS_SCHEMA, REPLAYS_SCHEMA]:
            account = parts.store.account(schema.name)
            rows[schema.name] = {**asdict(account), "balanced": account.balanced, "levels": {}}
            if parts.ledger is not None and (levels := parts.ledger.accounts(schema.name)):
                rows[schema.name]["levels"] = {
                    level: {
                        value: {**asdict(each), "balanced": each.balanced} for value, each in found.items()
                    }
                    for level, found in levels.items()
                }
    balanced = messages["balanced"] and all(
        terms["balanced"] for stream in rows.values() for terms in (stream, *each_level(stream).values())
    )
    return {"messages": messages, "rows": rows, "balanced": balanced}


def each_level(stream: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """By level and value, the terms of a stream's books."""
    return {
        (level, value): terms for level, found in stream["levels"].items() for value, terms in found.items()
    }

"""Clients over HTTP: who is connected, what waits for one, why its messages are not where they are expected."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from headwater.api.parts import Parts
from headwater.errors import NotFoundError
from headwater.gateway.letters import Filter

#: What helps, by reason of the dead letter; other reasons are about a format: see `_WRONG_FORMAT`.
_REMEDIES: Final = {
    "empty-payload": "the device sends nothing on a stream's topic; send a reading, or use another topic",
    "invalid-utf8": "the device sends bytes that are no text; set the stream's format to what it sends",
    "not-an-object": "send an object per reading, or an array of objects; a bare number has no field's name",
    "too-deep": "send flatter payloads",
    "too-large": "send fewer readings in one message",
    "type-conflict": "declare the field with the type that is sent, under another name if it has had readings",
    "number-out-of-range": "declare the field as double, or send numbers in its range",
    "invalid-time": "send ISO 8601 or a number, or let the stream's time name another field",
    "time-out-of-range": "state the unit of the stream's time, or correct the device's clock",
}
_WRONG_FORMAT: Final = "the payload is not of the stream's format; set the format to what the device sends"

_FINE: Final = (
    "Nothing went wrong with this client since the start, and it has no dead letters: what it got acknowledged on a"
    " stream's topic is stored."
)
_UNKNOWN: Final = (
    "No client of this id is connected or has a session, and nothing is known of one since the start: look for its"
    " CONNECT (address, port, network) or for another client id."
)


def router(parts: Parts) -> APIRouter:
    """Routes about clients."""
    routes = APIRouter(tags=["clients"])

    @routes.get("/api/v1/clients/{client:path}/why", summary="Why a client's messages were not stored")
    async def why(client: str) -> dict[str, Any]:
        """All that is known, and `answer` in sentences: most likely cause first.

        `connected`; `events` since the start, newest first (refusals, disconnects, messages not accepted);
        `dead_letters` by stream and reason, of all time, with the latest one and a remedy; `unmatched` topics that
        name the client.
        """
        return await run_in_threadpool(explain, parts, client)

    @routes.get("/api/v1/clients", summary="Clients that are connected or have a session")
    async def clients(
        search: str = "",
        connected: bool | None = None,
        after: Annotated[int, Query(ge=0, lt=1 << 63)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """`clients` in no particular order and `next`, the `after` of the next page, null on the last one.

        `search` is the beginning of the client id, or a pattern with `*` and `?`. Who comes or goes between two pages
        may be missing or be there twice.
        """
        found, following = await run_in_threadpool(parts.gateway.clients, search, connected, after, limit)
        return {"clients": [_timed(each) for each in found], "next": following}

    @routes.get("/api/v1/clients/{client:path}", summary="One client")
    async def detail(client: str) -> dict[str, Any]:
        """Its connection, session, subscriptions and what waits for it; `last_close`, how its last connection ended,
        and `events`, its last troubles, newest first."""
        return await run_in_threadpool(describe, parts, client)

    @routes.delete("/api/v1/clients/{client:path}", summary="End a client's connection")
    async def kick(client: str, session: bool = False) -> dict[str, str]:
        """Ends the connection with 0x98 (MQTT 3.1.1: closes it); its will is published. `session`: ends its session
        too, also when it is away. `ended` tells which it was."""
        ended = await run_in_threadpool(parts.gateway.kick, client, session)
        if ended == "unknown":
            raise NotFoundError(f"client {client!r}: it is not connected and has no session")
        if ended == "away":
            raise NotFoundError(
                f"client {client!r}: it is not connected; session=true ends the session that waits for it"
            )
        return {"client": client, "ended": ended}

    return routes


def describe(parts: Parts, client: str) -> dict[str, Any]:
    """See the route. raises: NotFoundError"""
    found, close, events = (
        parts.gateway.client(client),
        parts.gateway.last_close(client),
        parts.troubles.of(client),
    )
    if found is None and close is None and not events:
        raise NotFoundError(
            f"client {client!r}: it is not connected, has no session, and nothing is known of it"
        )
    known = _timed(found) if found is not None else {"client": client, "connected": False}
    last = None if close is None else {"at": _iso(close[0]), "reason": close[1]}
    return {**known, "last_close": last, "events": events}


def _timed(client: dict[str, Any]) -> dict[str, Any]:
    return {
        ("connected_at" if key == "connected_at_ms" else key): (
            _iso(value) if key == "connected_at_ms" and value is not None else value
        )
        for key, value in client.items()
    }


def _iso(at_ms: int) -> str:
    return dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC).isoformat(timespec="milliseconds")


def explain(parts: Parts, client: str) -> dict[str, Any]:
    """See the route."""
    connected, events = parts.gateway.connected(client), parts.troubles.of(client)
    letters = _dead_letters(parts, client)
    unmatched = [
        {"topic": each["topic"], "count": each["count"], "suggestion": each["suggestion"]}
        for each in parts.gateway.unmatched()
        if client in each["topic"].split("/")
    ]
    answer = [_of_letters(each) for each in letters if each["n"] > each["replayed"]]
    answer += [_of_topic(each) for each in unmatched]
    if events:
        last = events[0]
        answer.append(f"The last trouble was {last['kind']} ({last['reason']}): {last['detail']}.")
    if not answer:
        answer.append(_FINE if connected else _UNKNOWN)
    return {
        "client": client,
        "connected": connected,
        "answer": answer,
        "dead_letters": letters,
        "unmatched": unmatched,
        "events": events,
    }


def _of_letters(each: dict[str, Any]) -> str:
    return (
        f"{each['n'] - each['replayed']} messages for stream {each['stream']} are dead letters ({each['reason']}), the"
        f" latest at {each['latest']} on {each['topic']}: {each['detail']}. Remedy: {each['remedy']}; then"
        " `headwater deadletters replay` stores them."
    )


def _of_topic(each: dict[str, Any]) -> str:
    return (
        f"{each['count']} messages on {each['topic']} matched no stream, so only live subscribers got them; declare a"
        " stream for the topic (`headwater streams unmatched` suggests one)."
    )


def _dead_letters(parts: Parts, client: str) -> list[dict[str, Any]]:
    if parts.letters is None:
        return []
    found = []
    for each in parts.letters.count(Filter(client=client)):
        wanted = Filter(stream=each["stream"], client=client, reason=each["reason"])
        [latest] = parts.letters.find(wanted, 1)
        found.append(
            {
                **each,
                "latest": latest["ts"].isoformat(),
                "topic": latest["topic"],
                "detail": latest["detail"],
                "remedy": _REMEDIES.get(each["reason"], _WRONG_FORMAT),
            }
        )
    return found

"""One client over HTTP: why its messages are not where they are expected."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from headwater.api.parts import Parts
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

    return routes


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

"""Dead letters over HTTP: found, counted, replayed."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import AwareDatetime
from starlette.concurrency import run_in_threadpool

from headwater.api.parts import Parts
from headwater.errors import NotFoundError
from headwater.gateway.letters import Filter, Letters


def _wanted(
    stream: str | None = None,
    client: str | None = None,
    reason: str | None = None,
    topic: Annotated[str | None, Query(description="MQTT topic filter")] = None,
    since: Annotated[AwareDatetime | None, Query(description="time of arrival, ISO 8601")] = None,
    until: Annotated[AwareDatetime | None, Query(description="time of arrival, ISO 8601")] = None,
    replayed: bool | None = None,
) -> Filter:
    """The filters that all routes here share."""
    return Filter(stream, client, reason, topic, _micros(since), _micros(until), replayed)


Wanted = Annotated[Filter, Depends(_wanted)]


def router(parts: Parts) -> APIRouter:
    """Routes about dead letters."""
    routes = APIRouter(tags=["dead letters"])

    @routes.get("/api/v1/deadletters", summary="Payloads that could not be decoded")
    async def deadletters(
        request: Request,
        wanted: Wanted,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
        skip: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        """Newest first: time of arrival, stream, topic, client, reason, detail, payload (base64), id, replayed.

        The header `Link` names the next page while there is one; give `until` so that pages stay where they are.
        """
        # One more than asked for tells whether there is another page.
        rows = await run_in_threadpool(_letters(parts).find, wanted, limit + 1, skip)
        headers = {}
        if len(rows) > limit:
            rows.pop()
            following = request.url.include_query_params(skip=skip + limit)
            headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
        for row in rows:
            row["payload"] = base64.b64encode(row["payload"]).decode()
        return Response(orjson.dumps(rows), media_type="application/json", headers=headers)

    @routes.get("/api/v1/deadletters/count", summary="Dead letters by stream and reason")
    async def counts(wanted: Wanted) -> list[dict[str, Any]]:
        """Over everything kept: `stream`, `reason`, `n`, and how many of them were `replayed`."""
        return await run_in_threadpool(_letters(parts).count, wanted)

    @routes.post("/api/v1/deadletters/replay", summary="Decode dead letters again")
    async def replay(wanted: Wanted) -> dict[str, Any]:
        """Decodes by today's settings what was not replayed, and stores it, each letter once; answered once durable.

        What cannot be decoded still stays a dead letter and is told in `refused`.
        """
        done = await run_in_threadpool(_letters(parts).replay, wanted)
        refused = [
            {"stream": stream, "reason": reason, "n": n, "example": done.examples[stream, reason]}
            for (stream, reason), n in done.refused.most_common()
        ]
        return {"replayed": done.letters, "readings": done.readings, "refused": refused}

    return routes


def _letters(parts: Parts) -> Letters:
    if parts.letters is None:
        raise NotFoundError("dead letters: pipeline.enabled is false, so there are no tables")
    return parts.letters


def _micros(time: datetime | None) -> int | None:
    return None if time is None else round(time.timestamp() * 1e6)

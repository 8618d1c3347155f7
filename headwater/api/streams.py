"""Streams and what did not fit them: tables, unmatched topics, dead letters."""

from __future__ import annotations

import base64
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Response
from starlette.concurrency import run_in_threadpool

from headwater.api.parts import Parts
from headwater.errors import NotFoundError


def router(parts: Parts) -> APIRouter:
    """Routes about streams."""
    routes = APIRouter(tags=["streams"])

    @routes.get("/api/v1/streams", summary="Streams and query results with their columns")
    def streams() -> list[dict[str, Any]]:
        """Every table: kind, columns, key, offsets at the durable end of the log."""
        return [
            {
                "name": schema.name,
                "kind": "stream" if schema.name in parts.settings.streams else "query",
                "topic": parts.settings.streams[schema.name].topic
                if schema.name in parts.settings.streams
                else None,
                "key": schema.key,
                "columns": [{"name": column.name, "type": column.type.value} for column in schema.columns],
                "offsets": list(parts.log.end(schema.stream)),
            }
            for schema in parts.schemas.values()
        ]

    @routes.get("/api/v1/streams/unmatched", summary="Topics that no stream matches, with a suggestion")
    def unmatched() -> Response:
        """Since the start: topic, messages, an example payload (base64) and a stream that would take it."""
        found = [
            {**each, "payload": base64.b64encode(each["payload"]).decode()}
            for each in parts.gateway.unmatched()
        ]
        return Response(orjson.dumps(found), media_type="application/json")

    @routes.get("/api/v1/deadletters", summary="Payloads that could not be decoded")
    async def deadletters(
        stream: str | None = None,
        client: str | None = None,
        reason: str | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    ) -> Response:
        """Newest first: time of arrival, stream, topic, client, reason, detail, payload (base64)."""
        if parts.store is None:
            raise NotFoundError("listing dead letters: pipeline.enabled is false, so there are no tables")
        wanted = {"stream": stream, "client": client, "reason": reason}
        where = [f"{column} = ?" for column, value in wanted.items() if value is not None]
        condition = f"WHERE {' AND '.join(where)}" if where else ""
        sql = f"SELECT * FROM dead_letters {condition} ORDER BY ts DESC LIMIT {limit}"
        params = [value for value in wanted.values() if value is not None]
        table = await run_in_threadpool(parts.store.query, sql, params)
        rows = table.to_pylist()
        for row in rows:
            row["payload"] = base64.b64encode(row["payload"]).decode()
        return Response(orjson.dumps(rows), media_type="application/json")

    @routes.get("/api/v1/deadletters/count", summary="Dead letters by stream and reason")
    async def deadletter_counts() -> list[dict[str, Any]]:
        """Counts over everything kept."""
        if parts.store is None:
            raise NotFoundError("counting dead letters: pipeline.enabled is false, so there are no tables")
        sql = "SELECT stream, reason, COUNT(*) AS n FROM dead_letters GROUP BY stream, reason ORDER BY n DESC"
        table = await run_in_threadpool(parts.store.query, sql, [])
        found: list[dict[str, Any]] = table.to_pylist()
        return found

    return routes

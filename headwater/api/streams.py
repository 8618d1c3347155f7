"""Streams, and topics that no stream matches."""

from __future__ import annotations

import base64
from typing import Any

import orjson
from fastapi import APIRouter, Response

from headwater.api.parts import Parts


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
            for schema in parts.schemas.all()
        ]

    @routes.get("/api/v1/streams/unmatched", summary="Topics that no stream matches, with a suggestion")
    def unmatched() -> Response:
        """Since the start: topic, messages, an example payload (base64) and a stream that would take it."""
        found = [
            {**each, "payload": base64.b64encode(each["payload"]).decode()}
            for each in parts.gateway.unmatched()
        ]
        return Response(orjson.dumps(found), media_type="application/json")

    return routes

"""`POST /api/v1/ingest/{stream}`: readings over HTTP, answered once they are durable."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from headwater.api.parts import Parts
from headwater.errors import ConflictError, NotFoundError, RecordError
from headwater.gateway.listener import decode


def router(parts: Parts) -> APIRouter:
    """The route of HTTP ingest."""
    routes = APIRouter(tags=["ingest"])

    @routes.post("/api/v1/ingest/{stream}", summary="Append readings to a stream")
    async def ingest(stream: str, request: Request) -> dict[str, Any]:
        """Appends one reading (an object) or an array of readings; 200 means durable.

        Captured levels of the stream's topic are string fields of each reading, or query parameters.
        """
        return await run_in_threadpool(
            append, parts, stream, await request.body(), dict(request.query_params)
        )

    return routes


def append(parts: Parts, name: str, body: bytes, levels: dict[str, str]) -> dict[str, Any]:
    """Decodes `body` as the stream's payloads are and appends it, all or nothing.

    levels:  values of captured levels for every reading that does not give its own
    returns: {"rows": number of readings}
    raises:  NotFoundError, ConflictError: it is paused; RecordError, LogFullError
    """
    settings = parts.settings.streams.get(name)
    if settings is None:
        known = ", ".join(sorted(parts.settings.streams)) or "none"
        raise NotFoundError(f"ingesting into stream {name!r}: there is no such stream; streams are: {known}")
    if settings.paused:
        raise ConflictError(f"ingesting into stream {name!r}: it is paused; resume it first")
    if unknown := set(levels) - set(settings.captures):
        raise RecordError(
            f"ingesting into stream {name!r}: parameters {sorted(unknown)} are no captured levels of its topic "
            f"{settings.topic!r}"
        )
    schema, batch = decode(parts.log, name, settings, parts.schemas[name], body, parts.clock())
    columns = list(batch.columns)
    for at, column in enumerate(schema.columns):
        if column.name in levels:
            columns[at] = pc.fill_null(columns[at], levels[column.name])
        if column.name == schema.key and columns[at].null_count:
            raise RecordError(
                f"ingesting into stream {name!r}: a reading has no {column.name!r}, the stream's key; give it as a "
                f"string field or as a query parameter"
            )
    if batch.num_rows:
        parts.log.append([(schema, pa.RecordBatch.from_arrays(columns, schema=schema.arrow))])
    return {"rows": batch.num_rows}

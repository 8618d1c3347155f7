"""Packets as they come and go, streamed over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

import orjson
from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from headwater.api.parts import Parts
from headwater.errors import TraceError
from headwater.gateway.listener import Trace

#: Longest time until it is seen that the reader has gone, seconds.
_PATIENCE_S = 0.5


def router(parts: Parts) -> APIRouter:
    """The route of traces."""
    routes = APIRouter(tags=["clients"])

    @routes.get("/api/v1/trace", summary="Packets of a client or a topic as they come")
    async def trace(
        request: Request,
        client: Annotated[str | None, Query(description="Client id: all its packets.")] = None,
        topic: Annotated[str | None, Query(description="Topic filter: PUBLISH packets of anybody.")] = None,
    ) -> StreamingResponse:
        """One JSON object a line until the request ends: `at_us`, `client`, `direction` (`in`: from the client),
        `packet`, `bytes`, `detail`; `{"lost": n}` where the reader was too slow and the oldest lines went."""
        if client is not None and topic is None:
            started = parts.gateway.trace("client", client)
        elif topic is not None and client is None:
            started = parts.gateway.trace("topic", topic)
        else:
            raise TraceError("tracing: name either client or topic")
        return StreamingResponse(_lines(request, started), media_type="application/x-ndjson")

    return routes


async def _lines(request: Request, trace: Trace) -> AsyncIterator[bytes]:
    try:
        # Says that it has begun.
        yield b"\n"
        while not await request.is_disconnected():
            lines, lost = await run_in_threadpool(trace.take, _PATIENCE_S)
            found = [{"lost": lost}] * bool(lost) + lines
            if found:
                yield b"".join(orjson.dumps(line) + b"\n" for line in found)
    finally:
        trace.close()

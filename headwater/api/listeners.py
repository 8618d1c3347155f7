"""Listeners of devices: where they are, what they count, and their certificates."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from headwater.api.parts import Parts


def router(parts: Parts) -> APIRouter:
    """Routes about listeners."""
    routes = APIRouter(tags=["listeners"])

    @routes.get("/api/v1/listeners", summary="Listeners of devices")
    def listeners() -> list[dict[str, Any]]:
        """`name`, `transport`, `address`; `connections` now; `accepted`, `refused`, `handshakes`, `resumed` and
        `failures` by reason since the start."""
        return parts.gateway.listeners()

    @routes.post("/api/v1/listeners/reload", summary="Read certificates anew")
    async def reload() -> list[dict[str, Any]]:
        """Each TLS listener with `error`, null when its files are in use now; else it goes on with what it has."""
        outcomes = await run_in_threadpool(parts.gateway.reload)
        return [{"name": name, "error": error} for name, error in outcomes]

    return routes

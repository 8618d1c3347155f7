"""Health, readiness, metrics and the books."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Response
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import CollectorRegistry
from starlette.concurrency import run_in_threadpool

from headwater.api.books import books
from headwater.api.metrics import Metrics
from headwater.api.parts import Parts
from headwater.errors import HeadwaterError


def router(parts: Parts) -> APIRouter:
    """Routes that machines poll."""
    routes = APIRouter(tags=["health"])
    registry = CollectorRegistry()
    registry.register(Metrics(parts))

    @routes.get("/healthz", summary="Whether the process lives")
    def healthz() -> dict[str, str]:
        """200 as long as the process answers."""
        return {"status": "ok"}

    @routes.get("/readyz", summary="Whether every acknowledged reading can be queried")
    async def readyz() -> Response:
        """200 when a query sees every acknowledged reading and every service steps; else 503 with reasons."""
        reasons = await run_in_threadpool(not_ready, parts)
        body = {"status": "not ready" if reasons else "ready", "reasons": reasons}
        return Response(orjson.dumps(body), 503 if reasons else 200, media_type="application/json")

    @routes.get("/metrics", summary="OpenMetrics")
    def metrics() -> Response:
        """Counters of the gateway, the log, the services and the books."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @routes.get("/api/v1/books", summary="What came in and what became of it")
    def the_books() -> dict[str, Any]:
        """Both equations with their terms."""
        return books(parts)

    return routes


def not_ready(parts: Parts) -> list[str]:
    """Reasons why not every acknowledged reading can be queried now; empty when it can."""
    reasons = [
        f"{worker.name}: {worker.last_error or 'stopped'}" for worker in parts.workers if not worker.healthy
    ]
    if parts.store is not None:
        try:
            parts.store.catch_up()
        except HeadwaterError as error:
            reasons.append(f"store: {error}")
    return reasons

"""Alarms over HTTP."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from headwater.alerts.service import alarms as list_alarms
from headwater.api.parts import Parts


def router(parts: Parts) -> APIRouter:
    """Routes about alarms."""
    routes = APIRouter(tags=["alarms"])

    @routes.get("/api/v1/alarms", summary="Alarm instances, newest first")
    def alarms(
        state: Literal["pending", "firing", "flapping", "resolved"] | None = None,
        alarm: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100_000)] = 1000,
    ) -> list[dict[str, Any]]:
        """Each with id, alarm, key, state, severity, since and the reading that fired it."""
        return list_alarms(parts.database, state=state, alarm=alarm, limit=limit)

    return routes

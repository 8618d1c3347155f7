"""Notifications over HTTP: what waits, was sent or is dead; the dead sent again; a target tested."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from headwater.alerts import letters
from headwater.alerts.notify import Notifier
from headwater.api.parts import Parts
from headwater.errors import NotFoundError


def router(parts: Parts) -> APIRouter:
    """Routes about notifications and their targets."""
    routes = APIRouter(tags=["notifications"])

    @routes.get("/api/v1/notifications", summary="Notifications, newest first")
    def notifications(
        state: Literal["waiting", "sent", "dead"] | None = None,
        target: str | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    ) -> list[dict[str, Any]]:
        """Those that wait, and those of the last 7 days that were sent or are dead, with the last error."""
        return letters.notifications(parts.database, state, target, limit)

    @routes.post("/api/v1/notifications/replay", summary="Send dead notifications again")
    def replay(target: str | None = None, notification: str | None = None) -> dict[str, int]:
        """All dead ones, or those of a target, or one; with the same idempotency keys, behind what waits already."""
        known = _notifier(parts).targets
        return {"replayed": letters.replay(parts.database, known, parts.clock(), target, notification)}

    @routes.post("/api/v1/notify/{target}/test", summary="Send one message to a target now")
    def test(target: str) -> dict[str, Any]:
        """Past its outbox and limits; says whether it was delivered, and the error where not."""
        return _notifier(parts).test(target)

    return routes


def _notifier(parts: Parts) -> Notifier:
    if parts.notifier is None:
        raise NotFoundError("notifications: pipeline.enabled is false, so nothing is sent")
    return parts.notifier

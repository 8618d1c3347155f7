"""Alarms over HTTP: listed, and what operators do with them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from headwater.alerts.listing import alarms as list_alarms
from headwater.alerts.muting import create_silence, end_silence
from headwater.alerts.muting import silences as list_silences
from headwater.alerts.operators import Operators
from headwater.api.parts import Parts


class _Act(BaseModel):
    """Who does it."""

    model_config = ConfigDict(extra="forbid")

    who: str = Field(
        "api", min_length=1, max_length=128, description="Name of who does this, for the history."
    )


class _Acknowledge(_Act):
    comment: str = ""


class _Assign(_Act):
    to: str = Field(description="Name; empty: nobody.")


class _Comment(_Act):
    text: str


class _Shelve(_Act):
    until: AwareDatetime = Field(description="ISO 8601 with a zone.")
    reason: str = ""


class _Silence(_Act):
    matchers: list[str] = Field(
        description="Such as `alarm=overheat`, `device=pump-*`, `severity!=critical`; all must match."
    )
    starts_at: AwareDatetime | None = Field(None, description="ISO 8601 with a zone; absent: now.")
    ends_at: AwareDatetime = Field(description="ISO 8601 with a zone.")
    comment: str = ""


def router(parts: Parts) -> APIRouter:
    """Routes about alarms and silences."""
    routes = APIRouter(tags=["alarms"])
    operators = Operators(parts.database)

    @routes.get("/api/v1/alarms", summary="Alarm instances, newest first")
    def alarms(
        state: Literal["pending", "firing", "acknowledged", "flapping", "resolved"] | None = None,
        alarm: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100_000)] = 1000,
    ) -> list[dict[str, Any]]:
        """Each with id, alarm, key, state, severity, since and the reading that fired it."""
        return list_alarms(parts.database, state=state, alarm=alarm, limit=limit)

    @routes.get("/api/v1/alarms/{id}", summary="One alarm with its labels and history")
    def alarm(id: str) -> dict[str, Any]:
        """Every transition and action with who and when, and what keeps it from notifying."""
        return operators.detail(id, parts.clock())

    @routes.post("/api/v1/alarms/{id}/acknowledge", summary="Somebody takes care")
    def acknowledge(id: str, act: _Acknowledge) -> dict[str, Any]:
        """Escalation stops; the alarm goes on. Again: one more entry in the history."""
        return operators.acknowledge(id, act.who, act.comment, parts.clock())

    @routes.post("/api/v1/alarms/{id}/assign", summary="Who takes care")
    def assign(id: str, act: _Assign) -> dict[str, Any]:
        """Kept with the alarm and in its history."""
        return operators.assign(id, act.who, act.to, parts.clock())

    @routes.post("/api/v1/alarms/{id}/comment", summary="A note in the history")
    def comment(id: str, act: _Comment) -> dict[str, Any]:
        """At most 4,000 characters."""
        return operators.comment(id, act.who, act.text, parts.clock())

    @routes.post("/api/v1/alarms/{id}/shelve", summary="No notifications of this alarm and key until then")
    def shelve(id: str, act: _Shelve) -> dict[str, Any]:
        """Its state changes and is kept as ever; it holds also when it is resolved and fires again."""
        return operators.shelve(id, act.who, _micros(act.until), act.reason, parts.clock())

    @routes.post("/api/v1/alarms/{id}/unshelve", summary="It may notify again")
    def unshelve(id: str, act: _Act) -> dict[str, Any]:
        """409 when it is not shelved."""
        return operators.unshelve(id, act.who, parts.clock())

    @routes.get("/api/v1/silences", summary="Silences that are active or to come")
    def silences(
        over: Annotated[bool, Query(description="also those of the last 90 days")] = False,
    ) -> list[dict[str, Any]]:
        """The next to end first."""
        return list_silences(parts.database, parts.clock(), over)

    @routes.post("/api/v1/silences", summary="No notifications of alarms whose labels match, for a while")
    def silence(act: _Silence) -> dict[str, Any]:
        """Alarms change state and are kept as ever; they only do not notify."""
        now_us = parts.clock()
        starts_us = now_us if act.starts_at is None else _micros(act.starts_at)
        return create_silence(
            parts.database, act.matchers, starts_us, _micros(act.ends_at), act.who, act.comment, now_us
        )

    @routes.delete("/api/v1/silences/{id}", summary="Ends a silence now")
    def unsilence(
        id: str, who: Annotated[str, Query(min_length=1, max_length=128)] = "api"
    ) -> dict[str, Any]:
        """It stays listed among those that are over."""
        return end_silence(parts.database, id, who, parts.clock())

    return routes


def _micros(time: AwareDatetime) -> int:
    return round(time.timestamp() * 1e6)

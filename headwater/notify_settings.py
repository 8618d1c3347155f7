"""What a user declares about notifications: `[notify.*]`, the targets, and `[[routes]]`, who is told when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from headwater.declarations import DurationUs, Section


def _matchers(value: object) -> object:
    """A table of labels is the list of its matchers."""
    return [f"{name}={text}" for name, text in value.items()] if isinstance(value, dict) else value


class RateLimitSettings(Section):
    """How many messages a target takes."""

    count: int = Field(ge=1, le=10_000, description="So many messages ...")
    per: DurationUs = Field(gt=0, description="... in so much time; what waits beyond goes as one digest.")


class NotifySettings(Section):
    """A notification target."""

    url: SecretStr = Field(
        description="An Apprise URL, http(s)://... (a JSON webhook), or mqtt:topic/{alarm}/{device}."
    )
    secret: SecretStr | None = Field(
        None, min_length=16, description="Of a webhook: key of the signature in `Headwater-Signature`."
    )
    title: str | None = Field(None, description="Template of the title, for Apprise.")
    text: str | None = Field(None, description="Template of the text, for Apprise.")
    body: str | None = Field(None, description="Template of the body, for webhooks and MQTT.")
    content_type: str = Field(
        "application/json",
        pattern=r"[a-z0-9.+-]+/[a-z0-9.+-]+(; ?[a-z0-9-]+=[A-Za-z0-9._-]+)?",
        description="Of the webhook's `body`; in JSON, values are escaped.",
    )
    rate_limit: RateLimitSettings | None = Field(
        None, description='`{ count = 10, per = "1m" }`: more messages are sent as a digest.'
    )
    digest: DurationUs | None = Field(
        None, gt=0, description="Collects messages for so long and sends them as one."
    )


class EscalationSettings(Section):
    """One step of a route."""

    after: DurationUs = Field(
        0, description="So long after the alarm fired, if it still does, unacknowledged."
    )
    to: list[str] = Field(min_length=1, description="Names of `[notify.*]` targets.")


class RouteSettings(Section):
    """Who is told of alarms with certain labels, in steps; the first route that matches counts."""

    name: str | None = Field(
        None,
        description="By which it is changed; absent: `route_1`, `route_2`, ... by its place in the file.",
    )
    order: int | None = Field(
        None, ge=0, description="Routes are asked in ascending order; absent: its place in the file."
    )
    match: Annotated[list[str], BeforeValidator(_matchers)] = Field(
        default_factory=list,
        description='Labels: `{ severity = "critical", device = "pump-*" }`, or a list such as `["site!=test"]`; '
        "absent: every alarm.",
    )
    steps: list[EscalationSettings] = Field(min_length=1, description="Each with `after` and `to`.")
    continue_: bool = Field(False, alias="continue", description="Whether later routes that match count too.")
    paused: bool = Field(False, description="Not asked.")

    @model_validator(mode="after")
    def _in_order(self) -> RouteSettings:
        afters = [step.after for step in self.steps]
        if afters != sorted(set(afters)):
            raise ValueError("steps: each must come later than the one before it")
        return self


def named(routes: Sequence[RouteSettings], prefix: str = "file_route") -> dict[str, RouteSettings]:
    """Routes by name, in the order in which they are asked.

    prefix: of the names of those without
    raises: ValueError: two have one name
    """
    found: dict[str, RouteSettings] = {}
    for place, route in enumerate(routes, 1):
        name = route.name if route.name is not None else f"{prefix}_{place}"
        if name in found:
            raise ValueError(f"routes: two routes have the name {name!r}")
        order = route.order if route.order is not None else place
        found[name] = route.model_copy(update={"name": name, "order": order})
    return dict(sorted(found.items(), key=lambda each: each[1].order or 0))


def sections() -> list[tuple[str, Any]]:
    """The sections beside `[notify.NAME]`, for the reference."""
    return [
        ("rate_limit", RateLimitSettings),
        ("[[routes]]", RouteSettings),
        ("steps of a route", EscalationSettings),
    ]

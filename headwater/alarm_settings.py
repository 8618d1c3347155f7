"""What a user declares about alarms: `[alarms.*]` and the sections in it. Conditions are compiled in
`alerts.conditions`."""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from headwater.declarations import DurationUs, Section

#: From the least to the most severe.
SEVERITIES: Final = ("info", "warning", "minor", "major", "critical")
Severity = Literal["info", "warning", "minor", "major", "critical"]

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]

_TIME_OF_DAY: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)|24:00")
_LABEL: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, dict) else value


class StepSettings(Section):
    """One step of severity."""

    where: str = Field(description="SQL condition that raises the alarm to this step.")
    clear: str | None = Field(
        None, description="SQL condition that leaves this step; absent: `where` is false."
    )
    severity: Severity


class RepeatSettings(Section):
    """How many of a key's last rows must be true."""

    count: int = Field(ge=1, le=64, description="So many rows must be true.")
    of: int = Field(ge=1, le=64, description="Of so many last rows in which the condition is not NULL.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.count > self.of:
            raise ValueError(f"repeat: {self.count} of the last {self.of} rows can never be true")
        return self


class RateSettings(Section):
    """How fast a field changes, as the column `rate` of the alarm's conditions."""

    of: str = Field(description="Column that changes: a double or a bigint.")
    per: DurationUs = Field(1_000_000, gt=0, description="The rate is the change in so much event time.")


class FlapSettings(Section):
    """When an alarm flaps."""

    changes: int = Field(ge=1, le=100, description="More firings and resolutions than this ...")
    within: DurationUs = Field(gt=0, description="... in so much time; calm when there was none for so long.")


class ScheduleSettings(Section):
    """Hours in which an alarm can be raised."""

    days: list[Day] = Field(
        default=list(DAYS), min_length=1, description="Days of the week on which they begin."
    )
    from_: str = Field("00:00", alias="from", description="Local time of day at which they begin.")
    to: str = Field(
        "24:00", description="Local time of day at which they end; before `from`: on the next day."
    )
    zone: str = Field("UTC", description="Time zone of the IANA database, such as Europe/Berlin.")

    @field_validator("from_", "to")
    @classmethod
    def _time(cls, text: str) -> str:
        if not _TIME_OF_DAY.fullmatch(text):
            raise ValueError(f"{text!r} is no time of day; write 08:00, up to 24:00")
        return text

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str) -> str:
        try:
            zoneinfo.ZoneInfo(zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{zone!r} is no time zone; write one such as Europe/Berlin or UTC") from None
        return zone

    @model_validator(mode="after")
    def _lasts(self) -> Self:
        if self.from_ == "24:00":
            raise ValueError("schedule: from = 24:00 is 00:00 of the next day; write that")
        if self.from_ == self.to:
            raise ValueError(f"schedule: from {self.from_} to {self.to} is no time at all")
        return self

    @property
    def minutes(self) -> tuple[int, int]:
        """Begin and end, minutes after local midnight of the day on which they begin; the end may be beyond 24 h."""
        begin, end = (int(text[:2]) * 60 + int(text[3:]) for text in (self.from_, self.to))
        return begin, end if end > begin else end + 1440


class AlarmSettings(Section):
    """An alarm: a condition with memory, one instance per key."""

    on: str = Field(description="A stream or a query.")
    where: str | None = Field(None, description="SQL condition that raises.")
    any: list[str] = Field(
        default_factory=list, description="SQL conditions of which one raises; instead of `where`."
    )
    all: list[str] = Field(
        default_factory=list, description="SQL conditions that raise together; instead of `where`."
    )
    steps: list[StepSettings] = Field(
        default_factory=list,
        description="Steps of severity, each with `where`, `severity` and perhaps `clear`; instead of `where`.",
    )
    silent: DurationUs | None = Field(
        None, gt=0, description="Raises when a key has sent nothing (no row with `where` true) for so long."
    )
    rate: RateSettings | None = Field(
        None, description="Adds the column `rate`: how fast `of` changes, per `per`."
    )
    clear: str | None = Field(None, description="SQL condition that resolves; absent: `where` is false.")
    clear_after: DurationUs | None = Field(
        None, gt=0, description="Resolves when nothing has raised it for so long; then `clear` may be absent."
    )
    key: list[str] = Field(
        default_factory=list, description="Columns that name an instance; default the key."
    )
    for_: DurationUs = Field(0, alias="for", description="How long `where` must hold, event time.")
    repeat: RepeatSettings | None = Field(
        None, description="`{ count = 3, of = 5 }`: so many of a key's last rows must be true."
    )
    flap: FlapSettings | None = Field(
        None, description='`{ changes = 5, within = "10m" }`: more changes are held back as flapping.'
    )
    schedule: Annotated[list[ScheduleSettings], BeforeValidator(_one_or_many)] = Field(
        default_factory=list, description="Hours in which it can be raised; absent: always."
    )
    severity: Severity = "major"
    labels: dict[str, str] = Field(default_factory=dict, description="Labels beside alarm, severity and key.")
    notify: list[str] = Field(default_factory=list, description="Names of `[notify.*]` targets.")
    group: list[str] = Field(
        default_factory=list,
        description="Key columns: alarms with the same values are one incident, told once.",
    )
    dedupe: str | None = Field(
        None,
        description='Name of the incident, such as "power-{site}", shared over alarms; instead of `group`.',
    )
    max_ahead: DurationUs = Field(
        300_000_000, description="Rows whose event time is further ahead of their arrival do not move time."
    )
    max_keys: int = Field(1_000_000, gt=0, description="Keys remembered; further ones are not watched.")
    paused: bool = Field(False, description="Judges nothing; its instances stay as they are.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given = [name for name in ("where", "any", "all", "steps") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: an alarm has one of where, any, all and steps")
        if self.silent is not None:
            wrong = ("steps", "rate", "clear", "clear_after", "for_", "repeat")
            if found := [name.rstrip("_") for name in wrong if getattr(self, name)]:
                raise ValueError(
                    f"{found[0]}: an alarm with silent is raised by time and resolved by the next row; leave it out"
                )
        elif not given:
            raise ValueError("an alarm needs where, any, all, steps or silent")
        ranks = [SEVERITIES.index(step.severity) for step in self.steps]
        if ranks != sorted(set(ranks)):
            raise ValueError("steps: each step must be more severe than the one before it")
        if self.steps and "severity" in self.model_fields_set:
            raise ValueError("severity: each of the steps has its own; leave it out")
        if self.group and self.dedupe is not None:
            raise ValueError("group and dedupe: both name the incident; write one of them")
        for label in self.labels:
            if not _LABEL.fullmatch(label) or label in ("alarm", "severity"):
                raise ValueError(
                    f"labels: {label!r}: a label is lower-case letters, digits and _, and not alarm or severity"
                )
        return self

    @property
    def conditions(self) -> Iterator[tuple[str, str]]:
        """Every condition: where it stands in the section, and its SQL."""
        for name in ("where", "clear"):
            if (sql := getattr(self, name)) is not None:
                yield name, sql
        for name in ("any", "all"):
            yield from ((f"{name}[{at}]", sql) for at, sql in enumerate(getattr(self, name)))
        for at, step in enumerate(self.steps):
            yield f"steps[{at}].where", step.where
            if step.clear is not None:
                yield f"steps[{at}].clear", step.clear

    @property
    def severities(self) -> tuple[str, ...]:
        """Severity of each step, the least first."""
        return tuple(step.severity for step in self.steps) or (self.severity,)


def sections() -> list[tuple[str, Any]]:
    """The sections in `[alarms.NAME]`, for the reference."""
    return [
        ("steps", StepSettings),
        ("repeat", RepeatSettings),
        ("rate", RateSettings),
        ("flap", FlapSettings),
        ("schedule", ScheduleSettings),
    ]

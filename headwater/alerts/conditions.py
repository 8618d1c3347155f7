"""An alarm of the configuration, checked and compiled against the stream it watches."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_
from typing import Final, Protocol

from headwater.alarm_settings import AlarmSettings
from headwater.alerts.machine import Rules
from headwater.alerts.schedule import Schedule
from headwater.errors import ConfigError, SqlError
from headwater.expressions import Frame, compile_condition
from headwater.records import ColumnType, Schema
from headwater.vectors import Mask

#: The column that `rate` adds to an alarm's conditions.
RATE: Final = "rate"

#: A double is no name, and a time hardly ever comes back.
_KEY_TYPES: Final = (ColumnType.STRING, ColumnType.BIGINT, ColumnType.BOOLEAN)
#: Characters of an incident's name.
MAX_INCIDENT: Final = 512
_LABEL: Final = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_NUMBERS: Final = (ColumnType.DOUBLE, ColumnType.BIGINT)


class Condition(Protocol):
    """What is TRUE, FALSE or NULL for a row."""

    @property
    def columns(self) -> frozenset[str]: ...

    def evaluate(self, batch: Frame) -> tuple[Mask, Mask]:
        """Where it is TRUE and where it is FALSE."""


@dataclass(frozen=True, slots=True)
class AnyOf:
    """TRUE where one is, FALSE where all are."""

    conditions: Sequence[Condition]

    @property
    def columns(self) -> frozenset[str]:
        return frozenset[str]().union(*(each.columns for each in self.conditions))

    def evaluate(self, batch: Frame) -> tuple[Mask, Mask]:
        trues, falses = zip(*(each.evaluate(batch) for each in self.conditions), strict=True)
        return reduce(or_, trues), reduce(and_, falses)


@dataclass(frozen=True, slots=True)
class AllOf:
    """TRUE where all are, FALSE where one is."""

    conditions: Sequence[Condition]

    @property
    def columns(self) -> frozenset[str]:
        return frozenset[str]().union(*(each.columns for each in self.conditions))

    def evaluate(self, batch: Frame) -> tuple[Mask, Mask]:
        trues, falses = zip(*(each.evaluate(batch) for each in self.conditions), strict=True)
        return reduce(and_, trues), reduce(or_, falses)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of severity. clear: None: `where` FALSE leaves it."""

    where: Condition
    clear: Condition | None
    severity: str


@dataclass(frozen=True, slots=True)
class Rate:
    """The column `rate`: the change of column `of`, of this type, in `per_us` of event time."""

    of: str
    type: ColumnType
    per_us: int


@dataclass(frozen=True, slots=True)
class Incident:
    """What alarms are told as one: all whose `text` comes to the same, `{label}` replaced by the alarm's own."""

    text: str

    def key(self, labels: Mapping[str, str]) -> str:
        return _LABEL.sub(lambda found: labels.get(found[1], ""), self.text)[:MAX_INCIDENT]


@dataclass(frozen=True, slots=True)
class Alarm:
    """A compiled alarm.

    key:   columns that name an instance; empty: one instance for the whole stream
    steps: the least severe first; empty: silence alone raises it, and every row is a sign of life
    clear: resolves whatever the step; None: where the row leaves every step
    """

    name: str
    schema: Schema
    steps: tuple[Step, ...]
    clear: Condition | None
    key: tuple[str, ...]
    rules: Rules
    severities: tuple[str, ...]
    rate: Rate | None
    schedule: Schedule
    labels: Mapping[str, str]
    notify: tuple[str, ...]
    incident: Incident | None
    max_ahead_us: int
    max_keys: int

    @property
    def columns(self) -> frozenset[str]:
        """The columns that judging a row takes."""
        conditions = [self.clear, *(each for step in self.steps for each in (step.where, step.clear))]
        named = frozenset[str]().union(*(each.columns for each in conditions if each is not None))
        rated = {self.rate.of} if self.rate else set()
        arrival = {"received_at"} if self.rules.timed or self.rate else set()
        return (named - {RATE} if self.rate else named) | rated | arrival | {*self.key, "ts"}

    @property
    def remembers_rows(self) -> bool:
        """Whether something is remembered of every key that sends, not only of those that raise."""
        return self.rate is not None or self.rules.silent_us is not None

    def severity(self, level: int) -> str:
        """Of a step, 1 for the least severe; a level below counts as that."""
        return self.severities[max(level, 1) - 1]


def compile_alarm(name: str, settings: AlarmSettings, schemas: Mapping[str, Schema]) -> Alarm:
    """The alarm `[alarms.<name>]`.

    schemas: by name of stream or query
    raises:  ConfigError that names the setting, with the place in its SQL
    """
    schema = schemas.get(settings.on)
    if schema is None:
        raise ConfigError(
            f"alarms.{name}.on: {settings.on!r} is no stream or query{_nearest(settings.on, schemas)}"
        )
    columns = {column.name: column.type for column in schema.columns}
    key = tuple(settings.key) or ((schema.key,) if schema.key else ())
    for column in key:
        _known(f"alarms.{name}.key", settings.on, column, columns)
        if columns[column] not in _KEY_TYPES:
            raise ConfigError(
                f"alarms.{name}.key: {column!r} is {columns[column].value}; a key is string, bigint or boolean"
            )
    rate = _rate(name, settings, columns)
    if rate is not None:
        columns[RATE] = ColumnType.DOUBLE
    compiled = {at: _condition(f"alarms.{name}.{at}", sql, columns) for at, sql in settings.conditions}
    schedule = Schedule(settings.schedule)
    alarm = Alarm(
        name,
        schema,
        _steps(settings, compiled),
        compiled.get("clear"),
        key,
        _rules(settings, schedule),
        settings.severities,
        rate,
        schedule,
        settings.labels,
        tuple(dict.fromkeys(settings.notify)),
        _incident(name, settings, key),
        settings.max_ahead,
        settings.max_keys,
    )
    for label in settings.labels:
        if label in key:
            raise ConfigError(f"alarms.{name}.labels: {label!r} is a key column and so a label already")
    return alarm


def _steps(settings: AlarmSettings, compiled: Mapping[str, Condition]) -> tuple[Step, ...]:
    if settings.steps:
        return tuple(
            Step(compiled[f"steps[{at}].where"], compiled.get(f"steps[{at}].clear"), step.severity)
            for at, step in enumerate(settings.steps)
        )
    where = compiled.get("where")
    if settings.any:
        where = AnyOf([compiled[f"any[{at}]"] for at in range(len(settings.any))])
    if settings.all:
        where = AllOf([compiled[f"all[{at}]"] for at in range(len(settings.all))])
    return () if where is None else (Step(where, None, settings.severity),)


def _rules(settings: AlarmSettings, schedule: Schedule) -> Rules:
    return Rules(
        for_us=settings.for_,
        top=max(len(settings.steps), 1),
        repeat=None if settings.repeat is None else (settings.repeat.count, settings.repeat.of),
        keeps=settings.clear is None and all(step.clear is None for step in settings.steps),
        clear_after_us=settings.clear_after,
        silent_us=settings.silent,
        active_from=schedule.next_active if schedule else int,
        flap=None if settings.flap is None else (settings.flap.changes, settings.flap.within),
    )


def _rate(name: str, settings: AlarmSettings, columns: Mapping[str, ColumnType]) -> Rate | None:
    if settings.rate is None:
        return None
    of = settings.rate.of
    _known(f"alarms.{name}.rate.of", settings.on, of, columns)
    if columns[of] not in _NUMBERS:
        raise ConfigError(f"alarms.{name}.rate.of: {of!r} is {columns[of].value}; a rate is of numbers")
    if RATE in columns:
        raise ConfigError(
            f"alarms.{name}.rate: {settings.on!r} has a column 'rate' of its own, so conditions could not tell "
            f"them apart; give that field another name"
        )
    return Rate(of, columns[of], settings.rate.per)


def _incident(name: str, settings: AlarmSettings, key: tuple[str, ...]) -> Incident | None:
    """`group` is the short form of a text that names the alarm and some of its key."""
    for column in settings.group:
        if column not in key:
            raise ConfigError(
                f"alarms.{name}.group: {column!r} is no key column; there are {', '.join(key) or 'none'}"
            )
    if settings.group:
        return Incident(f"{name}:" + ",".join(f"{column}={{{column}}}" for column in settings.group))
    if settings.dedupe is None:
        return None
    known = {"alarm", *key, *settings.labels}
    for label in _LABEL.findall(settings.dedupe):
        if label not in known:
            raise ConfigError(
                f"alarms.{name}.dedupe: {label!r} is no label that stays; there are {', '.join(sorted(known))}"
            )
    if not settings.dedupe or re.search(r"[{}]", _LABEL.sub("", settings.dedupe)):
        raise ConfigError(f"alarms.{name}.dedupe: write a text with labels in braces, such as power-{{site}}")
    return Incident(settings.dedupe)


def _known(setting: str, on: str, column: str, columns: Mapping[str, ColumnType]) -> None:
    if column not in columns:
        raise ConfigError(f"{setting}: {on!r} has no column {column!r}{_nearest(column, columns)}")


def _condition(setting: str, sql: str, columns: Mapping[str, ColumnType]) -> Condition:
    try:
        return compile_condition(sql, columns)
    except SqlError as error:
        raise ConfigError(f"{setting} = {sql!r}: {error}") from error


def _nearest(wrong: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(wrong, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(known))}"

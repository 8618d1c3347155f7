"""An alarm of the configuration, checked and compiled against the stream it watches."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from headwater.declarations import AlarmSettings
from headwater.errors import ConfigError, SqlError
from headwater.expressions import Condition, compile_condition
from headwater.records import ColumnType, Schema

#: A double is no name, and a time hardly ever comes back.
_KEY_TYPES: Final = (ColumnType.STRING, ColumnType.BIGINT, ColumnType.BOOLEAN)


@dataclass(frozen=True, slots=True)
class Alarm:
    """A compiled alarm.

    key:   columns that name an instance; empty: one instance for the whole stream
    clear: None: `where` FALSE resolves
    """

    name: str
    schema: Schema
    where: Condition
    clear: Condition | None
    key: tuple[str, ...]
    for_us: int
    severity: str
    notify: tuple[str, ...]

    @property
    def columns(self) -> frozenset[str]:
        """The columns that judging a row takes."""
        clear = self.clear.columns if self.clear else frozenset()
        return self.where.columns | clear | {*self.key, "ts"}


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
        if column not in columns:
            raise ConfigError(
                f"alarms.{name}.key: {settings.on!r} has no column {column!r}{_nearest(column, columns)}"
            )
        if columns[column] not in _KEY_TYPES:
            raise ConfigError(
                f"alarms.{name}.key: {column!r} is {columns[column].value}; a key is string, bigint or boolean"
            )
    return Alarm(
        name,
        schema,
        _condition(f"alarms.{name}.where", settings.where, columns),
        None if settings.clear is None else _condition(f"alarms.{name}.clear", settings.clear, columns),
        key,
        settings.for_,
        settings.severity,
        tuple(dict.fromkeys(settings.notify)),
    )


def _condition(setting: str, sql: str, columns: Mapping[str, ColumnType]) -> Condition:
    try:
        return compile_condition(sql, columns)
    except SqlError as error:
        raise ConfigError(f"{setting} = {sql!r}: {error}") from error


def _nearest(wrong: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(wrong, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(known))}"

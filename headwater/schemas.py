"""Columns of every table: declared in the settings, inferred from messages, or planned from a query's SQL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import structlog

from headwater import database as db
from headwater.config import Settings
from headwater.declarations import StreamSettings
from headwater.errors import ConfigError, SqlError
from headwater.log.embedded import EmbeddedLog
from headwater.records import FIRST_USER_STREAM, Column, ColumnType, Schema

if TYPE_CHECKING:
    from headwater.streams.plan import Plan

logger = structlog.get_logger(__name__)

#: Where streams with inferred fields keep what fits no column: a JSON object of path and value.
EXTRA: Final = "_extra"

#: Columns that a query's window adds; no message has to show them.
_OF_WINDOWS: Final = frozenset({"window_start", "window_end", "window_time", "ts", "received_at", "revision"})


class Schemas(Mapping[str, Schema]):
    """The newest schema of every stream and query, by name; those of streams that infer their fields grow."""

    def __init__(self, registered: Mapping[str, Schema], inferring: frozenset[str], log: EmbeddedLog) -> None:
        self._registered = dict(registered)
        self._inferring = inferring
        self._log = log

    def __getitem__(self, name: str) -> Schema:
        schema = self._registered[name]
        return self._log.newest(schema) if name in self._inferring else schema

    def __iter__(self) -> Iterator[str]:
        return iter(self._registered)

    def __len__(self) -> int:
        return len(self._registered)

    def all(self) -> list[Schema]:
        """Every schema, of one moment."""
        return [
            self._log.newest(schema) if name in self._inferring else schema
            for name, schema in self._registered.items()
        ]

    def adopt(self, other: Schemas) -> None:
        """Is `other` from now on, for whoever holds it."""
        self._registered, self._inferring = other._registered, other._inferring


def stream_columns(stream: StreamSettings) -> tuple[Column, ...]:
    """Columns of a stream as declared: captured levels, event time, time of arrival, fields."""
    return (
        *(Column(level, ColumnType.STRING) for level in stream.captures),
        Column("ts", ColumnType.TIMESTAMP),
        Column("received_at", ColumnType.TIMESTAMP),
        *((Column(EXTRA, ColumnType.STRING),) if stream.infer else ()),
        *(Column(name, field.type) for name, field in stream.fields.items()),
    )


def named_columns(settings: Settings, name: str) -> list[str]:
    """Columns of stream `name` that queries and alarms name and its declaration lacks: they are made at the start, so
    that a rule can be written before the first message."""
    if not settings.queries and not settings.alarms:
        return []
    import sqlglot
    from sqlglot import exp

    from headwater.streams.dialect import ContinuousSql

    queries = settings.queries.values()
    texts = [q.sql for q in queries if name in {token.text for token in sqlglot.tokenize(q.sql)}]
    alarms = [alarm for alarm in settings.alarms.values() if alarm.on == name]
    texts += [f"SELECT {sql}" for alarm in alarms for _, sql in alarm.conditions]
    texts += [f"SELECT {alarm.rate.of}" for alarm in alarms if alarm.rate]
    known = {column.name for column in stream_columns(settings.streams[name])} | _OF_WINDOWS
    if any(alarm.rate for alarm in alarms):
        known.add("rate")  # Which the alarm adds.
    found: dict[str, None] = {}
    for text in texts:
        try:
            tree = sqlglot.parse_one(text, dialect=ContinuousSql)
        except sqlglot.errors.SqlglotError:
            continue  # Planning the query or the alarm says what is wrong.
        for column in tree.find_all(exp.Column):
            if column.name not in known and column.name.isidentifier():
                found.setdefault(column.name)
    return list(found)


def planned(
    settings: Settings, inferred: Mapping[str, tuple[Column, ...]] | None = None
) -> tuple[dict[str, Schema], dict[str, Plan]]:
    """Schemas of all tables, not registered yet (their ids are 0), and the plans of all queries, each after the
    queries it reads.

    inferred: columns of streams beside those declared; None: what queries and alarms name
    raises:   ConfigError naming the query and the position
    """
    tables: dict[str, Schema] = {}
    for name, stream in settings.streams.items():
        if inferred is not None:
            more = inferred.get(name, ())
        else:
            names = named_columns(settings, name) if stream.infer else []
            more = tuple(Column(column, ColumnType.DOUBLE) for column in names)
        tables[name] = Schema(0, 0, name, stream_columns(stream) + more, stream.key_column)
    plans: dict[str, Plan] = {}
    waiting = dict(settings.queries)
    if waiting:
        # The SQL parser is loaded where there is SQL: devices wait for this.
        from headwater.streams.sql import plan
    while waiting:
        refusals: dict[str, SqlError] = {}
        for name, query in waiting.items():
            try:
                plans[name] = plan(query.sql, name, tables)
                if query.late == "amend" and (reason := plans[name].final):
                    raise ConfigError(
                        f"queries.{name}.late: found 'amend', but {reason}; late rows are left out and counted. "
                        "Leave it out, and give the stream a longer lateness where rows come late"
                    )
                if query.early is not None and (reason := plans[name].unsteady):
                    raise ConfigError(
                        f"queries.{name}.early: found {query.early / 1e6:g} s, but {reason}. Leave it out"
                    )
                tables[name] = Schema(0, 0, name, plans[name].columns, plans[name].key)
            except SqlError as error:
                refusals[name] = error
        if len(refusals) == len(waiting):
            # No order of the queries helps: the first one is wrong, or reads one that is, or they read each other.
            name, refusal = next(iter(refusals.items()))
            where = "" if refusal.position is None else f" at character {refusal.position}"
            raise ConfigError(f"queries.{name}.sql{where}: {refusal}") from refusal
        waiting = {name: waiting[name] for name in refusals}
    return tables, plans


def registered(
    database: db.Database, log: EmbeddedLog, settings: Settings
) -> tuple[Schemas, dict[str, Plan]]:
    """Schemas of all tables, durable in the registry and known to the log before anything is written with them.

    raises: ConfigError when a column would change its type, or a query cannot be planned
    """
    inferring = frozenset(name for name, stream in settings.streams.items() if stream.infer)
    with database.begin() as connection:
        known = db.schemas(connection)
        ids = {schema.name: schema.stream for schema in known if schema.stream >= FIRST_USER_STREAM}
        inferred = {
            name: tuple(Column(column, ColumnType(type_)) for column, type_, _ in log.inferred(ids[name]))
            for name in inferring & ids.keys()
        }
    # First without what rules name, so that a stream is registered before it grows.
    found = _register(database, log, {name: inferred.get(name, ()) for name in settings.streams}, settings)
    for name in sorted(inferring):
        has = {column.name for column in found[name].columns}
        if missing := [column for column in named_columns(settings, name) if column not in has]:
            logger.info("columns made for rules", stream=name, columns=missing, type="double")
            found[name] = log.infer(found[name], [(column, "double", column) for column in missing])
    tables, plans = planned(
        settings,
        {name: found[name].columns[len(stream_columns(s)) :] for name, s in settings.streams.items()},
    )
    with database.begin() as connection:
        known = db.schemas(connection)
        for name in plans:
            if problem := db.conflict(known, name, tables[name].columns):
                raise ConfigError(problem)
            found[name] = db.register(connection, name, tables[name].columns, tables[name].key)
    for schema in found.values():
        log.register(schema)
    return Schemas(found, inferring, log), plans


def preview(
    database: db.Database, log: EmbeddedLog, settings: Settings
) -> tuple[dict[str, Schema], dict[str, Plan]]:
    """What `registered` would give, without writing anything; the ids of schemas, and of streams to come, are 0.

    raises: ConfigError as `registered`, also when a key would change
    """
    with database.read() as connection:
        known = db.schemas(connection)
    ids = {schema.name: schema.stream for schema in known if schema.stream >= FIRST_USER_STREAM}
    keys = {schema.name: schema.key for schema in known}
    inferred: dict[str, tuple[Column, ...]] = {}
    for name, stream in settings.streams.items():
        if stream.infer:
            fields = log.inferred(ids[name]) if name in ids else []
            has = tuple(Column(column, ColumnType(type_)) for column, type_, _ in fields)
            there = {column.name for column in has}
            missing = [column for column in named_columns(settings, name) if column not in there]
            inferred[name] = has + tuple(Column(column, ColumnType.DOUBLE) for column in missing)
    tables, plans = planned(settings, inferred)
    for name, schema in tables.items():
        if problem := db.conflict(known, name, schema.columns):
            raise ConfigError(problem)
        if keys.get(name, schema.key) != schema.key:
            raise ConfigError(
                f"{name!r}: its key would be {schema.key!r} and is {keys[name]!r}, by which its rows are partitioned; "
                "give the new one another name"
            )
        tables[name] = replace(schema, stream=ids.get(name, 0))
    return tables, plans


def _register(
    database: db.Database, log: EmbeddedLog, inferred: Mapping[str, tuple[Column, ...]], settings: Settings
) -> dict[str, Schema]:
    found: dict[str, Schema] = {}
    with database.begin() as connection:
        known = db.schemas(connection)
        for name, stream in settings.streams.items():
            columns = stream_columns(stream) + inferred[name]
            if problem := db.conflict(known, name, columns):
                raise ConfigError(problem)
            found[name] = db.register(connection, name, columns, stream.key_column)
    for schema in found.values():
        log.register(schema)
    return found

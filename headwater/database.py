"""The one SQL database: registry, reader offsets, alarms, outbox and shadows, and its migrations.

SQLite by default (WAL, synchronous FULL: a commit is on disk when it returns), PostgreSQL by URL. A service commits its
offsets in the transaction that holds what it derived from them, so neither can be there without the other.
All times are integers: microseconds since the Unix epoch, UTC, unless the name says otherwise.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from headwater import durable
from headwater.errors import DataDirectoryError
from headwater.records import (
    FIRST_USER_STREAM,
    OWN_SCHEMAS,
    Column,
    ColumnType,
    Offsets,
    Schema,
)

METADATA: Final = sa.MetaData()

VERSION = sa.Table("schema_version", METADATA, sa.Column("version", sa.Integer, nullable=False))

#: Streams and queries ever declared; an id is never reused.
STREAMS = sa.Table(
    "streams",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
)

#: Every version of every stream's columns: [[name, type], ...] as JSON.
SCHEMAS = sa.Table(
    "schemas",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("stream", sa.ForeignKey("streams.id"), nullable=False),
    sa.Column("columns", sa.Text, nullable=False),
    sa.Column("key", sa.Text),
)

#: What a reader of the log has finished, committed together with its output.
OFFSETS = sa.Table(
    "offsets",
    METADATA,
    sa.Column("reader", sa.Text, primary_key=True),
    sa.Column("stream", sa.Integer, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("offset", sa.BigInteger, nullable=False),
)

#: Keys of which an alarm remembers something: `pending`, `firing`, `flapping`, or `inactive` with a memory of rows.
#: key: JSON object of key columns. partition and offset: the row of the log that made it pending, from which its id is
#: derived. memory: JSON of the state machine's memory, where there is more to it.
ALARM_STATES = sa.Table(
    "alarm_states",
    METADATA,
    sa.Column("alarm", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("severity", sa.Text, nullable=False),
    sa.Column("pending_since", sa.BigInteger, nullable=False),
    sa.Column("partition", sa.Integer, nullable=False),
    sa.Column("offset", sa.BigInteger, nullable=False),
    sa.Column("alarm_id", sa.Text, nullable=False),
    sa.Column("memory", sa.Text),
)

#: What an alarm remembers of every key that sends, as journal records (docs/formats/alarm-rows.md).
ALARM_ROWS = sa.Table(
    "alarm_rows",
    METADATA,
    sa.Column("alarm", sa.Text, primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True),
    sa.Column("record", sa.LargeBinary, nullable=False),
)

#: The clock of an alarm that time can change, and when that was by the wall clock.
ALARM_CLOCKS = sa.Table(
    "alarm_clocks",
    METADATA,
    sa.Column("alarm", sa.Text, primary_key=True),
    sa.Column("clock_us", sa.BigInteger, nullable=False),
    sa.Column("wall_us", sa.BigInteger, nullable=False),
)

#: One row per firing: from firing to resolved. id is derived from alarm, key and log offset.
ALARMS = sa.Table(
    "alarms",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("alarm", sa.Text, nullable=False, index=True),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, index=True),
    sa.Column("severity", sa.Text, nullable=False),
    sa.Column("pending_since", sa.BigInteger, nullable=False),
    sa.Column("fired_at", sa.BigInteger, nullable=False),
    sa.Column("resolved_at", sa.BigInteger),
    sa.Column("reading", sa.Text, nullable=False),
    sa.Column("labels", sa.Text),  # JSON object of those declared
    sa.Column("told", sa.Text),  # JSON list of the targets that have been told
    sa.Column("dedupe_key", sa.Text, index=True),  # of the incident that it belongs to with others
    sa.Column("acknowledged_at", sa.BigInteger),
    sa.Column("acknowledged_by", sa.Text),
    sa.Column("assignee", sa.Text),
)

#: What people did with an alarm.
ALARM_ACTIONS = sa.Table(
    "alarm_actions",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("alarm_id", sa.Text, nullable=False, index=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
)

#: Keys of alarms that do not notify until then.
ALARM_SHELVES = sa.Table(
    "alarm_shelves",
    METADATA,
    sa.Column("alarm", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("until", sa.BigInteger, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
)

#: Windows in which alarms whose labels match do not notify. matchers: JSON list.
SILENCES = sa.Table(
    "silences",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("matchers", sa.Text, nullable=False),
    sa.Column("starts_at", sa.BigInteger, nullable=False),
    sa.Column("ends_at", sa.BigInteger, nullable=False, index=True),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("comment", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("ended_by", sa.Text),
)

#: Every transition, named by the row of the log that caused it, or had set the timer that did.
ALARM_TRANSITIONS = sa.Table(
    "alarm_transitions",
    METADATA,
    sa.Column("alarm", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("offset", sa.BigInteger, primary_key=True),
    sa.Column("state", sa.Text, primary_key=True),
    sa.Column("alarm_id", sa.Text),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("recorded_at", sa.BigInteger, nullable=False),
    sa.Column("severity", sa.Text),
)

#: Outbox of notifications; id is the idempotency key, sequence the order in which a target gets them.
NOTIFICATIONS = sa.Table(
    "notifications",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("sequence", sa.BigInteger, nullable=False, unique=True),
    sa.Column("alarm_id", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_at", sa.BigInteger, nullable=False),
    sa.Column("last_error", sa.Text),
    sa.Column("created_at", sa.BigInteger),
    sa.Column("digest", sa.Text),  # the message in which it is sent with others
    sa.Index("notifications_due", "target", "state", "sequence"),
)

#: Steps of routes that are yet to come. targets: JSON list.
ALARM_ESCALATIONS = sa.Table(
    "alarm_escalations",
    METADATA,
    sa.Column("alarm_id", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("due_at", sa.BigInteger, nullable=False, index=True),
    sa.Column("targets", sa.Text, nullable=False),
)

#: Shadows; name '' is the classic one. A deleted shadow keeps its row, so that its version goes on.
SHADOWS = sa.Table(
    "shadows",
    METADATA,
    sa.Column("thing", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("document", sa.Text),
)

#: Messages for devices that a committed change asked for and that are not yet on the downlink stream.
DOWNLINK_OUTBOX = sa.Table(
    "downlink_outbox",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("topic", sa.Text, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("qos", sa.Integer, nullable=False),
    sa.Column("retain", sa.Boolean, nullable=False),
)

#: The last retained message of each topic. at: its arrival. properties: encoded MQTT 5 properties.
RETAINED = sa.Table(
    "retained",
    METADATA,
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("qos", sa.Integer, nullable=False),
    sa.Column("properties", sa.LargeBinary, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
)


#: Rows of a stream by the value of a captured level, as the ledger has counted them up to its offsets.
LEDGER = sa.Table(
    "ledger",
    METADATA,
    sa.Column("stream", sa.Integer, primary_key=True),
    sa.Column("level", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, primary_key=True),
    sa.Column("rows", sa.BigInteger, nullable=False),
)


#: Streams, queries, alarms and routes as they are now. owner: `file` or `api`. A stream or query that was deleted stays
#: as long as its table. latest_by: of a query's table, JSON list.
OBJECTS = sa.Table(
    "objects",
    METADATA,
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("deleted", sa.Boolean, nullable=False),
    sa.Column("definition", sa.Text, nullable=False),
    sa.Column("latest_by", sa.Text),
    sa.Column("changed_at", sa.BigInteger, nullable=False),
    sa.Column("changed_by", sa.Text, nullable=False),
)

#: Who changed what, when, from which version to which. One transaction is one revision.
OBJECT_CHANGES = sa.Table(
    "object_changes",
    METADATA,
    sa.Column("revision", sa.BigInteger, primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("from_version", sa.Integer),
    sa.Column("to_version", sa.Integer, nullable=False),
    sa.Column("definition", sa.Text),
    sa.Column("effect", sa.Text, nullable=False),
    sa.Index("object_changes_of", "kind", "name", "to_version"),
)


def _create_all(connection: sa.Connection) -> None:
    METADATA.create_all(connection)


def _add_what_is_missing(connection: sa.Connection) -> None:
    """Tables and nullable columns that this version knows and the database lacks."""
    METADATA.create_all(connection)
    there = sa.inspect(connection)
    quote = connection.dialect.identifier_preparer.quote
    for table in METADATA.sorted_tables:
        has = {column["name"] for column in there.get_columns(table.name)}
        for column in table.columns:
            if column.name not in has:
                type_ = column.type.compile(connection.dialect)
                connection.exec_driver_sql(
                    f"ALTER TABLE {quote(table.name)} ADD COLUMN {quote(column.name)} {type_}"
                )
        for index in table.indexes:
            index.create(connection, checkfirst=True)


#: Step n leads from version n to n + 1; steps are appended, never changed.
MIGRATIONS: Final = (
    _create_all,
    _add_what_is_missing,  # alarms that remember rows and time
    _add_what_is_missing,  # what operators do: actions, shelves, silences
    _add_what_is_missing,  # incidents, escalation, digests
    _add_what_is_missing,  # books of captured levels
    _add_what_is_missing,  # retained messages
    _add_what_is_missing,  # objects that change while Headwater runs
)


class Database:
    """The database of one data directory.

    url:    SQLAlchemy URL
    raises: DataDirectoryError when it cannot be opened or was written by a newer Headwater
    """

    def __init__(self, url: str) -> None:
        self.engine = sa.create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
        if self.engine.dialect.name == "sqlite":
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)
        try:
            with self.begin() as connection:
                _migrate(connection, url)
        except sa.exc.DBAPIError as error:
            raise DataDirectoryError(f"opening the database {url}: {error.orig}") from error

    @classmethod
    def in_directory(cls, directory: Path, url: str | None) -> Database:
        """The database at `url`, or the SQLite file of that data directory."""
        durable.make_directory(directory)
        return cls(url or f"sqlite:///{directory / 'headwater.db'}")

    @contextlib.contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """A writing transaction; durable when the block has ended without an exception."""
        with self.engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A consistent read. On SQLite it does not wait for a writer."""
        with self.engine.connect() as connection:
            yield connection.execution_options(read_only=True)

    def close(self) -> None:
        self.engine.dispose()


def load_offsets(connection: sa.Connection, reader: str, stream: int) -> Offsets:
    """Where `reader` goes on in `stream`, one offset per partition; empty when it never committed."""
    rows = connection.execute(
        sa.select(OFFSETS.c.partition, OFFSETS.c.offset).where(
            OFFSETS.c.reader == reader, OFFSETS.c.stream == stream
        )
    ).all()
    found: dict[int, int] = {row.partition: row.offset for row in rows}
    return tuple(found.get(partition, 0) for partition in range(max(found, default=-1) + 1))


def save_offsets(connection: sa.Connection, reader: str, stream: int, offsets: Sequence[int]) -> None:
    """Commits, with the transaction, that `reader` has finished everything below these offsets."""
    connection.execute(sa.delete(OFFSETS).where(OFFSETS.c.reader == reader, OFFSETS.c.stream == stream))
    connection.execute(
        sa.insert(OFFSETS),
        [
            {"reader": reader, "stream": stream, "partition": partition, "offset": offset}
            for partition, offset in enumerate(offsets)
        ],
    )


def register(connection: sa.Connection, name: str, columns: Sequence[Column], key: str | None) -> Schema:
    """The schema of stream `name` with these columns: an existing version, or a new one.

    A declared column never changes type; the caller refuses that with `conflict` before.
    """
    stream = connection.scalar(sa.select(STREAMS.c.id).where(STREAMS.c.name == name))
    if stream is None:
        last = connection.scalar(sa.select(sa.func.max(STREAMS.c.id)))
        stream = max(last or 0, FIRST_USER_STREAM - 1) + 1
        connection.execute(sa.insert(STREAMS).values(id=stream, name=name))
    text = json.dumps([[column.name, column.type.value] for column in columns])
    known = sa.select(SCHEMAS.c.id).where(
        SCHEMAS.c.stream == stream, SCHEMAS.c.columns == text, SCHEMAS.c.key.is_not_distinct_from(key)
    )
    found = connection.scalar(known)
    if found is None:
        found = max(connection.scalar(sa.select(sa.func.max(SCHEMAS.c.id))) or 0, FIRST_USER_STREAM - 1) + 1
        connection.execute(sa.insert(SCHEMAS).values(id=found, stream=stream, columns=text, key=key))
    return Schema(found, stream, name, tuple(columns), key)


def retire(connection: sa.Connection, name: str) -> None:
    """Nothing has this name any more: whoever takes it next is another stream, whose columns may have other types."""
    stream = connection.scalar(sa.select(STREAMS.c.id).where(STREAMS.c.name == name))
    if stream is not None:
        connection.execute(sa.update(STREAMS).where(STREAMS.c.id == stream).values(name=f"{name}~{stream}"))
        connection.execute(sa.delete(LEDGER).where(LEDGER.c.stream == stream))


def schemas(connection: sa.Connection) -> list[Schema]:
    """Every schema ever registered, the product's own first, oldest first."""
    rows = connection.execute(
        sa.select(SCHEMAS.c.id, SCHEMAS.c.stream, STREAMS.c.name, SCHEMAS.c.columns, SCHEMAS.c.key)
        .join(STREAMS, STREAMS.c.id == SCHEMAS.c.stream)
        .order_by(SCHEMAS.c.id)
    ).all()
    found = [*OWN_SCHEMAS]
    for id_, stream, name, text, key in rows:
        columns = tuple(Column(column, ColumnType(type_)) for column, type_ in json.loads(text))
        found.append(Schema(id_, stream, name, columns, key))
    return found


def conflict(known: Sequence[Schema], name: str, columns: Sequence[Column]) -> str | None:
    """Why these columns cannot be stream `name`'s next version; None where they can."""
    for schema in known:
        for column in columns if schema.name == name else ():
            before = schema.column(column.name)
            if before is not None and before.type is not column.type:
                return (
                    f"stream {name!r}: field {column.name!r} is declared {column.type} but was {before.type}; "
                    f"a declared field never changes type, so give the new one another name"
                )
    return None


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # SQLAlchemy issues BEGIN itself (see the begin listener); the driver must not.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer takes its lock at once: upgrading a read lock later could not wait for another writer.
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _migrate(connection: sa.Connection, url: str) -> None:
    VERSION.create(connection, checkfirst=True)
    version = connection.scalar(sa.select(VERSION.c.version))
    if version is None:
        version = 0
        connection.execute(sa.insert(VERSION).values(version=0))
    if version > len(MIGRATIONS):
        raise DataDirectoryError(
            f"opening the database {url}: it has version {version}, this Headwater knows {len(MIGRATIONS)}; "
            f"start the newer Headwater that wrote it"
        )
    for step in MIGRATIONS[version:]:
        step(connection)
    connection.execute(sa.update(VERSION).values(version=len(MIGRATIONS)))

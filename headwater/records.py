"""The vocabulary of tables: columns, schemas, streams and the offsets that name their rows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import pyarrow as pa

#: Streams of the product itself. User streams have ids from FIRST_USER_STREAM on.
RAW: Final = 1
DEAD_LETTERS: Final = 2
DOWNLINK: Final = 3
STEPS: Final = 4
REPLAYS: Final = 5
SESSIONS: Final = 6
FIRST_USER_STREAM: Final = 16

#: Names that a stream, query or alarm may have: they are SQL identifiers and path segments.
NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")

#: One offset (the next row to read) per partition of a stream.
Offsets = tuple[int, ...]


class ColumnType(StrEnum):
    """SQL type of a declared field."""

    DOUBLE = "double"
    BIGINT = "bigint"
    BOOLEAN = "boolean"
    STRING = "string"
    TIMESTAMP = "timestamp"
    BINARY = "binary"

    @property
    def arrow(self) -> pa.DataType:
        """The Arrow type of batches: timestamps are microseconds in UTC."""
        return _ARROW[self]

    @classmethod
    def of_arrow(cls, type_: pa.DataType) -> ColumnType:
        """The column type whose batches have this Arrow type."""
        return next(column for column, arrow in _ARROW.items() if arrow == type_)


_ARROW: Final = {
    ColumnType.DOUBLE: pa.float64(),
    ColumnType.BIGINT: pa.int64(),
    ColumnType.BOOLEAN: pa.bool_(),
    ColumnType.STRING: pa.string(),
    ColumnType.TIMESTAMP: pa.timestamp("us", tz="UTC"),
    ColumnType.BINARY: pa.binary(),
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a stream."""

    name: str
    type: ColumnType


@dataclass(frozen=True, slots=True)
class Schema:
    """One version of a stream's columns, registered under `id`.

    key: name of the string column whose hash chooses the partition; None: all rows in partition 0
    """

    id: int
    stream: int
    name: str
    columns: tuple[Column, ...]
    key: str | None

    @property
    def arrow(self) -> pa.Schema:
        """Arrow schema of the stream's batches, without the reader's own columns."""
        return pa.schema([pa.field(column.name, column.type.arrow) for column in self.columns])

    def column(self, name: str) -> Column | None:
        """The column of that name, None where there is none."""
        return next((column for column in self.columns if column.name == name), None)


def _columns(**types: ColumnType) -> tuple[Column, ...]:
    return tuple(Column(name, type_) for name, type_ in types.items())


_T = ColumnType

#: The first version of `RAW_SCHEMA`: rows that an earlier Headwater wrote.
_RAW_SCHEMA_1: Final = Schema(
    1,
    RAW,
    "_raw",
    _columns(
        ts=_T.TIMESTAMP,
        topic=_T.STRING,
        client=_T.STRING,
        qos=_T.BIGINT,
        retain=_T.BOOLEAN,
        payload=_T.BINARY,
        request=_T.STRING,
    ),
    None,
)

#: Messages as they came, for readers that need the payload. `request` correlates a REST call, NULL from MQTT;
#: `properties`: encoded MQTT 5 properties without their length, NULL where there are none.
RAW_SCHEMA: Final = Schema(6, RAW, "_raw", (*_RAW_SCHEMA_1.columns, Column("properties", _T.BINARY)), None)

#: Payloads that could not be decoded. `ts` is the time of arrival.
DEAD_LETTERS_SCHEMA: Final = Schema(
    2,
    DEAD_LETTERS,
    "dead_letters",
    _columns(
        ts=_T.TIMESTAMP,
        stream=_T.STRING,
        topic=_T.STRING,
        client=_T.STRING,
        reason=_T.STRING,
        detail=_T.STRING,
        payload=_T.BINARY,
    ),
    None,
)

#: Messages for devices, which the gateway delivers to live subscribers.
DOWNLINK_SCHEMA: Final = Schema(
    3,
    DOWNLINK,
    "_downlink",
    _columns(ts=_T.TIMESTAMP, topic=_T.STRING, payload=_T.BINARY, qos=_T.BIGINT, retain=_T.BOOLEAN),
    None,
)

#: Steps of the stream engine, written in the same commit as the results they explain. `record`: JSON.
STEPS_SCHEMA: Final = Schema(
    4,
    STEPS,
    "_steps",
    _columns(ts=_T.TIMESTAMP, query=_T.STRING, step=_T.BIGINT, record=_T.STRING),
    None,
)

#: Dead letters whose readings were appended later, in the same commit. `id` names the letter (see `gateway.letters`),
#: `readings` counts its rows.
REPLAYS_SCHEMA: Final = Schema(
    5,
    REPLAYS,
    "dead_letter_replays",
    _columns(ts=_T.TIMESTAMP, id=_T.STRING, stream=_T.STRING, readings=_T.BIGINT),
    None,
)

#: Changes of durable MQTT sessions, for the gateway alone; see `docs/formats/sessions.md`. `session`: 0 where
#: it is of none.
SESSIONS_SCHEMA: Final = Schema(
    7,
    SESSIONS,
    "_sessions",
    _columns(ts=_T.TIMESTAMP, session=_T.BIGINT, change=_T.BINARY),
    None,
)

#: The product's own streams; their ids are fixed.
OWN_SCHEMAS: Final = (
    _RAW_SCHEMA_1,
    RAW_SCHEMA,
    DEAD_LETTERS_SCHEMA,
    DOWNLINK_SCHEMA,
    STEPS_SCHEMA,
    REPLAYS_SCHEMA,
    SESSIONS_SCHEMA,
)

#: Those that SQL sees as tables.
OWN_TABLES: Final = (DEAD_LETTERS_SCHEMA.name, REPLAYS_SCHEMA.name)

#: Columns that a log reader adds to every batch: dense key id, partition, offset in the partition.
READER_COLUMNS: Final = ("_key", "_partition", "_offset")

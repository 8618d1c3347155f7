"""Retained messages beyond the process: a reader of the log keeps the last one of each topic in the SQL database.

A retained message is a row of `_raw` in the commit that its PUBACK waits for, or of `_downlink`. Messages and offsets
are one transaction.

Devices do not wait for them. Once the gateway accepts, the keeper reads what the log had beyond the offsets at the
start, so that it has every message that was acknowledged, however the process before it ended, and then hands all of
them to the gateway, in pages. Subscriptions made meanwhile get theirs at the end of it; what devices retain meanwhile
is newer and stays.

Bounds: the gateway lets a topic in only while its table has room (`mqtt.max_retained_messages` and `_bytes`), so there
are no more here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
import structlog

from headwater.database import RETAINED, Database, load_offsets, save_offsets
from headwater.log.base import Log, Reader
from headwater.records import DOWNLINK, RAW, Offsets

logger = structlog.get_logger(__name__)

READER: Final = "retained"

#: Rows of a stream in one transaction.
BATCH_ROWS: Final = 4096
#: Messages handed over at once, and for how long in one step.
PAGE_ROWS: Final = 4096
_STEP_S: Final = 0.25

#: (topic, encoded MQTT 5 properties, payload, QoS, age in seconds)
StoredMessage = tuple[str, bytes, bytes, int, int]

#: Messages of the downlink carry no properties.
_COLUMNS: Final = {
    RAW: ("ts", "topic", "qos", "retain", "payload", "properties"),
    DOWNLINK: ("ts", "topic", "qos", "retain", "payload"),
}
_COMMIT_INTERVAL_US: Final = 1_000_000


class Table(Protocol):
    """What a gateway is of this: where the messages of before its start belong."""

    def restore(self, messages: Sequence[StoredMessage]) -> None: ...

    def retained_loaded(self) -> None: ...


class RetainedKeeper:
    """The retained messages of one gateway; all methods are called by one thread at a time.

    It is made before the gateway takes its first message, and told of it by `hand_over`.

    clock: microseconds UTC
    """

    def __init__(self, log: Log, database: Database, clock: Callable[[], int]) -> None:
        self._log = log
        self._database = database
        self._clock = clock
        self._readers: dict[int, Reader] = {}
        self._position: dict[int, Offsets] = {}
        #: Everything of before the start lies below.
        self._start = {stream: log.end(stream) for stream in _COLUMNS}
        #: Who is still to be given messages, and the topic of the last one it was given.
        self._table: Table | None = None
        self._given = ""
        self._given_count = 0
        self._began_s = time.monotonic()
        for stream in _COLUMNS:
            with database.read() as connection:
                offsets = load_offsets(connection, READER, stream)
            start = log.start(stream)
            self._position[stream] = tuple(map(max, offsets, start)) if offsets else start
        self._have_committed()

    def hand_over(self, table: Table) -> None:
        """From the next step on, this table is given every message of before the start, then told that it has all."""
        self._table = table

    def step(self) -> bool:
        """Keeps what is there, at most BATCH_ROWS rows of a stream, and hands over; True where there was something.

        raises: LogError, and what the database raises. Nothing is half done then: the next step goes on.
        """
        busy = self._read()
        if self._table is None or not self._has_read_to_start():
            return busy
        self._give(self._table)
        return True

    def _has_read_to_start(self) -> bool:
        return all(
            at >= start
            for stream, offsets in self._start.items()
            for at, start in zip(self._position[stream], offsets, strict=True)
        )

    def _give(self, table: Table) -> None:
        until = time.monotonic() + _STEP_S
        while time.monotonic() < until:
            messages = self.messages(self._given, PAGE_ROWS)
            table.restore(messages)
            self._given_count += len(messages)
            if len(messages) < PAGE_ROWS:
                table.retained_loaded()
                self._table = None
                took_s = round(time.monotonic() - self._began_s, 3)
                logger.info("retained messages loaded", messages=self._given_count, took_s=took_s)
                return
            self._given = messages[-1][0]

    def _read(self) -> bool:
        readers, self._readers = self._readers, {}  # a step that fails begins again from the position
        changes: dict[str, dict[str, Any]] = {}
        position = dict(self._position)
        busy = False
        for stream, columns in _COLUMNS.items():
            if stream == DOWNLINK and busy:
                break  # what devices said before comes first
            reader = readers.get(stream) or self._log.reader(stream, position[stream], columns)
            readers[stream] = reader
            batch = reader.read(BATCH_ROWS)
            if batch is not None:
                busy = True
                position[stream] = reader.offsets()
                changes |= _changes(batch)
        if changes:
            self._commit(changes, position)
        self._position, self._readers = position, readers
        if self._clock() - self._committed_us >= _COMMIT_INTERVAL_US:
            self.close()
        return busy

    def messages(self, after: str = "", most: int | None = None) -> list[StoredMessage]:
        """The messages that are kept, in the order of their topics.

        after: the topic behind which they begin
        most:  so many of them; None: all
        """
        at, now_us = RETAINED.c.at, self._clock()
        # The database counts the ages: a million rows are not looked into one by one here.
        age_s = sa.case((at > now_us, 0), else_=(now_us - at) // 1_000_000)
        kept = (
            sa.select(RETAINED.c.topic, RETAINED.c.properties, RETAINED.c.payload, RETAINED.c.qos, age_s)
            .where(RETAINED.c.topic > after)
            .order_by(RETAINED.c.topic)
            .limit(most)
        )
        with self._database.read() as connection:
            return [tuple(row) for row in connection.execute(kept)]

    def close(self) -> None:
        """Commits how far the log has been read."""
        if self._position != self._committed:
            self._commit({}, self._position)

    def _commit(self, changes: dict[str, dict[str, Any]], position: dict[int, Offsets]) -> None:
        with self._database.begin() as connection:
            if changes:
                gone = sa.delete(RETAINED).where(RETAINED.c.topic == sa.bindparam("topic_"))
                connection.execute(gone, [{"topic_": topic} for topic in changes])
            kept = [change for change in changes.values() if change["payload"]]
            if kept:
                connection.execute(sa.insert(RETAINED), kept)
            for stream, offsets in position.items():
                save_offsets(connection, READER, stream, offsets)
        self._position = position
        self._have_committed()

    def _have_committed(self) -> None:
        self._committed, self._committed_us = dict(self._position), self._clock()
        for stream, offsets in self._committed.items():
            self._log.hold(READER, stream, offsets)


def _changes(batch: pa.RecordBatch) -> dict[str, dict[str, Any]]:
    """The last retained message of each topic of the batch; an empty payload clears it."""
    mine = batch.filter(pc.fill_null(batch.column("retain"), False))
    rows = mine.set_column(mine.schema.get_field_index("ts"), "ts", mine.column("ts").cast(pa.int64()))
    return {
        row["topic"]: {
            "topic": row["topic"],
            "at": row["ts"],
            "qos": row["qos"] or 0,
            "properties": row.get("properties") or b"",
            "payload": row["payload"] or b"",
        }
        for row in rows.to_pylist()
    }

"""Retained messages beyond the process: a reader of the log keeps the last one of each topic in the SQL database.

A retained message is a row of `_raw` in the commit that its PUBACK waits for, or of `_downlink`. Messages and offsets
are one transaction. Before the gateway starts, what the log has beyond the offsets is read, so it begins with every
message that was acknowledged, however the process before it ended.

Bounds: the gateway lets a topic in only while its table has room (`mqtt.max_retained_messages` and `_bytes`), so there
are no more here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from headwater.database import RETAINED, Database, load_offsets, save_offsets
from headwater.log.base import Log, Reader
from headwater.records import DOWNLINK, RAW, Offsets

READER: Final = "retained"

#: Rows of a stream in one transaction.
BATCH_ROWS: Final = 4096

#: (topic, encoded MQTT 5 properties, payload, QoS, age in seconds)
StoredMessage = tuple[str, bytes, bytes, int, int]

#: Messages of the downlink carry no properties.
_COLUMNS: Final = {
    RAW: ("ts", "topic", "qos", "retain", "payload", "properties"),
    DOWNLINK: ("ts", "topic", "qos", "retain", "payload"),
}
_COMMIT_INTERVAL_US: Final = 1_000_000


class RetainedKeeper:
    """The retained messages of one gateway; all methods are called by one thread at a time.

    clock: microseconds UTC
    """

    def __init__(self, log: Log, database: Database, clock: Callable[[], int]) -> None:
        self._log = log
        self._database = database
        self._clock = clock
        self._readers: dict[int, Reader] = {}
        self._position: dict[int, Offsets] = {}
        for stream in _COLUMNS:
            with database.read() as connection:
                offsets = load_offsets(connection, READER, stream)
            start = log.start(stream)
            self._position[stream] = tuple(map(max, offsets, start)) if offsets else start
        self._have_committed()

    @classmethod
    def caught_up(cls, log: Log, database: Database, clock: Callable[[], int]) -> Self:
        """A keeper that has read the log to its end. raises: LogError, and what the database raises"""
        keeper = cls(log, database, clock)
        while keeper.step():
            pass
        return keeper

    def step(self) -> bool:
        """Keeps what is there, at most BATCH_ROWS rows of a stream; True where there was something.

        raises: LogError, and what the database raises. Nothing is half done then: the next step goes on.
        """
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

    def messages(self) -> list[StoredMessage]:
        """Every message that is kept."""
        at, now_us = RETAINED.c.at, self._clock()
        # The database counts the ages: a million rows are not looked into one by one here.
        age_s = sa.case((at > now_us, 0), else_=(now_us - at) // 1_000_000)
        kept = sa.select(RETAINED.c.topic, RETAINED.c.properties, RETAINED.c.payload, RETAINED.c.qos, age_s)
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

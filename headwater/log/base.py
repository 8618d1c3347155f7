"""What any log owes its users. The embedded log is the first implementation; Kafka has the same picture.

A log holds streams; a stream has partitions; a row is named by (stream, partition, offset). Rows of one key
share a partition and keep their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa

from headwater.records import Offsets, Schema


class Reader(Protocol):
    """Rows of one stream, from given offsets on, in an order that a second reader would see alike."""

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        """The next durable rows, None when there is nothing new. Never waits.

        columns: the stream's columns, then `_key` uint32, `_partition` uint16, `_offset` uint64
        raises:  LogCorruptError
        """

    def offsets(self) -> Offsets:
        """The next offset per partition after what was read."""


class Log(Protocol):
    """One log. All methods may be called from any thread."""

    def register(self, schema: Schema) -> None:
        """Makes a schema known; the same schema again is no error."""

    def append(self, parts: Sequence[tuple[Schema, pa.RecordBatch]]) -> None:
        """Appends rows of one or more streams, all or none, and returns once they are durable.

        raises: LogFullError (nothing stored, try again), LogError, RecordError
        """

    def reader(self, stream: int, offsets: Offsets, columns: Sequence[str] | None = None) -> Reader:
        """A reader from `offsets` on; an empty tuple means from the first row kept."""

    def end(self, stream: int) -> Offsets:
        """The durable end, per partition: what an acknowledged row is always below."""

    def start(self, stream: int) -> Offsets:
        """The first offset still kept, per partition."""

    def duplicates(self, stream: int) -> int:
        """Rows left out since the log was opened because they repeat an earlier one."""

    def hold(self, reader: str, stream: int, offsets: Offsets) -> None:
        """Declares that `reader` still needs rows from `offsets` on; the log trims only below all of them."""

    def key_id(self, key: str) -> int | None:
        """The id by which `_key` of batches names this key; None: there are no rows of it."""

    def release(self, reader: str, stream: int) -> None:
        """Takes back what `reader` has declared: it needs no rows of this stream."""

    def wait(self, seen: int, timeout_s: float) -> int:
        """The number of the last durable commit, as soon as it is above `seen`, else at the timeout."""

    def close(self) -> None:
        """Writes what is queued, then stops."""

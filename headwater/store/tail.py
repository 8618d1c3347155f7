"""The tail of one stream: rows read from the log that no file holds yet."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import numpy as np
import pyarrow as pa

from headwater.latency import Latency
from headwater.log.base import Reader
from headwater.records import READER_COLUMNS, Offsets, Schema

#: Batches are joined until they have this many rows. DuckDB scans 2M rows in batches of 8,192 as fast as in batches of
#: 65,536, of 2,048 a fifth slower; and a query waits for the joining, which in larger ones touches new memory. Ours.
_JOINED_ROWS = 8_192

#: The log's ids of the keys, kept beside the rows in memory: how the rows of one device are found without reading them
#: all. First, because DuckDB counts rows by reading the first column, and no other is so short.
KEY: Final = pa.field("_key", pa.uint32(), nullable=False)


class Tail:
    """Rows of `schema`, in the order of the log, from the offset where the table's files end.

    Not safe for use by two threads; the store's lock is around it.

    latency: observes the rows as they come in, where the stream says when they arrived
    offsets: where the rows read end, per partition
    since:   time at which the oldest row came in here, microseconds UTC; None when empty
    """

    def __init__(self, schema: Schema, reader: Reader, start: Offsets, latency: Latency) -> None:
        self._schema = schema.arrow
        self._kept = _kept(self._schema)
        self._reader = reader
        self._latency = latency
        self.offsets = start
        self.since: int | None = None
        self.rows = 0
        self.bytes = 0
        self._batches: list[pa.RecordBatch] = []
        self._frozen: list[pa.RecordBatch] = []

    def read(self, max_rows: int, now_us: int) -> int:
        """Takes the next rows of the log, at most about `max_rows`; returns how many. raises: LogError"""
        batch = self._reader.read(max_rows)
        if batch is None:
            return 0
        self.offsets = self._reader.offsets()
        if batch.num_rows:
            names = [name for name in batch.schema.names if name not in READER_COLUMNS]
            if len(names) > len(self._schema):
                self._widen(pa.schema([batch.schema.field(name) for name in names]))
            # A column that the stream declares no more is NULL until the table is made anew.
            gone = not set(self._schema.names).issubset(names)
            batch = _widened(batch, self._kept) if gone else batch.select(self._kept.names)
            if "received_at" in batch.schema.names:
                self._latency.observe(batch.column("received_at"), now_us)
            self._batches.append(batch)
            self._join()
            self.rows += batch.num_rows
            self.bytes += batch.nbytes
            self.since = now_us if self.since is None else self.since
        return int(batch.num_rows)

    def _widen(self, schema: pa.Schema) -> None:
        """The stream has got columns, which are NULL in the rows that are here already."""
        self._schema, self._kept = schema, _kept(schema)
        self._batches = [_widened(batch, self._kept) for batch in self._batches]
        self._frozen = [_widened(batch, self._kept) for batch in self._frozen]

    @property
    def schema(self) -> pa.Schema:
        """The columns of the rows here."""
        return self._schema

    @property
    def waiting(self) -> int:
        """Rows that are not being written already."""
        return self.rows - sum(int(batch.num_rows) for batch in self._frozen)

    def table(self) -> pa.Table:
        """All rows, `_key` before their columns; later changes of the tail do not show in it."""
        return pa.Table.from_batches([*self._frozen, *self._batches], self._kept)

    def freeze(self) -> tuple[pa.Table, Offsets]:
        """The rows to be written now, and where they end. They stay in the tail until `drop` or `thaw`."""
        self._frozen, self._batches = self._batches, []
        self.since = None
        return pa.Table.from_batches(self._frozen, self._kept).select(self._schema.names), self.offsets

    def drop(self) -> None:
        """Forgets the frozen rows: a file holds them."""
        self.rows -= sum(batch.num_rows for batch in self._frozen)
        self.bytes -= sum(batch.nbytes for batch in self._frozen)
        self._frozen = []

    def thaw(self, since_us: int) -> None:
        """Takes the frozen rows back: they could not be written."""
        self._frozen, self._batches = [], [*self._frozen, *self._batches]
        self.since = since_us

    def _join(self) -> None:
        """Keeps the number of batches at the logarithm of the rows (as a binary counter carries)."""
        while len(self._batches) > 1:
            before, last = self._batches[-2:]
            if before.num_rows >= _JOINED_ROWS or before.num_rows > 2 * last.num_rows:
                return
            self._batches[-2:] = [pa.concat_batches([before, last])]


def of_keys(rows: pa.Table, ids: Collection[int]) -> pa.Table:
    """Those rows of `Tail.table` that have one of these keys."""
    found = []
    for batch in rows.to_batches():
        keys = batch.column(0).to_numpy()
        wanted = np.zeros(len(keys), np.bool_)
        for each in ids:
            wanted |= keys == each
        if wanted.any():
            found.append(batch.filter(pa.array(wanted)))
    return pa.Table.from_batches(found, rows.schema)


def _kept(schema: pa.Schema) -> pa.Schema:
    return pa.schema([KEY, *schema])


def _widened(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    names = set(batch.schema.names)
    columns = [
        batch.column(field.name) if field.name in names else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)

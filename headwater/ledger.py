"""The books of captured topic levels: rows by site, line or whatever level a stream's `books` names.

The ledger reads the log on its own, behind offsets of its own, and counts the rows of each value. The store counts
what its files and its memory hold. Both sides are compared at one point of the log, so a row that the store lost, or
has twice, shows under the value it belongs to. Counts and offsets are committed together and hold over restarts.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import sqlalchemy as sa

from headwater.database import LEDGER, OFFSETS, Database, load_offsets, save_offsets
from headwater.declarations import StreamSettings
from headwater.log.base import Log, Reader
from headwater.records import Offsets, Schema
from headwater.store import counts
from headwater.store.base import Store

READER: Final = "ledger/"
#: Values of one level that are counted each on its own, the first ones seen. Ours.
MAX_VALUES: Final = 1_000
#: Stands for all further values, and for rows without one.
OTHERS: Final = counts.NONE
_READ_ROWS: Final = 65_536
#: Least time between two commits, microseconds: what is read after the last one is read again by the next start.
_COMMIT_US: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class LevelAccount:
    """The books of one value of one level: decoded = stored + in_flight. Rows that `dedupe` left out are in no term.

    decoded:   rows of the log that the ledger has counted
    stored:    rows in the table's files
    in_flight: rows that the store holds in memory
    """

    decoded: int
    stored: int
    in_flight: int

    @property
    def balanced(self) -> bool:
        """Whether no row is missing and none is there twice."""
        return self.decoded == self.stored + self.in_flight


class Ledger:
    """Counts for the streams that ask for it. Its methods may be called from any thread.

    streams: those whose `books` names levels are counted
    clock:   microseconds UTC
    """

    def __init__(
        self,
        log: Log,
        database: Database,
        store: Store,
        streams: Mapping[str, StreamSettings],
        schemas: Mapping[str, Schema],
        clock: Callable[[], int],
    ) -> None:
        self._log, self._database, self._store = log, database, store
        self._clock = clock
        self._books: dict[str, _Book] = {}
        self.change(streams, schemas)

    def change(self, streams: Mapping[str, StreamSettings], schemas: Mapping[str, Schema]) -> None:
        """Counts for these streams from now on, between two steps; books of levels that stay go on."""
        books = {}
        for name, stream in streams.items():
            if not stream.books:
                continue
            levels, known = tuple(stream.books), self._books.get(name)
            if known is not None and known.columns == levels:
                books[name] = known
            else:
                books[name] = _Book(self._log, self._database, self._store, schemas[name], levels)
        for book in set(self._books.values()) - set(books.values()):
            book.forget()
        self._books = books

    def step(self) -> bool:
        """Counts what the store has read meanwhile; False when that was nothing."""
        did = False
        for book in self._books.values():
            did |= book.count(self._store.visible(book.schema.stream))
            book.commit(self._clock())
        return did

    def close(self) -> None:
        """Commits what is counted."""
        for book in self._books.values():
            book.commit(None)

    def accounts(self, name: str) -> dict[str, dict[str, LevelAccount]]:
        """By level and value, the books of a stream, all at one point of the log; empty where none are asked for."""
        book = self._books.get(name)
        return book.accounts() if book is not None else {}


class _Book:
    """One stream's counts."""

    def __init__(
        self, log: Log, database: Database, store: Store, schema: Schema, columns: tuple[str, ...]
    ) -> None:
        self.schema = schema
        self._log, self._database, self._store, self.columns = log, database, store, columns
        self._lock = threading.Lock()
        # With other levels the books are opened anew.
        self._name = READER + ",".join(sorted(columns))
        self._counts: dict[str, Counter[str]] = {column: Counter() for column in columns}
        with database.read() as connection:
            self._at: Offsets = load_offsets(connection, self._name, schema.stream)
            rows = connection.execute(sa.select(LEDGER).where(LEDGER.c.stream == schema.stream)).all()
        if any(at < first for at, first in zip(self._at, log.start(schema.stream), strict=False)):
            self._at = ()  # not counted for a time in which the log went on
        for row in rows if self._at else ():
            self._counts[row.level][row.value] = row.rows
        self._committed = self._at
        self._committed_us = 0
        if not self._at:
            # What is there when the books are opened is their opening balance.
            held = store.count_by(schema.name, columns)
            for column in columns:
                self._add(column, held.stored[column] + held.in_memory[column])
            self._at = held.offsets
        self._reader: Reader = log.reader(schema.stream, self._at, columns)
        #: Read, but behind the point up to which rows were counted.
        self._ahead: list[pa.RecordBatch] = []
        log.hold(self._name, schema.stream, self._at)

    def count(self, end: Offsets) -> bool:
        """Counts up to `end`, as far as that is ahead. raises: LogError"""
        with self._lock:
            return self._count(end)

    def _count(self, end: Offsets) -> bool:
        end = tuple(map(max, self._at, end))
        if end == self._at:
            return False
        self._ahead = [rest for batch in self._ahead if (rest := self._take(batch, end)) is not None]
        while any(at < wanted for at, wanted in zip(self._reader.offsets(), end, strict=True)):
            batch = self._reader.read(_READ_ROWS)
            if batch is None:
                break
            rest = self._take(batch, end)
            if rest is not None:
                self._ahead.append(rest)
        self._at = end
        return True

    def _take(self, batch: pa.RecordBatch, end: Offsets) -> pa.RecordBatch | None:
        """Counts the rows below `end` and gives the others."""
        if not batch.num_rows:
            return None
        ends = np.array(end, np.uint64)[batch.column("_partition").to_numpy()]
        below = batch.column("_offset").to_numpy() < ends
        counted = batch if below.all() else batch.filter(pa.array(below))
        for column in self.columns:
            self._add(column, counts.values(counted.column(column)))
        return None if below.all() else batch.filter(pa.array(~below))

    def _add(self, column: str, found: Counter[str]) -> None:
        known = self._counts[column]
        for value, rows in found.items():
            known[value if value in known or len(known) < MAX_VALUES else OTHERS] += rows

    def commit(self, now_us: int | None) -> None:
        """Makes the counts durable; now_us: unless that was done less than a second ago."""
        with self._lock:
            if self._at == self._committed:
                return
            if now_us is not None and 0 <= now_us - self._committed_us < _COMMIT_US:
                return
            rows = [
                {"stream": self.schema.stream, "level": column, "value": value, "rows": count}
                for column, known in self._counts.items()
                for value, count in known.items()
            ]
            with self._database.begin() as connection:
                self._clear(connection)
                if rows:
                    connection.execute(sa.insert(LEDGER), rows)
                save_offsets(connection, self._name, self.schema.stream, self._at)
            self._committed, self._committed_us = self._at, now_us or 0
            self._log.hold(self._name, self.schema.stream, self._at)

    def forget(self) -> None:
        """Ends the books: the log needs to keep nothing for them, and others begin with an opening balance."""
        with self._database.begin() as connection:
            self._clear(connection)
        self._log.release(self._name, self.schema.stream)

    def _clear(self, connection: sa.Connection) -> None:
        stream = self.schema.stream
        connection.execute(sa.delete(LEDGER).where(LEDGER.c.stream == stream))
        connection.execute(
            sa.delete(OFFSETS).where(OFFSETS.c.stream == stream, OFFSETS.c.reader.startswith(READER))
        )

    def accounts(self) -> dict[str, dict[str, LevelAccount]]:
        with self._lock:
            # Not below what is counted: rows that are durable are read by the store first.
            held = self._store.count_by(self.schema.name, self.columns)
            self._count(held.offsets)
            found: dict[str, dict[str, LevelAccount]] = {}
            for column, known in self._counts.items():
                stored, in_memory = (_among(known, side[column]) for side in (held.stored, held.in_memory))
                found[column] = {
                    value: LevelAccount(known[value], stored[value], in_memory[value])
                    for value in sorted({*known, *stored, *in_memory})
                }
            return found


def _among(known: Mapping[str, int], found: Counter[str]) -> Counter[str]:
    """`found`, with what is not known under `OTHERS`, if there are others."""
    among: Counter[str] = Counter()
    for value, rows in found.items():
        among[value if value in known or len(known) < MAX_VALUES else OTHERS] += rows
    return among

"""What any store owes its users. The embedded store is the first implementation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from headwater.latency import Latency
from headwater.records import Column, Offsets, Schema


@dataclass(frozen=True, slots=True)
class Table:
    """One table as the API shows it.

    columns:       as SQL sees them, in their order
    rows_stored:   rows ever committed to files (from offsets, so a later deletion does not lower it)
    rows_tail:     rows read from the log and not yet in a file
    files, bytes:  of the committed data files
    flushed_at_us: when the last file of this process was committed, microseconds UTC; None: none yet
    path:          where the open table lies; empty where the store has no files
    """

    name: str
    columns: tuple[Column, ...]
    rows_stored: int
    rows_tail: int
    files: int
    bytes: int
    flushed_at_us: int | None
    path: str


@dataclass(frozen=True, slots=True)
class Account:
    """The books of one table's rows: decoded = stored + duplicates + in_flight. Each term is a count of its own.

    decoded:    rows ever durable in the log, and duplicates left out since the start
    stored:     rows in the table's files
    duplicates: rows left out since the start because `dedupe` found them twice
    in_flight:  rows held in memory, and rows of the log not yet read
    """

    decoded: int
    stored: int
    duplicates: int
    in_flight: int

    @property
    def balanced(self) -> bool:
        """Whether no row is missing and none is there twice."""
        return self.decoded == self.stored + self.duplicates + self.in_flight


@dataclass(frozen=True, slots=True)
class Held:
    """Rows of one table by the values of some text columns, counted at one point of the log.

    offsets:   that point: where the rows read end, per partition
    stored:    by column and value, rows in the table's files; a NULL counts under "#"
    in_memory: likewise, rows that no file holds yet
    """

    offsets: Offsets
    stored: dict[str, Counter[str]]
    in_memory: dict[str, Counter[str]]


class Store(Protocol):
    """Tables of streams and queries, fed from the log, read by SQL. All methods may be called from any thread.

    latency: from a reading's arrival until a query sees it without reading the log
    """

    latency: Latency

    def create(self, schema: Schema, latest_by: tuple[str, ...] = ()) -> None:
        """Makes the table of that stream exist, empty at first; again with more columns: they are added.

        schema:    registered in the log before
        latest_by: for a query's result: SQL sees, per value of these columns, only the row with the highest
                   `revision` (0 for the final one, below it early ones), and not the column `revision`
        raises:    StoreError; LogError when the log no longer holds rows that the table still needs
        """

    def drop(self, name: str) -> None:
        """Removes a table with its rows, for good; one that is not there is fine. raises: StoreError"""

    def step(self) -> bool:
        """Takes what is new in the log and commits what is due; False when there was nothing to do. Never waits."""

    def flush(self) -> None:
        """Commits every row that was durable in the log before the call, in whatever amount."""

    def query(self, sql: str, params: Sequence[object] = ()) -> pa.Table:
        """The result of one read-only SELECT over the tables of this store.

        Every row that was acknowledged before the call is in the answer, and all tables of one query are read
        at one point: no row twice, none missing. Timestamps are microseconds in UTC.

        params:  values of `?` in their order, or of $1, $2, ...
        raises:  SqlError (not accepted, or failed, with position where known), QueryLimitError (time, rows,
                 memory), StoreError (a stored file is damaged: names it)
        """

    def stored(self, stream: int) -> Offsets:
        """Where the committed rows of a stream end, per partition."""

    def visible(self, stream: int) -> Offsets:
        """Where the rows that a query now sees without reading the log end, per partition; >= stored."""

    def catch_up(self) -> None:
        """Reads every row that was durable in the log before the call, so that `visible` covers it.

        raises: StoreError, LogError
        """

    def account(self, name: str) -> Account:
        """The books of one table, at one point. raises: NotFoundError"""

    def count_by(self, name: str, columns: Sequence[str]) -> Held:
        """Counts the rows of a table by each of these text columns; reads first what is durable in the log.

        raises: NotFoundError, StoreError, LogError
        """

    def tables(self) -> list[Table]:
        """All tables, by name."""

    def messages(self) -> list[str]:
        """What opening repaired, one line each, for the operator."""

    def close(self) -> None:
        """Ends running queries. Rows not yet flushed stay in the log, from where the next start takes them."""

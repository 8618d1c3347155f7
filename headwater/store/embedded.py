"""The embedded store: Delta Lake tables on the local disk, and DuckDB over their files and the log's tail.

Way of a row: log -> tail (in memory) -> sorted Parquet file -> Delta transaction with the log offsets -> only then
may the log forget it. A query reads the committed files and the tail under one lock-protected snapshot, so that a flush
beside it neither doubles nor hides a row.

Locks, in the order in which they may be taken: `_flushing` (one flush at a time, held while it writes), then `_lock`
(tails and lists of files, held for short).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headwater import durable
from headwater.config import QuerySettings, StoreSettings
from headwater.errors import NotFoundError, StoreError
from headwater.latency import Latency
from headwater.log.base import Log
from headwater.records import Column, ColumnType, Offsets, Schema
from headwater.store import counts, guard, parquet, prune
from headwater.store.base import Account, Held, Table
from headwater.store.connections import Connections, Query
from headwater.store.delta import DataFile, StoredTable
from headwater.store.tail import Tail, of_keys

#: Name of the store among the log's readers.
READER: Final = "store"

#: Rows taken from the log at a time, while queries wait for the lock. Ours.
_READ_ROWS: Final = 262_144

_HOUR_US: Final = 3_600_000_000
#: Ending of the directory of a table that is being removed.
_PURGED: Final = ".purged"

_SQL_TYPE: Final = {
    ColumnType.DOUBLE: "DOUBLE",
    ColumnType.BIGINT: "BIGINT",
    ColumnType.BOOLEAN: "BOOLEAN",
    ColumnType.STRING: "VARCHAR",
    ColumnType.TIMESTAMP: "TIMESTAMP WITH TIME ZONE",
    ColumnType.BINARY: "BLOB",
}


@dataclass(slots=True)
class _Entry:
    """One table. `files` and `tail` change together, under the store's lock."""

    schema: Schema
    latest_by: tuple[str, ...]
    stored: StoredTable
    tail: Tail
    files: tuple[DataFile, ...]
    held: Offsets
    flushed_at: int | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        """The declared columns and those inferred since, then those that only older files have."""
        found = {column.name: column for column in self.schema.columns}
        for each in self.tail.schema:
            found.setdefault(each.name, Column(each.name, ColumnType.of_arrow(each.type)))
        for column in self.stored.columns:
            found.setdefault(column.name, column)
        return tuple(found.values())

    @property
    def shown(self) -> tuple[Column, ...]:
        """The columns that SQL sees."""
        return tuple(c for c in self.columns if not (self.latest_by and c.name == "revision"))


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What one query sees of one table."""

    entry: _Entry
    files: tuple[DataFile, ...]
    tail: pa.Table = field(repr=False)
    #: Where the tail ends.
    offsets: Offsets


class EmbeddedStore:
    """`store.base.Store` in `directory`, fed from `log`.

    clock:  microseconds UTC
    raises: OSError when the directory cannot be made
    """

    def __init__(
        self,
        log: Log,
        directory: Path,
        settings: StoreSettings,
        query: QuerySettings,
        clock: Callable[[], int],
    ) -> None:
        self._log = log
        self._directory = directory.absolute() / "tables"
        self._settings = settings
        self._clock = clock
        self._flushing = threading.Lock()
        self._lock = threading.Lock()
        self.latency = Latency()
        self._entries: dict[str, _Entry] = {}
        self._messages: list[str] = []
        #: By file and column, rows by value: a file never changes.
        self._counts: dict[tuple[Path, str], Counter[str]] = {}
        #: Files whose bytes this process has seen to be whole.
        self._verified: set[Path] = set()
        durable.make_directory(self._directory)
        for gone in self._directory.glob(f".*{_PURGED}"):
            durable.remove(gone)
        self._connections = Connections(self._directory, query)

    def create(self, schema: Schema, latest_by: tuple[str, ...] = ()) -> None:
        with self._flushing, self._lock:
            stored = StoredTable(self._directory / schema.name, schema.name, schema.columns)
            self._messages += stored.messages
            start = self._log.start(schema.stream)
            offsets = stored.offsets(len(start))
            if offsets is None:
                offsets = start
                if any(start):
                    self._messages.append(
                        f"table {schema.name!r} is new and begins at offsets {start}: the log has no rows before them"
                    )
            # Also when the table is known: its unflushed rows are read again, with the new columns.
            tail = Tail(schema, self._log.reader(schema.stream, offsets), offsets, self.latency)
            self._log.hold(READER, schema.stream, offsets)
            self._entries[schema.name] = _Entry(schema, latest_by, stored, tail, stored.files, offsets)

    def drop(self, name: str) -> None:
        with self._flushing, self._lock:
            entry = self._entries.pop(name, None)
            if entry is not None:
                self._log.release(READER, entry.schema.stream)
        directory = self._directory / name
        try:
            # Under another name first: half a table must never be opened.
            if directory.exists():
                gone = directory.with_name(f".{name}{_PURGED}")
                if gone.exists():
                    durable.remove(gone)
                directory.rename(gone)
                durable.sync_directory(self._directory)
                durable.remove(gone)
        except OSError as error:
            raise StoreError(f"removing table {name!r} in {directory}: {error}") from error

    def step(self) -> bool:
        did = False
        for entry in self._all():
            while True:
                with self._lock:
                    taken = 0 if self._full(entry) else entry.tail.read(_READ_ROWS, self._clock())
                did |= taken > 0
                if not taken:
                    break
        return self._flush_due() or did

    def flush(self) -> None:
        self._snapshot(frozenset(self._entries))
        with self._flushing:
            for entry in self._all():
                self._flush(entry)

    def query(self, sql: str, params: Sequence[object] = ()) -> pa.Table:
        with self._connections.borrow() as query:
            checked = guard.check(query.cursor, sql, list(self._entries))
            # One transaction, so that now() means the same when files are chosen and when rows are.
            query.cursor.begin()
            snapshots = self._snapshot(checked.tables)
            keys = prune.keys(checked, _key_columns(snapshots), params)
            if any(len(snapshot.files) > 1 for snapshot in snapshots):
                try:
                    spans = prune.spans(query.cursor, checked, params)
                except duckdb.Error:
                    # The query itself will say what is wrong with the constant.
                    query.cursor.rollback()
                    query.cursor.begin()
                    spans = {}
            else:
                spans = {}
            for snapshot in snapshots:
                name = snapshot.entry.schema.name
                files = _within(snapshot, spans.get(name, prune.ALL))
                self._verify(snapshot.entry, files)
                tail = snapshot.tail
                if name in keys:
                    ids = (self._log.key_id(key) for key in keys[name])
                    tail = of_keys(tail, [each for each in ids if each is not None])
                _create_view(query, snapshot.entry, files, tail)
            return query.run(checked, params)

    def stored(self, stream: int) -> Offsets:
        return self._of(stream).held

    def visible(self, stream: int) -> Offsets:
        with self._lock:
            return self._of(stream).tail.offsets

    def catch_up(self) -> None:
        self._snapshot(frozenset(self._entries))

    def account(self, name: str) -> Account:
        entry = self._entries.get(name)
        if entry is None:
            raise NotFoundError(f"the store has no table {name!r}; create it first")
        with self._lock:
            decoded = sum(self._log.end(entry.schema.stream))
            in_flight = entry.tail.rows + decoded - sum(entry.tail.offsets)
            duplicates = self._log.duplicates(entry.schema.stream)
            stored = sum(file.rows for file in entry.files)
            return Account(decoded + duplicates, stored, duplicates, in_flight)

    def count_by(self, name: str, columns: Sequence[str]) -> Held:
        if name not in self._entries:
            raise NotFoundError(f"the store has no table {name!r}; create it first")
        [snapshot] = self._snapshot(frozenset([name]))
        self._verify(snapshot.entry, snapshot.files)
        stored: dict[str, Counter[str]] = {column: Counter() for column in columns}
        for file in snapshot.files:
            for column in columns:
                stored[column].update(self._of_file(file, column))
        in_memory = {column: counts.values(snapshot.tail[column]) for column in columns}
        return Held(snapshot.offsets, stored, in_memory)

    def _of_file(self, file: DataFile, column: str) -> Counter[str]:
        found = self._counts.get((file.path, column))
        if found is None:
            if column in file.columns:
                try:
                    found = counts.of_file(file.path, column)
                except (OSError, pa.ArrowException) as error:
                    raise StoreError(f"counting the rows of {file.path} by {column}: {error}") from error
            else:
                found = Counter({counts.NONE: file.rows})
            self._counts[file.path, column] = found
        return found

    def tables(self) -> list[Table]:
        with self._lock:
            return [
                Table(
                    name=name,
                    columns=entry.shown,
                    rows_stored=sum(entry.held),
                    rows_tail=entry.tail.rows,
                    files=len(entry.files),
                    bytes=sum(file.size for file in entry.files),
                    flushed_at_us=entry.flushed_at,
                    path=str(entry.stored.directory),
                )
                for name, entry in sorted(self._entries.items())
            ]

    def messages(self) -> list[str]:
        return list(self._messages)

    def close(self) -> None:
        self._connections.close()
        with self._flushing, self._lock:
            self._entries.clear()

    def _all(self) -> list[_Entry]:
        with self._lock:
            return list(self._entries.values())

    def _of(self, stream: int) -> _Entry:
        for entry in list(self._entries.values()):
            if entry.schema.stream == stream:
                return entry
        raise NotFoundError(f"the store has no table of stream {stream}; create it first")

    # Flush

    def _full(self, entry: _Entry) -> bool:
        """Whether the tail must be flushed before it takes more. Under `_lock`."""
        if entry.tail.waiting >= self._settings.flush_rows:
            return True
        return sum(each.tail.bytes for each in self._entries.values()) >= self._settings.flush_bytes

    def _flush_due(self) -> bool:
        """Flushes what has reached a bound in rows, bytes or time."""
        did = False
        with self._flushing:
            now = self._clock()
            entries = sorted(self._all(), key=lambda entry: -entry.tail.bytes)
            for entry in entries:
                self._settle(entry)
                with self._lock:
                    since = entry.tail.since
                    late = since is not None and now - since >= self._settings.flush_interval
                    due = since is not None and (late or self._full(entry))
                if due:
                    self._flush(entry)
                    did = True
        return did

    def _flush(self, entry: _Entry) -> None:
        """Commits the rows of the tail. Under `_flushing`. raises: StoreError; the rows are then still in the tail"""
        self._settle(entry)
        now = self._clock()
        with self._lock:
            rows, offsets = entry.tail.freeze()
        if not rows.num_rows:
            return
        stored, key = entry.stored, entry.schema.key
        try:
            if len(entry.columns) > len(stored.columns):
                stored.evolve(entry.columns)
            written = []
            for number, (hour, part) in enumerate(_by_hour(rows, now)):
                stem = stored.stem(number, part.column_names)
                written.append((hour, parquet.write(stored.hour_directory(hour), stem, part, key)))
            stored.commit(written, offsets, now)
        except BaseException as error:
            with self._lock:
                if stored.offsets(len(offsets)) == offsets:
                    # The error came after the commit: the rows are in the table, though perhaps not yet on disk.
                    entry.files = stored.files
                    entry.tail.drop()
                else:
                    entry.tail.thaw(now)
            if isinstance(error, (OSError, pa.ArrowException)):
                raise StoreError(
                    f"writing {rows.num_rows} rows of table {entry.schema.name!r}: {error}"
                ) from error
            raise
        with self._lock:
            self._verified.update(file.path for file in stored.files[len(entry.files) :])
            entry.files = stored.files
            entry.tail.drop()
            entry.flushed_at = now
        self._hold(entry, offsets)

    def _settle(self, entry: _Entry) -> None:
        """Finishes a commit whose fsync failed."""
        offsets = entry.stored.offsets(len(entry.held))
        if offsets is not None and offsets != entry.held:
            entry.stored.settle()
            self._hold(entry, offsets)

    def _hold(self, entry: _Entry, offsets: Offsets) -> None:
        """The log may forget rows below `offsets`. Only after the commit that holds them is on disk."""
        self._log.hold(READER, entry.schema.stream, offsets)
        entry.held = offsets

    # Query

    def _snapshot(self, names: frozenset[str]) -> list[_Snapshot]:
        """Files and tails of these tables at one point, which is not before now."""
        entries = [self._entries[name] for name in sorted(names)]
        ends = [self._log.end(entry.schema.stream) for entry in entries]
        while True:
            with self._lock:
                if all(self._catch_up(entry, end) for entry, end in zip(entries, ends, strict=True)):
                    return [
                        _Snapshot(entry, entry.files, entry.tail.table(), entry.tail.offsets)
                        for entry in entries
                    ]
            self._flush_due()

    def _catch_up(self, entry: _Entry, end: Offsets) -> bool:
        """Reads the log up to `end`; False when the tail is full before. Under `_lock`."""
        while any(at < target for at, target in zip(entry.tail.offsets, end, strict=True)):
            if self._full(entry):
                return False
            if not entry.tail.read(_READ_ROWS, self._clock()):
                raise StoreError(
                    f"reading the log for table {entry.schema.name!r}: nothing after {entry.tail.offsets},"
                    f" though it ends at {end}"
                )
        return True

    def _verify(self, entry: _Entry, files: Sequence[DataFile]) -> None:
        """Looks at the checksum of a file before this process first uses it. raises: StoreError"""
        for file in files:
            if file.path not in self._verified:
                parquet.verify(file.path, entry.schema.name)
                self._verified.add(file.path)


def _by_hour(rows: pa.Table, now_us: int) -> Iterator[tuple[str, pa.Table]]:
    """Rows by the hour in which they arrived: `received_at`, and where there is none, now.

    By arrival and not by event time, so that neither a backfill nor a lying clock decides the number of files.
    """
    if "received_at" not in rows.column_names:
        yield _hour(now_us // _HOUR_US), rows
        return
    arrived = pc.fill_null(rows["received_at"].cast(pa.int64()), now_us)
    ends = pc.min_max(arrived)
    first, last = ends["min"].as_py() // _HOUR_US, ends["max"].as_py() // _HOUR_US
    if first == last:
        yield _hour(first), rows
        return
    hours = arrived.to_numpy() // _HOUR_US
    for hour in np.unique(hours):
        yield _hour(int(hour)), rows.filter(pa.array(hours == hour))


def _hour(number: int) -> str:
    """Hour since the epoch as a partition value.

    >>> _hour(498_694)
    '2026-11-21T22'
    """
    return parquet.iso(number * _HOUR_US)[:13]


def _within(snapshot: _Snapshot, span: prune.Span) -> list[DataFile]:
    """The files that may hold rows with `ts` in the span."""
    low, high = span
    latest_by = snapshot.entry.latest_by
    if latest_by and not {"ts", "window_end"} & set(latest_by):
        # A newer revision of the same row could lie outside the span.
        return list(snapshot.files)
    return [
        file
        for file in snapshot.files
        if not (low is not None and file.high_us is not None and file.high_us < low)
        and not (high is not None and file.low_us is not None and file.low_us > high)
    ]


def _key_columns(snapshots: Sequence[_Snapshot]) -> dict[str, str]:
    """By table the column by whose text its rows in memory can be chosen."""
    found = {}
    for snapshot in snapshots:
        entry, key = snapshot.entry, snapshot.entry.schema.key
        texts = any(
            column.name == key and column.type is ColumnType.STRING for column in entry.schema.columns
        )
        # A newer revision of the same row must not have another key.
        if key is not None and texts and (not entry.latest_by or key in entry.latest_by):
            found[entry.schema.name] = key.lower()
    return found


def _create_view(query: Query, entry: _Entry, files: Sequence[DataFile], rows: pa.Table) -> None:
    """Makes the table visible to the query as one view over its files and its rows in memory."""
    name = entry.schema.name
    groups: dict[frozenset[str], list[Path]] = {}
    for file in files:
        groups.setdefault(file.columns, []).append(file.path)
    # The narrowest column first: DuckDB counts rows by reading the first one.
    columns_first = sorted(entry.columns, key=lambda column: column.name != "ts")
    parts = [
        f"SELECT {_select(columns_first, columns)} FROM read_parquet([{_quoted(paths)}], hive_partitioning = false)"
        for columns, paths in groups.items()
    ]
    tail = f"_tail_{name}"
    parts.append(f'SELECT {_select(columns_first, frozenset(rows.column_names))} FROM "{tail}"')
    union = " UNION ALL ".join(parts)
    shown = ", ".join(f'"{column.name}"' for column in entry.shown)
    newest = ""
    # Most tables never see an amended window or an early result; then every row is the latest of its key.
    if entry.latest_by and _amended(rows, files):
        keys = ", ".join(f'"{column}"' for column in entry.latest_by)
        newest = f" QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY revision DESC) = 1"
    query.view(name, f"SELECT {shown} FROM ({union}){newest}", {tail: rows})


def _amended(tail: pa.Table, files: Sequence[DataFile]) -> bool:
    found = pc.min_max(tail["revision"]).as_py()
    return any(file.revised for file in files) or bool(found["min"] or found["max"])


def _select(columns: Sequence[Column], held: frozenset[str]) -> str:
    return ", ".join(
        f'"{column.name}"'
        if column.name in held
        else f'CAST(NULL AS {_SQL_TYPE[column.type]}) AS "{column.name}"'
        for column in columns
    )


def _quoted(paths: Sequence[Path]) -> str:
    return ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths)

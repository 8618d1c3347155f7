"""DuckDB connections that can do nothing but read our tables: the second and third wall behind `guard`.

A connection may read below the directory of tables and nowhere else, loads no extension, sees no Python variable, and
its settings cannot be changed. DuckDB's directory list also permits writing there (COPY, ATTACH: tried with 2.0.0),
so this wall alone is not enough: only text that `guard` has judged is run.
"""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

from headwater.config import QuerySettings
from headwater.errors import QueryLimitError, SqlError, StoreError
from headwater.store.guard import Checked

#: Rows per batch that a result is fetched in: time and row limits are looked at between two of them. Ours.
_BATCH_ROWS: Final = 16_384


class Connections:
    """At most `settings.concurrent` DuckDB instances, each with the memory of one query, used by one query at a time.

    An instance costs 30 to 60 ms to open, so it is kept; what a query registers lives in a cursor of its own and
    ends with it, so that a query never meets an object of an earlier one.
    """

    def __init__(self, directory: Path, settings: QuerySettings) -> None:
        self._directory = directory
        self._settings = settings
        self._slots = threading.BoundedSemaphore(settings.concurrent)
        self._lock = threading.Lock()
        self._idle: list[duckdb.DuckDBPyConnection] = []
        self._running: set[duckdb.DuckDBPyConnection] = set()
        self._deadlines = _Deadlines()
        self._closed = False

    @contextlib.contextmanager
    def borrow(self) -> Iterator[Query]:
        """A connection for one query; waits for a free one within the time limit.

        raises: QueryLimitError, StoreError
        """
        deadline = time.monotonic() + self._settings.timeout / 1e6
        if not self._slots.acquire(timeout=self._settings.timeout / 1e6):
            raise QueryLimitError(
                f"{self._settings.concurrent} queries were running for all of {self._settings.timeout / 1e6:g} s;"
                " try again, or raise query.concurrent"
            )
        try:
            with self._lock:
                if self._closed:
                    raise StoreError("the store is closed; no query runs any more")
                instance = self._idle.pop() if self._idle else None
            instance = instance or _open(self._directory, self._settings)
            cursor = instance.cursor()
            try:
                with self._lock:
                    self._running.add(cursor)
                yield Query(cursor, self._settings, deadline, self._deadlines, self._directory)
            finally:
                with self._lock:
                    self._running.discard(cursor)
                cursor.close()
            with self._lock:
                if not self._closed:
                    self._idle.append(instance)
        finally:
            self._slots.release()

    def close(self) -> None:
        """Interrupts running queries and refuses new ones."""
        with self._lock:
            self._closed = True
            for cursor in self._running:
                cursor.interrupt()
            idle, self._idle = self._idle, []
        self._deadlines.close()
        for instance in idle:
            instance.close()


class _Deadlines:
    """One thread for all queries, which interrupts those that run too long. A thread a query costs it a millisecond."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: dict[duckdb.DuckDBPyConnection, float] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    @contextlib.contextmanager
    def watch(self, cursor: duckdb.DuckDBPyConnection, deadline: float) -> Iterator[None]:
        """Meanwhile the cursor's query is interrupted when the time, by the monotonic clock, has come."""
        with self._changed:
            first = min(self._running.values(), default=float("inf"))
            self._running[cursor] = deadline
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="query deadlines", daemon=True)
                self._thread.start()
            elif deadline < first:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._running.pop(cursor, None)

    def close(self) -> None:
        """Ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                for cursor in [cursor for cursor, deadline in self._running.items() if deadline <= now]:
                    del self._running[cursor]
                    cursor.interrupt()
                first = min(self._running.values(), default=None)
                self._changed.wait(None if first is None else first - now)


class Query:
    """One query on a connection of its own."""

    def __init__(
        self,
        cursor: duckdb.DuckDBPyConnection,
        settings: QuerySettings,
        deadline: float,
        deadlines: _Deadlines,
        directory: Path,
    ) -> None:
        self.cursor = cursor
        self._deadlines = deadlines
        self._settings = settings
        self._deadline = deadline
        self._directory = directory

    def view(self, name: str, select: str, objects: Mapping[str, pa.Table]) -> None:
        """Lets the query see `select` as table `name`. objects: Arrow tables that `select` names."""
        for object_name, table in objects.items():
            self.cursor.register(object_name, table)
        with self._errors():
            self.cursor.execute(f'CREATE TEMP VIEW "{name}" AS {select}').fetchall()

    def run(self, checked: Checked, params: Sequence[object]) -> pa.Table:
        """The whole result. raises: SqlError, QueryLimitError, StoreError"""
        limit = self._settings.max_rows
        batches: list[pa.RecordBatch] = []
        rows = size = 0
        with self._errors(), self._limit(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            reader = self.cursor.execute(checked.sql, list(params)).to_arrow_reader(_BATCH_ROWS)
            for batch in reader:
                rows += batch.num_rows
                size += batch.nbytes
                if rows > limit:
                    raise QueryLimitError(
                        f"the result has more than {limit} rows; add LIMIT or a condition, or raise query.max_rows"
                    )
                if size > self._settings.memory_bytes:
                    raise QueryLimitError(
                        f"the result is larger than {self._settings.memory_bytes} bytes; select less,"
                        " or raise query.memory_bytes"
                    )
                if time.monotonic() > self._deadline:
                    raise self._timeout()
                batches.append(batch)
            return pa.Table.from_batches(batches, reader.schema)

    def _limit(self) -> contextlib.AbstractContextManager[None]:
        if time.monotonic() >= self._deadline:
            raise self._timeout()
        return self._deadlines.watch(self.cursor, self._deadline)

    def _timeout(self) -> QueryLimitError:
        return QueryLimitError(
            f"the query ran longer than {self._settings.timeout / 1e6:g} s; narrow it, for instance by ts,"
            " or raise query.timeout"
        )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except duckdb.InterruptException:
            if time.monotonic() < self._deadline:
                raise StoreError("the store was closed while the query ran") from None
            raise self._timeout() from None
        except (duckdb.OutOfMemoryException, MemoryError):
            raise QueryLimitError(
                f"the query needs more than {self._settings.memory_bytes} bytes; narrow it, or raise query.memory_bytes"
            ) from None
        except (
            duckdb.IOException,
            duckdb.SerializationException,
            duckdb.FatalException,
            duckdb.InternalException,
        ) as error:
            raise StoreError(f"reading a table failed: {self._text(error)}") from error
        except duckdb.Error as error:
            if ".parquet" in str(error):
                raise StoreError(f"a stored file is damaged: {self._text(error)}") from error
            raise SqlError(self._text(error)) from None
        except pa.ArrowException as error:
            raise StoreError(f"reading a query's result failed: {self._text(error)}") from error

    def _text(self, error: Exception) -> str:
        """DuckDB's message without its picture of the line, without our paths and object names."""
        text = str(error).split("\n\nLINE ", 1)[0].split("\nDatabase is launched", 1)[0].strip()
        return text.replace(f"{self._directory}/", "").replace(str(self._directory), "")


def _open(directory: Path, settings: QuerySettings) -> duckdb.DuckDBPyConnection:
    """An instance that reads below `directory` only. raises: StoreError"""
    try:
        instance = duckdb.connect(
            ":memory:",
            config={
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "allow_community_extensions": "false",
                "python_enable_replacements": "false",
                "temp_directory": "",
                "memory_limit": f"{settings.memory_bytes}B",
            },
        )
        quoted = str(directory).replace("'", "''")
        for statement in (
            "SET GLOBAL TimeZone = 'UTC'",
            "SET parquet_metadata_cache = true",
            f"SET allowed_directories = ['{quoted}/']",
            "SET enable_external_access = false",
            "SET lock_configuration = true",
        ):
            instance.execute(statement).fetchall()
    except duckdb.Error as error:
        raise StoreError(f"opening DuckDB: {error}") from error
    return instance

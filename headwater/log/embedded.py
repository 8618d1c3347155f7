"""The embedded log: segments on the local disk, written by the native commit thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from headwater import _native, durable
from headwater.config import LogSettings
from headwater.records import Column, ColumnType, Offsets, Schema

#: A field that messages have shown: its column, the column's type, its path in the payload.
InferredField = tuple[str, str, str]


class EmbeddedReader:
    """`log.base.Reader` over native segments."""

    def __init__(self, native: _native.LogReader) -> None:
        self._native = native

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        return self._native.read(max_rows)

    def offsets(self) -> Offsets:
        return tuple(self._native.offsets())


class EmbeddedLog:
    """`log.base.Log` over native segments in `directory`.

    raises: DataDirectoryError when another process has it open, LogCorruptError, LogError
    """

    def __init__(self, directory: Path, settings: LogSettings, schemas: Sequence[Schema]) -> None:
        durable.make_directory(directory)
        self.native = _native.Log(
            str(directory),
            partitions=settings.partitions,
            durability=settings.durability,
            commit_bytes=settings.commit_bytes,
            commit_interval_us=round(settings.commit_interval_ms * 1000),
            segment_bytes=settings.segment_bytes,
            queue_bytes=settings.queue_bytes,
            retention_bytes=settings.retention_bytes,
            disk_max_bytes=settings.disk_max_bytes,
            max_keys=settings.max_keys,
            schemas=[_native_schema(schema) for schema in schemas],
        )

    def recovery(self) -> dict[str, Any]:
        """What opening found: `epoch`, `segments`, `keys`, `bytes_read`, `torn_tail` (text or None), `took_ms`."""
        return self.native.recovery()

    def register(self, schema: Schema) -> None:
        self.native.register(*_native_schema(schema))

    def dedupe(
        self, schema: Schema, columns: Sequence[str], window_us: int, max_keys: int, now_us: int
    ) -> None:
        """Leaves out, from now on, rows that repeat an earlier one within the window. raises: ConfigError, LogError"""
        self.native.dedupe(schema.id, list(columns), window_us, max_keys, now_us)

    def dedupe_end(self, stream: int) -> None:
        """Stores rows of the stream from now on however often they come."""
        self.native.dedupe_end(stream)

    def duplicates(self, stream: int) -> int:
        return self.native.dedupe_stats(stream)["duplicates"]

    def inferred(self, stream: int) -> list[InferredField]:
        """Fields that messages of the stream have shown so far, in the order of their columns."""
        return self.native.inferred(stream)[1]

    def infer(self, schema: Schema, fields: Sequence[InferredField]) -> Schema:
        """Gives the stream of `schema` further columns, durably; its newest schema. raises: LogError"""
        newest = self.newest(schema)
        # Somebody else may have been faster: then the caller looks again at what is missing.
        if len(newest.columns) == len(schema.columns):
            self.native.infer(newest.id, list(fields))
        return self.newest(schema)

    def newest(self, schema: Schema) -> Schema:
        """The newest schema of the stream of `schema`, which it extends by fields inferred since."""
        id_, fields = self.native.inferred(schema.stream)
        known = {column.name for column in schema.columns}
        added = tuple(Column(name, ColumnType(type_)) for name, type_, _ in fields if name not in known)
        return replace(schema, id=id_, columns=schema.columns + added) if added else schema

    def append(self, parts: Sequence[tuple[Schema, pa.RecordBatch]]) -> None:
        self.native.append([(schema.id, batch) for schema, batch in parts])

    def reader(self, stream: int, offsets: Offsets, columns: Sequence[str] | None = None) -> EmbeddedReader:
        at = list(offsets) or self.native.start(stream)
        return EmbeddedReader(self.native.reader(stream, at, None if columns is None else list(columns)))

    def end(self, stream: int) -> Offsets:
        return tuple(self.native.end(stream))

    def start(self, stream: int) -> Offsets:
        return tuple(self.native.start(stream))

    def hold(self, reader: str, stream: int, offsets: Offsets) -> None:
        self.native.hold(reader, stream, list(offsets))

    def release(self, reader: str, stream: int) -> None:
        """`reader` needs nothing of the stream any more."""
        self.native.release(reader, stream)

    def key_id(self, key: str) -> int | None:
        return self.native.key_id(key)

    def hold_all(self, reader: str) -> None:
        """Keeps every row until `release_all`: holds end with their process, and at a start one reader after the other
        says what it holds; the first must not let go what the last one needs."""
        self.native.hold_all(reader)

    def release_all(self, reader: str) -> None:
        self.native.release_all(reader)

    def wait(self, seen: int, timeout_s: float) -> int:
        return self.native.wait(seen, timeout_s)

    def close(self) -> None:
        self.native.close()


def _native_schema(schema: Schema) -> tuple[int, int, str, list[tuple[str, str]], str | None]:
    columns = [(column.name, column.type.value) for column in schema.columns]
    return schema.id, schema.stream, schema.name, columns, schema.key

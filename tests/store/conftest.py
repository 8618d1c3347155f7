"""A real log in a temporary directory, tables of readings, and stores over them that can be opened again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headwater.config import LogSettings, QuerySettings, StoreSettings
from headwater.log.embedded import EmbeddedLog
from headwater.records import OWN_SCHEMAS, Schema
from headwater.store.embedded import EmbeddedStore
from tests.tables import table

READINGS = table(
    "readings", "device string, ts timestamp, received_at timestamp, value double, count bigint, ok boolean"
)
WINDOWS = table(
    "windows",
    "device string, window_start timestamp, window_end timestamp, mean double, ts timestamp, revision bigint",
    17,
)

#: 2026-11-23T22:00:00Z in microseconds.
NOW = 1_795_471_200_000_000


def batch(schema: Schema, rows: Sequence[dict[str, Any]]) -> pa.RecordBatch:
    """Rows of a stream; times are given in microseconds."""
    return pa.RecordBatch.from_arrays(
        [pa.array([row.get(field.name) for row in rows], field.type) for field in schema.arrow],
        schema=schema.arrow,
    )


def reading(device: str | None, ts: int, value: float | None = 1.0, **more: Any) -> dict[str, Any]:
    return {"device": device, "ts": NOW + ts, "received_at": NOW + ts, "value": value, **more}


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def open_log(directory: Path, schemas: Sequence[Schema] = (READINGS, WINDOWS)) -> EmbeddedLog:
    return EmbeddedLog(directory, LogSettings(partitions=2, segment_bytes=1 << 20), [*OWN_SCHEMAS, *schemas])


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EmbeddedLog]:
    log = open_log(tmp_path / "log")
    yield log
    log.close()


Opener = Callable[..., EmbeddedStore]


@pytest.fixture
def opener(tmp_path: Path, log: EmbeddedLog, clock: Clock) -> Iterator[Opener]:
    """Opens a store with both tables, in `tmp_path` or another directory; all are closed at the end."""
    stores = []

    def open_store(
        directory: Path = tmp_path, query: QuerySettings | None = None, **settings: Any
    ) -> EmbeddedStore:
        store = EmbeddedStore(
            log, directory, StoreSettings(**settings), query or QuerySettings(concurrent=1), clock
        )
        stores.append(store)
        store.create(READINGS)
        store.create(WINDOWS, latest_by=("device", "window_start", "window_end"))
        return store

    yield open_store
    for store in stores:
        store.close()


@pytest.fixture
def store(opener: Opener) -> EmbeddedStore:
    return opener()

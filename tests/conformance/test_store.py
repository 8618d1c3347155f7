"""What every store owes, run over each implementation: the embedded one now; servers join under a marker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from headwater.config import QuerySettings, StoreSettings
from headwater.errors import HeadwaterError, NotFoundError, QueryLimitError, SqlError
from headwater.log.embedded import EmbeddedLog
from headwater.store.base import Store
from headwater.store.embedded import EmbeddedStore
from tests.store.conftest import READINGS, WINDOWS, Clock, batch, open_log, reading

Open = Callable[[], Store]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EmbeddedLog]:
    log = open_log(tmp_path / "log")
    yield log
    log.close()


@pytest.fixture(params=["embedded"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, log: EmbeddedLog) -> Iterator[Open]:
    """Opens the implementation over the same durable state each time; both tables are created."""
    stores: list[Store] = []

    def open_store() -> Store:
        assert request.param == "embedded"
        query = QuerySettings(max_rows=1000, concurrent=1)
        store = EmbeddedStore(log, tmp_path, StoreSettings(), query, Clock())
        store.create(READINGS)
        store.create(WINDOWS, latest_by=("device", "window_start", "window_end"))
        stores.append(store)
        return store

    yield open_store
    for store in stores:
        store.close()


def count(store: Store) -> int:
    return int(store.query("SELECT count(*) AS n FROM readings").column("n")[0].as_py())


def test_tables_are_there_and_empty_from_the_start(opened: Open) -> None:
    store = opened()
    assert [table.name for table in store.tables()] == ["readings", "windows"]
    assert store.query("SELECT * FROM readings").schema.equals(READINGS.arrow)
    assert count(store) == 0


def test_creating_again_changes_nothing(opened: Open, log: EmbeddedLog) -> None:
    store = opened()
    log.append([(READINGS, batch(READINGS, [reading("a", 1)]))])
    store.step()
    store.create(READINGS)
    assert count(store) == 1


@pytest.mark.parametrize("between", ["nothing", "step", "flush", "open again"])
def test_every_acknowledged_row_is_in_the_answer_once(opened: Open, log: EmbeddedLog, between: str) -> None:
    store = opened()
    for n in range(1, 6):
        log.append([(READINGS, batch(READINGS, [reading(f"d{i}", n, float(i)) for i in range(4)]))])
        if between == "step":
            store.step()
        elif between == "flush":
            store.flush()
        elif between == "open again":
            store.flush()
            store.close()
            store = opened()
        assert count(store) == 4 * n
    total = store.query("SELECT sum(value) AS s FROM readings").column("s")[0].as_py()
    assert total == 5 * (0 + 1 + 2 + 3)


def test_values_come_back_as_they_were(opened: Open, log: EmbeddedLog) -> None:
    rows = [
        reading("a", 0, 0.1, count=2**63 - 1, ok=True),
        reading("a", 0, -0.0, count=-(2**63), ok=False),
        reading("ü" * 300, -1, 5e-324),
        reading("", 1, 1.7976931348623157e308),
        reading("z", 2, None),
    ]
    expected = pa.Table.from_batches([batch(READINGS, rows)])
    store = opened()
    log.append([(READINGS, expected.to_batches()[0])])
    order = [("ts", "ascending"), ("device", "ascending"), ("count", "ascending")]
    for _ in range(2):
        found = store.query("SELECT * FROM readings").sort_by(order)
        assert found.to_pylist() == expected.sort_by(order).to_pylist()
        store.flush()


def test_stored_follows_visible(opened: Open, log: EmbeddedLog) -> None:
    store = opened()
    log.append([(READINGS, batch(READINGS, [reading("a", 1)]))])
    store.step()
    assert store.visible(READINGS.stream) == log.end(READINGS.stream)
    store.flush()
    assert store.stored(READINGS.stream) == store.visible(READINGS.stream) == log.end(READINGS.stream)
    assert store.tables()[0].rows_stored == 1
    with pytest.raises(NotFoundError):
        store.stored(999)


def test_a_query_sees_the_latest_revision(opened: Open, log: EmbeddedLog) -> None:
    store = opened()
    for revision in range(3):
        row = {
            "device": "a",
            "window_start": 0,
            "window_end": 60,
            "mean": revision / 2,
            "ts": 59,
            "revision": revision,
        }
        log.append([(WINDOWS, batch(WINDOWS, [row]))])
        found = store.query("SELECT * FROM windows").to_pylist()
        assert [row["mean"] for row in found] == [revision / 2]
        assert "revision" not in found[0]
        if revision == 1:
            store.flush()


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("DELETE FROM readings", SqlError),
        ("SELECT * FROM nowhere", SqlError),
        ("SELECT nowhere FROM readings", SqlError),
        ("SELECT 'x'::DOUBLE", SqlError),
        ("SELECT * FROM range(1001)", QueryLimitError),
    ],
)
def test_refusals(opened: Open, sql: str, error: type[HeadwaterError]) -> None:
    with pytest.raises(error):
        opened().query(sql)

"""Rows by SQL are the rows appended, whatever is flushed, closed and opened between."""

from __future__ import annotations

import threading
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.config import QuerySettings
from headwater.errors import QueryLimitError, SqlError, StoreError
from headwater.log.embedded import EmbeddedLog
from headwater.records import DEAD_LETTERS_SCHEMA, Column, ColumnType, Schema
from headwater.store.embedded import EmbeddedStore
from tests.store.conftest import NOW, READINGS, WINDOWS, Clock, Opener, batch, open_log, reading

HOUR = 3_600_000_000


def append(log: EmbeddedLog, *rows: dict[str, object]) -> None:
    log.append([(READINGS, batch(READINGS, rows))])


def values(store: EmbeddedStore, sql: str = "SELECT value FROM readings ORDER BY ts, value") -> list[object]:
    return [row[0] for row in zip(*store.query(sql).to_pydict().values(), strict=True)]


def test_a_new_table_is_empty_and_typed(store: EmbeddedStore) -> None:
    table = store.query("SELECT * FROM readings")
    assert table.num_rows == 0
    assert table.schema.equals(READINGS.arrow)


def test_an_acknowledged_row_is_seen_without_a_step(store: EmbeddedStore, log: EmbeddedLog) -> None:
    append(log, reading("a", 1, 2.5, ok=True), reading("b", 0, None, count=7))
    assert store.query("SELECT device, ts, value, count, ok FROM readings ORDER BY device").to_pylist() == [
        {"device": "a", "ts": _at(1), "value": 2.5, "count": None, "ok": True},
        {"device": "b", "ts": _at(0), "value": None, "count": 7, "ok": None},
    ]


def _at(ts: int) -> object:
    return pa.scalar(NOW + ts, pa.timestamp("us", "UTC")).as_py()


def test_files_and_tail_are_one_table(store: EmbeddedStore, log: EmbeddedLog) -> None:
    append(log, reading("a", 1, 1.0))
    store.flush()
    append(log, reading("a", 2, 2.0))
    assert values(store) == [1.0, 2.0]
    assert sum(store.stored(READINGS.stream)) == 1
    assert sum(store.visible(READINGS.stream)) == 2


def test_step_flushes_by_rows(opener: Opener, log: EmbeddedLog) -> None:
    store = opener(flush_rows=3)
    append(log, reading("a", 1), reading("a", 2))
    assert store.step()
    assert sum(store.stored(READINGS.stream)) == 0
    append(log, reading("a", 3))
    assert store.step()
    assert sum(store.stored(READINGS.stream)) == 3
    assert not store.step()


def test_step_flushes_by_time(opener: Opener, log: EmbeddedLog, clock: Clock) -> None:
    store = opener(flush_interval=60_000_000)
    append(log, reading("a", 1))
    store.step()
    clock.now += 59_999_999
    assert not store.step()
    clock.now += 1
    assert store.step()
    assert sum(store.stored(READINGS.stream)) == 1


def test_step_flushes_by_bytes_over_all_tables(opener: Opener, log: EmbeddedLog) -> None:
    store = opener(flush_bytes=1 << 20)
    append(log, *(reading("a" * 50, i) for i in range(20_000)))
    while store.step():
        pass
    assert sum(store.stored(READINGS.stream)) > 0
    assert sum(table.rows_tail for table in store.tables()) < 20_000
    assert values(store, "SELECT count(*) FROM readings") == [20_000]


def test_a_query_flushes_a_tail_that_is_full(opener: Opener, log: EmbeddedLog) -> None:
    store = opener(flush_rows=10)
    for at in range(0, 100, 5):
        append(log, *(reading("a", at + i, float(at + i)) for i in range(5)))
    assert values(store) == [float(i) for i in range(100)]


def test_the_log_is_held_back_only_by_rows_not_yet_committed(
    opener: Opener, log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {}
    monkeypatch.setattr(log, "hold", lambda reader, stream, offsets: held.update({(reader, stream): offsets}))
    store = opener()
    append(log, reading("a", 1))
    store.step()
    assert sum(held["store", READINGS.stream]) == 0
    store.flush()
    assert held["store", READINGS.stream] == log.end(READINGS.stream) == store.stored(READINGS.stream)


def test_opened_again_it_goes_on_where_the_table_ends(opener: Opener, log: EmbeddedLog) -> None:
    first = opener()
    append(log, reading("a", 1, 1.0))
    first.flush()
    append(log, reading("a", 2, 2.0))
    first.step()
    first.close()
    second = opener()
    assert values(second) == [1.0, 2.0]
    second.flush()
    assert values(second) == [1.0, 2.0]
    assert second.messages() == []


def test_partition_is_the_hour_of_arrival(store: EmbeddedStore, log: EmbeddedLog, clock: Clock) -> None:
    clock.now = NOW + 3 * HOUR
    append(
        log,
        reading("a", -1000 * HOUR) | {"received_at": NOW},
        reading("a", 1000 * HOUR) | {"received_at": NOW + HOUR - 1},
        reading("b", 0) | {"received_at": NOW + HOUR},
        reading("c", 0) | {"received_at": None},
    )
    store.flush()
    table = DeltaTable(store.tables()[0].path)
    hours = sorted(row["partition.hour"] for row in pa.table(table.get_add_actions(flatten=True)).to_pylist())
    assert hours == ["2026-11-23T22", "2026-11-23T23", "2026-11-24T01"]
    assert values(store, "SELECT count(*) FROM readings") == [4]


def test_files_are_sorted_by_device_and_time(store: EmbeddedStore, log: EmbeddedLog) -> None:
    append(log, *(reading(f"d{i * 7 % 11:02}", i * 31 % 101) for i in range(500)))
    store.flush()
    (uri,) = DeltaTable(store.tables()[0].path).file_uris()
    rows = duckdb.sql(f"SELECT device, ts FROM read_parquet('{uri}')").to_arrow_table().to_pylist()
    keys = [(row["device"] or "", row["ts"]) for row in rows]
    assert keys == sorted(keys)
    assert len(keys) == 500


def test_the_table_is_open(store: EmbeddedStore, log: EmbeddedLog) -> None:
    """deltalake, DuckDB over the table's list of files and our SQL give equal rows."""
    append(
        log,
        *(reading(f"d{i % 5}", i, i / 3, count=-i, ok=i % 2 == 0) for i in range(300)),
    )
    store.flush()
    append(log, *(reading("new", i, None) for i in range(20)))
    store.flush()
    order = [("device", "ascending"), ("ts", "ascending"), ("value", "ascending")]
    ours = store.query("SELECT * FROM readings").sort_by(order)
    table = DeltaTable(store.tables()[0].path)
    columns = READINGS.arrow.names
    by_deltalake = table.to_pyarrow_table().select(columns).cast(READINGS.arrow).sort_by(order)
    files = ", ".join(f"'{uri}'" for uri in table.file_uris())
    by_duckdb = duckdb.sql(f"SELECT {', '.join(columns)} FROM read_parquet([{files}])").to_arrow_table()
    assert ours.num_rows == 320
    assert by_deltalake.equals(ours)
    assert by_duckdb.cast(READINGS.arrow).sort_by(order).equals(ours)
    assert str(table.schema().fields[1].type) == 'PrimitiveType("timestamp")'
    assert table.metadata().partition_columns == ["hour"]


def test_rows_without_a_key(store: EmbeddedStore, log: EmbeddedLog) -> None:
    append(log, reading(None, 1, 1.0))
    append(log, reading(None, 2, 2.0))
    assert values(store) == [1.0, 2.0]
    store.flush()
    assert values(store) == [1.0, 2.0]


def test_dead_letters_are_a_table(store: EmbeddedStore, log: EmbeddedLog) -> None:
    store.create(DEAD_LETTERS_SCHEMA)
    letter = {
        "ts": NOW,
        "stream": "readings",
        "topic": "t",
        "client": "c",
        "reason": "invalid-json",
        "payload": b"\xff{",
    }
    log.append([(DEAD_LETTERS_SCHEMA, batch(DEAD_LETTERS_SCHEMA, [letter]))])
    sql = "SELECT reason, payload, detail FROM dead_letters"
    before = store.query(sql).to_pylist()
    store.flush()
    assert (
        store.query(sql).to_pylist()
        == before
        == [{"reason": "invalid-json", "payload": b"\xff{", "detail": None}]
    )


def test_only_the_latest_revision_shows(store: EmbeddedStore, log: EmbeddedLog) -> None:
    def amend(device: str, mean: float, revision: int) -> None:
        row = {"device": device, "window_start": NOW, "window_end": NOW + 60_000_000, "mean": mean,
               "ts": NOW + 59_999_000, "revision": revision}  # fmt: skip
        log.append([(WINDOWS, batch(WINDOWS, [row]))])

    sql = "SELECT * FROM windows ORDER BY device"

    def means() -> dict[str, float]:
        return {row["device"]: row["mean"] for row in store.query(sql).to_pylist()}

    amend("b", 7.0, -(1 << 31))
    amend("b", 8.0, 1 - (1 << 31))
    assert means() == {"b": 8.0}
    store.flush()
    assert means() == {"b": 8.0}
    amend("a", 1.0, 0)
    amend("b", 9.0, 0)
    assert means() == {"a": 1.0, "b": 9.0}
    store.flush()
    amend("a", 2.0, 1)
    assert means() == {"a": 2.0, "b": 9.0}
    store.flush()
    assert means() == {"a": 2.0, "b": 9.0}
    amend("a", 3.0, 2)
    assert means() == {"a": 3.0, "b": 9.0}
    assert store.query(sql).schema.names == ["device", "window_start", "window_end", "mean", "ts"]
    assert [c.name for c in store.tables()[1].columns] == [
        "device",
        "window_start",
        "window_end",
        "mean",
        "ts",
    ]
    with pytest.raises(SqlError, match="revision"):
        store.query("SELECT revision FROM windows")


def test_the_hour_is_hidden(store: EmbeddedStore) -> None:
    with pytest.raises(SqlError, match="hour"):
        store.query("SELECT hour FROM readings")


def test_a_field_added_later_is_null_before(opener: Opener, log: EmbeddedLog) -> None:
    store = opener()
    append(log, reading("a", 1))
    store.flush()
    append(log, reading("b", 2))
    store.step()
    wider = Schema(18, 16, "readings", (*READINGS.columns, Column("humidity", ColumnType.DOUBLE)), "device")
    log.register(wider)
    store.create(wider)
    log.append([(wider, batch(wider, [reading("c", 3) | {"humidity": 0.5}]))])
    sql = "SELECT device, humidity FROM readings ORDER BY device"
    expected = {"device": ["a", "b", "c"], "humidity": [None, None, 0.5]}
    assert store.query(sql).to_pydict() == expected
    store.flush()
    assert store.query(sql).to_pydict() == expected
    assert DeltaTable(store.tables()[0].path).to_pyarrow_table().column("humidity").null_count == 2


def test_a_field_that_is_gone_stays_readable(opener: Opener, log: EmbeddedLog) -> None:
    store = opener()
    append(log, reading("a", 1, count=5))
    store.flush()
    narrower = Schema(18, 16, "readings", tuple(c for c in READINGS.columns if c.name != "count"), "device")
    log.register(narrower)
    store.create(narrower)
    log.append([(narrower, batch(narrower, [reading("b", 2)]))])
    assert store.query("SELECT device, count FROM readings ORDER BY device").to_pydict() == {
        "device": ["a", "b"],
        "count": [5, None],
    }


def test_a_column_never_changes_type(opener: Opener, log: EmbeddedLog) -> None:
    store = opener()
    columns = tuple(
        Column(c.name, ColumnType.STRING if c.name == "value" else c.type) for c in READINGS.columns
    )
    with pytest.raises(StoreError, match="'value' is stored as double and now declared string"):
        store.create(Schema(18, 16, "readings", columns, "device"))


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT value FROM readings WHERE ts >= '2026-11-23T23:00:00Z' AND ts < '2026-11-24T00:00:00Z'",
        "SELECT value FROM readings r WHERE r.ts BETWEEN TIMESTAMPTZ '2026-11-23 23:00+00' AND '2026-11-23T23:59Z'",
        "SELECT value FROM readings WHERE TIMESTAMP '2026-11-23 23:30:00' = ts AND value > 0",
        "SELECT value FROM readings WHERE ts > $1 AND ts < $2",
        "SELECT value FROM (SELECT * FROM readings WHERE ts > '2026-11-23T22:30:00Z') WHERE ts < '2026-11-24'",
        "WITH readings AS (FROM readings) SELECT value FROM readings WHERE ts >= '2026-11-23T23:00Z' AND value < 2",
        "SELECT received_at AS ts, value FROM readings WHERE ts > '2026-11-23T23:00:00Z' AND ts < '2026-11-24'",
        "SELECT value FROM readings WHERE NOT (ts < '2026-11-23T23:00:00Z' OR ts >= '2026-11-24')",
    ],
)
def test_files_outside_the_time_of_a_query_are_left_out_and_no_row_with_them(
    store: EmbeddedStore, log: EmbeddedLog, sql: str
) -> None:
    for hour in range(4):
        append(log, reading("a", hour * HOUR + HOUR // 2, float(hour)))
        store.flush()
    params = ["2026-11-23T23:00:00Z", "2026-11-24T00:00:00Z"] if "$1" in sql else []
    assert store.query(sql, params).column("value").to_pylist() == [1.0]


def test_pruned_files_are_not_opened(store: EmbeddedStore, log: EmbeddedLog) -> None:
    for hour in range(3):
        append(log, reading("a", hour * HOUR, float(hour)))
        store.flush()
    oldest = sorted(Path(store.tables()[0].path).rglob("*.parquet"))[0]
    oldest.unlink()
    assert values(store, "SELECT value FROM readings WHERE ts > '2026-11-23T22:30:00Z' ORDER BY ts") == [
        1.0,
        2.0,
    ]
    with pytest.raises(StoreError, match=oldest.name[:20]):
        store.query("SELECT value FROM readings")


def test_a_flipped_bit_is_an_error_that_names_the_file(opener: Opener, log: EmbeddedLog) -> None:
    store = opener()
    append(log, *(reading("a", i, i * 0.37) for i in range(1000)))
    store.flush()
    (path,) = Path(store.tables()[0].path).rglob("*.parquet")
    whole = path.read_bytes()
    store.close()
    for at in range(0, len(whole), len(whole) // 20):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(StoreError, match=path.name):
            opener().query("SELECT sum(value) FROM readings")


def test_parameters(store: EmbeddedStore, log: EmbeddedLog) -> None:
    append(log, reading("a", 1, 1.0), reading("b", 2, 2.0))
    assert store.query("SELECT value FROM readings WHERE device = ?", ["b"]).to_pydict() == {"value": [2.0]}
    assert store.query("SELECT $2 - $1 AS x", [1, 3]).to_pydict() == {"x": [2]}
    with pytest.raises(SqlError):
        store.query("SELECT ?", [])


def test_row_limit(opener: Opener) -> None:
    store = opener(query=QuerySettings(max_rows=100, concurrent=1))
    assert store.query("SELECT * FROM range(100)").num_rows == 100
    with pytest.raises(QueryLimitError, match="more than 100 rows"):
        store.query("SELECT * FROM range(101)")


def test_time_limit(opener: Opener) -> None:
    store = opener(query=QuerySettings(timeout=500_000, concurrent=1))
    with pytest.raises(QueryLimitError, match=r"longer than 0\.5 s"):
        store.query("SELECT count(*) FROM range(1000000000) a, range(1000000) b")
    assert store.query("SELECT 1 AS x").to_pydict() == {"x": [1]}


def test_memory_limit(opener: Opener) -> None:
    store = opener(query=QuerySettings(memory_bytes=1 << 26, concurrent=1))
    with pytest.raises(QueryLimitError, match="needs more than 67108864 bytes"):
        store.query(
            "SELECT count(*) FROM (SELECT DISTINCT a.range, b.range FROM range(100000) a, range(1000) b)"
        )
    with pytest.raises(QueryLimitError, match="larger than 67108864 bytes"):
        store.query("SELECT md5(range::VARCHAR) || md5((range + 1)::VARCHAR) FROM range(1000000)")


@pytest.mark.parametrize(
    "sql", ["SELECT nope FROM readings", "SELECT * FROM readings WHERE ts > 'x'", "SELECT 'x'::INT"]
)
def test_what_duckdb_refuses_is_an_sql_error_without_paths(
    store: EmbeddedStore, tmp_path: Path, log: EmbeddedLog, sql: str
) -> None:
    append(log, reading("a", 1))
    store.flush()
    append(log, reading("a", 2))
    store.flush()
    with pytest.raises(SqlError) as refused:
        store.query(sql)
    assert str(tmp_path) not in str(refused.value)
    assert values(store, "SELECT count(*) FROM readings") == [2]


def test_the_lock_down_holds_without_the_guard(store: EmbeddedStore, tmp_path: Path) -> None:
    """What the guard would refuse: reading outside the tables, changing settings, loading, Python's variables."""
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    variable = pa.table({"x": [1]})
    assert variable.num_rows == 1
    with store._connections.borrow() as query:
        for sql in (
            f"SELECT * FROM read_csv('{secret}')",
            f"SELECT * FROM '{secret}'",
            f"COPY (SELECT 1) TO '{tmp_path}/out.csv'",
            f"ATTACH '{tmp_path}/x.db'",
            "SET enable_external_access = true",
            "SET memory_limit = '100GB'",
            "INSTALL httpfs",
            "LOAD httpfs",
            "SELECT * FROM variable",
        ):
            with pytest.raises(duckdb.Error):
                query.cursor.execute(sql).fetchall()


def test_a_query_leaves_nothing_behind(store: EmbeddedStore, log: EmbeddedLog) -> None:
    append(log, reading("a", 1))
    store.query("SELECT * FROM readings")
    with store._connections.borrow() as query, pytest.raises(duckdb.CatalogException):
        query.cursor.execute("SELECT * FROM readings").fetchall()


def test_an_own_name_for_the_tail_does_not_reach_the_view(store: EmbeddedStore, log: EmbeddedLog) -> None:
    append(log, reading("a", 1, 5.0))
    sql = "WITH _tail_readings AS (SELECT 1 AS x) SELECT value FROM readings, _tail_readings"
    assert values(store, sql) == [5.0]


def test_queries_beside_flushes_see_every_acknowledged_row_once(opener: Opener, log: EmbeddedLog) -> None:
    store = opener(query=QuerySettings(concurrent=2), flush_rows=50)
    acknowledged = [0]
    failures: list[str] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            before = acknowledged[0]
            row = store.query("SELECT count(*) AS n, count(DISTINCT ts) AS d FROM readings").to_pylist()[0]
            if row["n"] < before or row["n"] != row["d"]:
                failures.append(f"{row} after {before}")

    def flush() -> None:
        while not done.is_set():
            store.step()

    threads = [threading.Thread(target=ask), threading.Thread(target=ask), threading.Thread(target=flush)]
    for thread in threads:
        thread.start()
    for i in range(150):
        append(log, *(reading(f"d{i % 3}", i * 10 + j) for j in range(10)))
        acknowledged[0] += 10
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert values(store, "SELECT count(*) FROM readings") == [1500]
    assert sum(store.stored(READINGS.stream)) > 0


def test_closed_means_closed(store: EmbeddedStore) -> None:
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.query("SELECT 1")


_ROW = st.builds(
    reading,
    st.sampled_from(["", "a", "b", "ä" * 100, "x" * 200]),
    st.integers(-(10**15), 10**15),
    st.one_of(st.none(), st.floats(allow_nan=False)),
    count=st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
    ok=st.one_of(st.none(), st.booleans()),
)
_STEP = st.one_of(st.lists(_ROW, max_size=20), st.sampled_from(["step", "flush", "reopen", "query", "later"]))


@given(st.lists(_STEP, max_size=12))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_by_sql_are_the_rows_appended(
    tmp_path_factory: pytest.TempPathFactory, steps: list[list[dict[str, object]] | str]
) -> None:
    directory = tmp_path_factory.mktemp("store")
    log, clock = open_log(directory / "log"), Clock()

    def opened() -> EmbeddedStore:
        from headwater.config import StoreSettings

        store = EmbeddedStore(
            log, directory, StoreSettings(flush_rows=15), QuerySettings(concurrent=1), clock
        )
        store.create(READINGS)
        return store

    store, rows = opened(), []

    def check() -> None:
        order = [(name, "ascending") for name in READINGS.arrow.names]
        found = store.query("SELECT * FROM readings").sort_by(order)
        expected = pa.Table.from_batches([batch(READINGS, rows)]).sort_by(order)
        assert found.num_rows == len(rows)
        assert found.to_pylist() == expected.to_pylist()

    try:
        for step in steps:
            if isinstance(step, list):
                if step:
                    append(log, *step)
                rows += step
            elif step == "step":
                store.step()
            elif step == "flush":
                store.flush()
            elif step == "later":
                clock.now += 61_000_000
            elif step == "query":
                check()
            else:
                store.close()
                store = opened()
        check()
        store.flush()
        check()
        assert pc.sum(pa.array(store.stored(READINGS.stream))).as_py() == len(rows)
    finally:
        store.close()
        log.close()

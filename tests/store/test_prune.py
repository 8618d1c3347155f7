"""Which keys a query can touch: what is understood, and that what is not prunes nothing."""

from __future__ import annotations

from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.log.embedded import EmbeddedLog
from headwater.store import guard, prune
from headwater.store.embedded import EmbeddedStore
from headwater.store.tail import KEY, of_keys
from tests.store.conftest import NOW, READINGS, batch, reading


@pytest.mark.parametrize(
    ("sql", "params", "expected"),
    [
        ("SELECT * FROM t WHERE device = 'a'", [], {"a"}),
        ("SELECT * FROM t WHERE 'a' = device", [], {"a"}),
        ("SELECT * FROM t AS x WHERE x.Device = 'a' AND value > 1", [], {"a"}),
        ("SELECT * FROM t WHERE value > 1 AND (device = $2 AND ts > now())", ["b", "a"], {"a"}),
        ("SELECT * FROM t WHERE device IN ('a', ?)", ["b"], {"a", "b"}),
        ("SELECT * FROM (SELECT * FROM t WHERE device = 'a') WHERE device = 'b'", [], {"a"}),
        ("SELECT * FROM t WHERE device = 'a' UNION ALL SELECT * FROM t WHERE device = 'b'", [], {"a", "b"}),
        ("WITH t AS (SELECT * FROM t WHERE device = 'b') SELECT * FROM t WHERE device = 'a'", [], {"a", "b"}),
        ("SELECT * FROM t", [], None),
        ("SELECT * FROM t WHERE device = 'a' OR value > 1", [], None),
        ("SELECT * FROM t WHERE NOT device = 'a'", [], None),
        ("SELECT * FROM t WHERE device NOT IN ('a')", [], None),
        ("SELECT * FROM t WHERE device IN ('a', site)", [], None),
        ("SELECT * FROM t WHERE device IN (SELECT 'a')", [], None),
        ("SELECT * FROM t WHERE device = lower('A')", [], None),
        ("SELECT * FROM t WHERE device COLLATE NOCASE = 'a'", [], None),
        ("SELECT * FROM t WHERE device = 5", [], None),
        ("SELECT * FROM t WHERE device = ?", [5], None),
        ("SELECT * FROM t WHERE device = ?", [], None),
        ("SELECT * FROM t WHERE device = NULL", [], None),
        ("SELECT * FROM t WHERE site = 'a'", [], None),
        ("SELECT * FROM t WHERE u.device = 'a'", [], None),
        ("SELECT * FROM t AS x(device, y) WHERE device = 'a'", [], None),
        ("SELECT * FROM t TABLESAMPLE 10% WHERE device = 'a'", [], None),
        ("SELECT * FROM t WHERE device = 'a' USING SAMPLE 5 ROWS", [], None),
        ("SELECT * FROM t, u WHERE t.device = 'a'", [], None),
        ("SELECT * FROM t JOIN t AS s USING (ts) WHERE t.device = 'a'", [], None),
        ("SELECT *, (SELECT count(*) FROM t) FROM t WHERE device = 'a'", [], None),
    ],
)
def test_the_keys_of_a_query(sql: str, params: list[Any], expected: set[str] | None) -> None:
    with duckdb.connect() as connection:
        checked = guard.check(connection, sql, ["t", "u"])
    found = prune.keys(checked, {"t": "device"}, params)
    assert found.get("t") == (None if expected is None else frozenset(expected))
    assert not prune.keys(checked, {}, params)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), max_size=5), max_size=5), st.sets(st.integers(0, 5), max_size=3))
def test_rows_of_keys_are_those_rows(batches: list[list[int]], ids: set[int]) -> None:
    schema = pa.schema([KEY, ("at", pa.int64())])
    parts = [
        pa.record_batch(
            [pa.array(part, pa.uint32()), pa.array([n * 10 + at for at in range(len(part))])], schema
        )
        for n, part in enumerate(batches)
    ]
    table = pa.Table.from_batches(parts, schema)
    wanted = pc.is_in(table["_key"], pa.array(sorted(ids), pa.uint32()))
    assert of_keys(table, ids).to_pylist() == table.filter(wanted).to_pylist()


def test_a_query_by_key_is_the_same_query(store: EmbeddedStore, log: EmbeddedLog) -> None:
    """A condition that is not understood reads every row: in memory, half in files, with keys that are not there."""
    rows = [reading(f"d{n % 7}", NOW + n, float(n)) for n in range(100)] + [reading(None, NOW, 1.0)]

    def same() -> None:
        for condition, plain in (
            ("device = 'd3'", "device || '' = 'd3'"),
            ("device IN ('d1', 'd5', 'x')", "device || '' IN ('d1', 'd5', 'x')"),
            ("device = 'never'", "device || '' = 'never'"),
            ("device = ''", "device || '' = ''"),
        ):
            found, expected = (
                store.query(f"SELECT * FROM readings WHERE {each} ORDER BY ts, value").to_pylist()
                for each in (condition, plain)
            )
            assert found == expected
        assert store.query("SELECT count(*) FROM readings WHERE device IS NULL").to_pylist()[0]

    log.append([(READINGS, batch(READINGS, rows[:60]))])
    same()
    store.flush()
    log.append([(READINGS, batch(READINGS, rows[60:]))])
    same()
    assert store.query("SELECT count(*) AS n FROM readings WHERE device = 'd3'").to_pylist() == [{"n": 14}]

"""The guard refuses everything but one read-only SELECT over our tables."""

from __future__ import annotations

import string
from pathlib import Path

import duckdb
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headwater.errors import SqlError
from headwater.store import functions
from headwater.store.guard import check
from tests.store.attacks import ATTACKS

TABLES = ["readings", "windows"]
CONNECTION = duckdb.connect(":memory:")


@pytest.mark.parametrize(
    ("sql", "tables"),
    [
        ("SELECT 1", set()),
        ("SELECT * FROM readings", {"readings"}),
        ("FROM Readings", {"readings"}),
        ('SELECT count(*) FROM "READINGS" r WHERE r.ts > now() - INTERVAL 1 HOUR;', {"readings"}),
        ("VALUES (1), (2)", set()),
        ("SELECT * FROM readings JOIN windows USING (device)", {"readings", "windows"}),
        ("SELECT * FROM readings ASOF JOIN windows USING (device, ts)", {"readings", "windows"}),
        ("WITH c AS (SELECT * FROM readings) SELECT * FROM c", {"readings"}),
        ("WITH readings AS (SELECT 1 AS x) SELECT * FROM readings", set()),
        ("WITH a AS (SELECT 1), b AS (SELECT * FROM a) SELECT * FROM b", set()),
        (
            "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 9) SELECT * FROM r",
            set(),
        ),
        (
            "SELECT device FROM readings UNION ALL SELECT device FROM windows ORDER BY 1 LIMIT 5",
            {"readings", "windows"},
        ),
        (
            "SELECT avg(value) OVER (PARTITION BY device ORDER BY ts ROWS 3 PRECEDING) FROM readings",
            {"readings"},
        ),
        (
            "SELECT time_bucket(INTERVAL '5 minutes', ts) t, avg(value) FROM readings GROUP BY ALL",
            {"readings"},
        ),
        ("SELECT device, arg_max(value, ts) FROM readings GROUP BY device HAVING count(*) > 1", {"readings"}),
        ("SELECT DISTINCT ON (device) * FROM readings ORDER BY ts DESC", {"readings"}),
        (
            "SELECT * FROM readings QUALIFY row_number() OVER (PARTITION BY device ORDER BY ts) = 1",
            {"readings"},
        ),
        ("SELECT * FROM generate_series(1, 3), range(2), unnest([1, 2])", set()),
        ("SELECT value::DECIMAL(9, 2), ts::DATE, CAST(count AS VARCHAR) FROM readings", {"readings"}),
        (
            "SELECT CASE WHEN value > 1 THEN 'a' ELSE 'b' END, value IS NULL, device IN ('a') FROM readings",
            {"readings"},
        ),
        (
            "SELECT * FROM readings WHERE device LIKE 'a%' AND device ~ '^a' AND ts BETWEEN ? AND ?",
            {"readings"},
        ),
        ("FROM (PIVOT readings ON device IN ('a', 'b') USING sum(value))", {"readings"}),
        ("SELECT list_transform([1, 2], lambda x: x + 1), [x * 2 FOR x IN [1]], {'a': 1}.a", set()),
        (
            "SELECT EXTRACT(hour FROM ts), ts AT TIME ZONE 'Europe/Berlin', COLUMNS('v.*') FROM readings",
            {"readings"},
        ),
        (
            "SELECT * EXCLUDE (ok) REPLACE (value * 2 AS value) FROM readings USING SAMPLE 10 ROWS",
            {"readings"},
        ),
        (
            "SELECT quantile_cont(value, 0.9) FILTER (WHERE ok), string_agg(device, ',' ORDER BY ts) FROM readings",
            {"readings"},
        ),
    ],
)
def test_accepts_a_select(sql: str, tables: set[str]) -> None:
    assert check(CONNECTION, sql, TABLES).tables == tables


@pytest.mark.parametrize(("what", "sql"), ATTACKS, ids=[what for what, _ in ATTACKS])
def test_refuses(what: str, sql: str) -> None:
    with pytest.raises(SqlError) as refused:
        check(CONNECTION, sql, TABLES)
    assert str(refused.value)


def test_position_counts_characters() -> None:
    sql = "SELECT 'grün', nowhere(1)"
    with pytest.raises(SqlError, match="'nowhere'") as refused:
        check(CONNECTION, sql, TABLES)
    assert refused.value.position == sql.index("nowhere")


def test_helps_with_the_name() -> None:
    with pytest.raises(SqlError, match="did you mean 'readings'"):
        check(CONNECTION, "SELECT * FROM reading", TABLES)


def test_says_which_statement_it_was() -> None:
    with pytest.raises(SqlError, match="ATTACH is not accepted; send one read-only SELECT"):
        check(CONNECTION, "ATTACH 'x'", TABLES)


def test_allow_list_holds_nothing_with_side_effects() -> None:
    """Random numbers and `error` have a side effect by DuckDB's books, and no other effect."""
    rows = CONNECTION.execute(
        "SELECT DISTINCT function_name FROM duckdb_functions() WHERE has_side_effects"
    ).fetchall()
    harmless = {"random", "uuid", "uuidv4", "uuidv7", "gen_random_uuid", "error"}
    assert {name for (name,) in rows} & functions.FUNCTIONS == harmless


def test_allow_list_holds_only_what_duckdb_has() -> None:
    rows = CONNECTION.execute("SELECT DISTINCT lower(function_name) FROM duckdb_functions()").fetchall()
    names = {name for (name,) in rows}
    assert names >= functions.FUNCTIONS | functions.TABLE_FUNCTIONS


# A statement of one word is a column of that name within another.
EVIL = [sql for _, sql in ATTACKS if " " in sql and len(sql) < 200 and "\0" not in sql and sql.isascii()]


@given(st.sampled_from(EVIL), st.data())
@settings(max_examples=150, deadline=None)
def test_disguises_of_what_is_refused_are_refused(sql: str, data: st.DataObject) -> None:
    """Letter case, white space, comments, parentheses and a harmless neighbour change nothing."""
    flips = data.draw(st.lists(st.booleans(), min_size=len(sql), max_size=len(sql)))
    if "'" not in sql and '"' not in sql:
        sql = "".join(c.swapcase() if flip else c for c, flip in zip(sql, flips, strict=True))
    space = data.draw(st.sampled_from([" ", "\t", "\n", " /* x */ ", " -- x\n"]))
    if "'" not in sql and "--" not in sql:
        sql = sql.replace(" ", space)
    wrap = data.draw(
        st.sampled_from(
            [
                "{}",
                "({})",
                "SELECT * FROM ({})",
                "WITH q AS ({}) SELECT * FROM q",
                "{} UNION ALL SELECT 1",
                "SELECT 1 UNION ALL {}",
                "SELECT ({})",
                "SELECT 1 WHERE EXISTS ({})",
                "{};",
                ";{}",
                "SELECT 1; {}",
                "EXPLAIN {}",
                "CREATE TABLE x AS {}",
                "SELECT * FROM readings WHERE 1 IN ({})",
            ]
        )
    )
    if sql.startswith("--"):
        wrap = "{}"
    with pytest.raises(SqlError):
        check(CONNECTION, wrap.format(sql), TABLES)


@given(st.text(alphabet=string.printable + "éß\0", max_size=80))
@settings(max_examples=150, deadline=None)
@example("CONNECT")
def test_any_text_is_accepted_or_refused_and_nothing_else(text: str) -> None:
    for sql in (text, f"SELECT {text}", f"SELECT * FROM {text}"):
        position = None
        try:
            assert check(CONNECTION, sql, TABLES).tables <= set(TABLES)
        except SqlError as error:
            position = error.position
        assert position is None or 0 <= position <= len(sql)


@given(st.sampled_from(sorted(set(functions.FUNCTIONS))), st.sampled_from(["", "x", "1", "'a', 1"]))
@settings(max_examples=50, deadline=None)
def test_one_letter_off_the_allow_list_is_refused(name: str, arguments: str) -> None:
    with pytest.raises(SqlError):
        check(CONNECTION, f"SELECT {name}_q({arguments})", TABLES)


def test_the_documentation_has_every_attack() -> None:
    page = (Path(__file__).parents[2] / "docs" / "sql-queries.md").read_text()
    for what, sql in ATTACKS:
        assert f"| {what} |" in page
        if 0 < len(sql) <= 130:
            shown = (
                sql.replace("\0", "\\0").replace("\ud800", "\\ud800").replace("\n", "\\n").replace("|", "\\|")
            )
            assert f"| `{shown}` |" in page

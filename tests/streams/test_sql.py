"""Continuous SQL: what is planned, what is refused, and that docs/sql.md says exactly that."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import SqlError
from headwater.records import Column, ColumnType
from headwater.streams import reference
from headwater.streams.dialect import DayTimeInterval, interval_us
from headwater.streams.reference import FEATURES, REFUSED, SHORT, TABLES, TELEMETRY, expand
from headwater.streams.shapes import Shape
from headwater.streams.sql import REFUSALS, Aggregate, Group, plan

DOCS = Path(__file__).parents[2] / "docs" / "sql.md"
_T = ColumnType
WINDOW, GROUP = SHORT["$W"], SHORT["$G"]


def test_a_query_becomes_a_typed_plan() -> None:
    found = plan(
        f"SELECT device, window_start, window_end, AVG(temperature) AS avg_temperature, COUNT(*) AS n "
        f"FROM {WINDOW} WHERE temperature > 5 {GROUP}",
        "temp_5m",
        TABLES,
    )
    assert found.source == "telemetry"
    assert found.shape == Shape.tumble(300_000_000)
    assert found.groups == (Group("device", "device", _T.STRING),)
    assert found.aggregates == (
        Aggregate("avg", "temperature", "avg_temperature", _T.DOUBLE),
        Aggregate("count_star", None, "n", _T.BIGINT),
    )
    assert found.where is not None
    assert found.where.columns == {"temperature"}
    assert found.key == "device"
    assert found.latest_by == ("device", "window_start", "window_end")
    assert found.columns == (
        Column("device", _T.STRING),
        Column("window_start", _T.TIMESTAMP),
        Column("window_end", _T.TIMESTAMP),
        Column("avg_temperature", _T.DOUBLE),
        Column("n", _T.BIGINT),
        Column("ts", _T.TIMESTAMP),
        Column("revision", _T.BIGINT),
    )


def test_result_types_are_those_of_flink() -> None:
    found = plan(
        "SELECT AVG(rssi) AS a, SUM(rssi) AS b, MIN(rssi) AS c, AVG(temperature) AS d, MAX(ts) AS e, "
        f"COUNT(door) AS f FROM {WINDOW} GROUP BY window_start, window_end",
        "q",
        TABLES,
    )
    assert [a.type for a in found.aggregates] == [
        _T.BIGINT,
        _T.BIGINT,
        _T.BIGINT,
        _T.DOUBLE,
        _T.TIMESTAMP,
        _T.BIGINT,
    ]
    assert found.key is None
    assert found.groups == ()


def test_the_key_is_the_source_key_else_the_first_string() -> None:
    by = "window_start, window_end"
    assert (
        plan(f"SELECT COUNT(*) AS n FROM {WINDOW} GROUP BY site, device, {by}", "q", TABLES).key == "device"
    )
    assert (
        plan(f"SELECT site AS s, COUNT(*) AS n FROM {WINDOW} GROUP BY door, site, {by}", "q", TABLES).key
        == "s"
    )
    assert plan(f"SELECT COUNT(*) AS n FROM {WINDOW} GROUP BY door, {by}", "q", TABLES).key is None


def test_what_names_a_row_is_in_the_result_also_when_select_leaves_it_out() -> None:
    found = plan(f"SELECT COUNT(*) AS n FROM {WINDOW} {GROUP}", "q", TABLES)
    assert [column.name for column in found.columns] == [
        "n",
        "device",
        "window_start",
        "window_end",
        "ts",
        "revision",
    ]


def test_the_signature_names_the_meaning_not_the_spelling() -> None:
    first = plan(f"SELECT COUNT(*) AS n FROM {WINDOW} WHERE rssi>1 {GROUP}", "q", TABLES)
    spelled = plan(f"select count(*)  as n\nfrom {WINDOW} where  rssi > 1 {GROUP}", "q", TABLES)
    other = plan(f"SELECT COUNT(*) AS n FROM {WINDOW} WHERE rssi > 2 {GROUP}", "q", TABLES)
    assert first.signature(TELEMETRY) == spelled.signature(TELEMETRY)
    assert first.signature(TELEMETRY) != other.signature(TELEMETRY)


@pytest.mark.parametrize(("code", "example"), REFUSED)
def test_a_refusal_says_where_what_and_what_works(code: str, example: str) -> None:
    sql = expand(example)
    with pytest.raises(SqlError) as error:
        plan(sql, "q", TABLES)
    message = str(error.value)
    if code in REFUSALS:
        fixed = [part for part in re.split(r"\{[^}]*\}", REFUSALS[code]) if part]
        assert all(part in message for part in fixed)
    assert error.value.position is not None
    assert 0 <= error.value.position <= len(sql)
    line, column = re.match(r"query q, line (\d+), column (\d+): ", message).groups()  # type: ignore[union-attr]
    assert (int(line), int(column)) == (1, error.value.position + 1)


def test_the_position_is_that_of_the_wrong_word() -> None:
    sql = f"SELECT COUNT(*) AS n,\n       AVG(temprature) AS a\nFROM {WINDOW} {GROUP}"
    with pytest.raises(SqlError, match=r"query q, line 2, column 12: ") as error:
        plan(sql, "q", TABLES)
    position = error.value.position
    assert position is not None
    assert sql[position:].startswith("temprature")


def test_every_refusal_of_the_code_has_an_example() -> None:
    assert {code for code, _ in REFUSED} - {"syntax", "expression"} == set(REFUSALS)


def test_the_page_lists_what_the_code_has() -> None:
    page = DOCS.read_text(encoding="utf-8")
    assert page == reference.renew(page), "renew it by python -m headwater.streams.reference docs/sql.md"
    for table in reference.tables().values():
        assert table in page


@pytest.mark.parametrize(("feature", "example"), [(feature, example) for feature, example, _ in FEATURES])
def test_every_feature_of_the_page_is_planned(feature: str, example: str) -> None:
    assert feature
    plan(expand(example), "q", TABLES)


def test_every_expression_of_the_page_is_compiled() -> None:
    rows = [line.split(" | ") for line in reference.tables()["expressions"].splitlines()[2:]]
    assert len(rows) > 30
    for _, example, _ in rows:
        sql = example.strip("`").replace("\\|", "|")
        plan(expand(f"SELECT COUNT({sql}) AS n FROM $W $G"), "q", TABLES)


def test_old_queries_keep_their_signature_so_that_their_state_goes_on() -> None:
    sql = (
        "SELECT device, AVG(temperature) AS a, COUNT(*) AS n FROM $W WHERE rssi > 1 "
        "GROUP BY device, window_start, window_end"
    )
    assert plan(expand(sql), "q", TABLES).signature(TELEMETRY) == "4cdd9ddd7af26d97"


def test_new_parts_of_a_query_are_part_of_its_signature() -> None:
    texts = [
        "SELECT COUNT(*) AS n FROM $W $G",
        "SELECT COUNT(*) AS n FROM $W $G HAVING COUNT(*) > 1",
        "SELECT COUNT(*) AS n FROM $W $G HAVING COUNT(*) > 2",
        "SELECT COUNT(*) + 1 AS n FROM $W $G",
        "SELECT COUNT(rssi + 1) AS n FROM $W $G",
        "SELECT COUNT(*) AS n FROM TABLE(HOP($T, INTERVAL '1' MINUTE, INTERVAL '5' MINUTES)) $G",
        "SELECT COUNT(*) AS n FROM TABLE(CUMULATE($T, INTERVAL '1' MINUTE, INTERVAL '5' MINUTES)) $G",
        "SELECT COUNT(*) AS n FROM TABLE(SESSION($S, INTERVAL '5' MINUTES)) $G",
        "SELECT COUNT(*) AS n FROM TABLE(TUMBLE($T, INTERVAL '1' DAY, 'UTC')) $G",
        "SELECT COUNT(*) AS n FROM TABLE(TUMBLE($T, INTERVAL '1' DAY, 'Europe/Paris')) $G",
        "SELECT PERCENTILE(rssi, 0.5) AS n FROM $W $G",
        "SELECT PERCENTILE(rssi, 0.6) AS n FROM $W $G",
    ]
    signatures = {plan(expand(sql), "q", TABLES).signature(TELEMETRY) for sql in texts}
    assert len(signatures) == len(texts)


def test_a_text_nested_too_deep_is_refused() -> None:
    deep = " AND ".join(["COUNT(*) > 1"] * 3_000)
    with pytest.raises(SqlError, match="nested too deep"):
        plan(expand(f"SELECT COUNT(*) AS n FROM $W $G HAVING {deep}"), "q", TABLES)


def test_an_aggregate_that_is_used_twice_is_computed_once() -> None:
    sql = (
        "SELECT MAX(rssi) - MIN(rssi) AS span, MAX(rssi) AS high, MIN(t.rssi) * 2 AS low FROM $W AS t $G "
        "HAVING MAX(rssi) > 0"
    )
    found = plan(expand(sql), "q", TABLES)
    assert [(a.function, a.alias) for a in found.aggregates] == [("max", "high"), ("min", "_a1")]
    assert [column.name for column in found.columns[:3]] == ["span", "high", "low"]
    assert {alias: e.type for alias, e in found.shown.items()} == {"span": _T.BIGINT, "low": _T.BIGINT}


def test_results_that_cannot_be_amended_say_why() -> None:
    assert plan(expand("SELECT COUNT(*) AS n FROM $W $G"), "q", TABLES).final is None
    for sql in ("$W $G HAVING COUNT(*) > 1", "TABLE(SESSION($S, INTERVAL '1' DAY)) $G"):
        assert "late row" in (plan(expand(f"SELECT COUNT(*) AS n FROM {sql}"), "q", TABLES).final or "")


@pytest.mark.parametrize(
    ("text", "first", "last", "expected"),
    [
        ("5", "MINUTES", None, 300_000_000),
        ("1", "day", None, 86_400_000_000),
        ("0.250", "SECOND", None, 250_000),
        ("36", "HOURS", None, 129_600_000_000),
        ("1 12", "DAY", "HOUR", 129_600_000_000),
        ("1 12:30:15.5", "DAY", "SECOND", 131_415_500_000),
        ("2:30", "HOUR", "MINUTE", 9_000_000_000),
        ("90:00.001", "MINUTE", "SECOND", 5_400_001_000),
        ("5", "MONTH", None, None),
        ("5 MINUTES", "MINUTES", None, None),
        ("-5", "MINUTES", None, None),
        ("5.5", "MINUTES", None, None),
        ("2:30", "MINUTE", "HOUR", None),
        ("2:30", "DAY", "MINUTE", None),
        ("", "DAY", None, None),
    ],
)
def test_intervals(text: str, first: str, last: str | None, expected: int | None) -> None:
    assert interval_us(DayTimeInterval(this=text, first=first.upper(), last=last)) == expected


_WORDS = st.sampled_from(
    f"SELECT device , COUNT ( * ) AS n FROM {WINDOW} WHERE temperature > 5 {GROUP} ( ) ' ` ; . => DISTINCT HAVING "
    "JOIN OVER FILTER CASE WHEN END NULL 1 -- /* INTERVAL DESCRIPTOR TABLE HOP".split()
)


@given(st.lists(_WORDS, max_size=40).map(" ".join) | st.text(max_size=60))
def test_any_text_is_planned_or_refused(text: str) -> None:
    assert _refusal(text) is None or str(_refusal(text)).startswith("query q")


@given(st.data())
def test_a_query_with_a_word_less_or_more_is_planned_or_refused(data: st.DataObject) -> None:
    words = expand("SELECT device , AVG ( temperature ) AS a FROM $W WHERE rssi > 5 AND door $G").split()
    at = data.draw(st.integers(0, len(words) - 1))
    words[at : at + data.draw(st.integers(0, 2))] = data.draw(st.lists(_WORDS, max_size=2))
    assert _refusal(" ".join(words)) is None or str(_refusal(" ".join(words))).startswith("query q")


def _refusal(text: str) -> str | None:
    try:
        plan(text, "q", TABLES)
    except SqlError as error:
        return str(error)
    return None

"""Scalar expressions: examples, refusals, and equality with a row-by-row interpreter of three-valued logic."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sqlglot
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlglot import exp

from headwater.errors import SqlError
from headwater.expressions import MAX_DEPTH, Frame, compile_condition, compile_expression
from headwater.records import ColumnType

COLUMNS = {
    "x": ColumnType.DOUBLE,
    "y": ColumnType.DOUBLE,
    "i": ColumnType.BIGINT,
    "j": ColumnType.BIGINT,
    "b": ColumnType.BOOLEAN,
    "s": ColumnType.STRING,
    "ts": ColumnType.TIMESTAMP,
    "raw": ColumnType.BINARY,
}
LOWEST, HIGHEST = -(2**63), 2**63 - 1
SECOND = 1_000_000


def batch_of(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    """A batch with all COLUMNS; what a row leaves out is NULL."""
    return pa.RecordBatch.from_arrays(
        [pa.array([row.get(name) for row in rows], type_.arrow) for name, type_ in COLUMNS.items()],
        names=list(COLUMNS),
    )


def value(sql: str, **row: Any) -> Any:
    """The expression's value over one row."""
    return compile_expression(sql, COLUMNS).evaluate(batch_of([row])).to_pylist()[0]


@pytest.mark.parametrize(
    ("sql", "row", "expected"),
    [
        ("x + i * 2", {"x": 0.5, "i": 3}, 6.5),
        ("x + i", {"x": 0.5}, None),
        ("-i - -3", {"i": 1}, 2),
        ("i / j", {"i": 7, "j": 2}, 3),
        ("i / j", {"i": -7, "j": 2}, -3),
        ("i % j", {"i": -7, "j": 2}, -1),
        ("i / j", {"i": 7, "j": 0}, None),
        ("i % 0", {"i": 7}, None),
        ("i / j", {"i": LOWEST, "j": -1}, LOWEST),
        ("i % j", {"i": LOWEST, "j": -1}, 0),
        ("i + 1", {"i": HIGHEST}, LOWEST),
        ("-9223372036854775808", {}, LOWEST),
        ("i / 2.0", {"i": 7}, 3.5),
        ("x / 0", {"x": 1.0}, math.inf),
        ("x % 2", {"x": -3.5}, -1.5),
        ("ABS(i) + abs(-2)", {"i": -3}, 5),
        ("1e3 + .5", {}, 1000.5),
        ("COALESCE(x, i, 7)", {"i": 3}, 3.0),
        ("COALESCE(NULL, s, 'none')", {}, "none"),
        ("COALESCE(b, TRUE)", {"b": False}, False),
        ("CASE WHEN x > 1 THEN 'high' WHEN x > 0 THEN 'some' END", {"x": 0.5}, "some"),
        ("CASE WHEN x > 1 THEN 'high' WHEN x > 0 THEN 'some' END", {}, None),
        ("CASE i WHEN 1 THEN 10 WHEN 2 THEN 20.5 ELSE 0 END", {"i": 1}, 10.0),
        ("s", {"s": "a"}, "a"),
        ("'it''s'", {}, "it's"),
        ("b", {"b": True}, True),
        ("`x` -- a comment", {"x": 2.0}, 2.0),
        ("raw", {"raw": b"\x00"}, b"\x00"),
        ("CAST(x AS BIGINT)", {"x": -2.7}, -2),
        ("CAST(x AS BIGINT)", {"x": math.nan}, 0),
        ("CAST(x AS BIGINT)", {"x": 1e30}, HIGHEST),
        ("CAST(x AS BIGINT)", {"x": -math.inf}, LOWEST),
        ("CAST(x AS BIGINT)", {}, None),
        ("CAST(i AS DOUBLE) / 2", {"i": 3}, 1.5),
        ("CAST(s AS DOUBLE)", {"s": " 1.5e2"}, 150.0),
        ("CAST(s AS DOUBLE)", {"s": "12 apples"}, None),
        ("TRY_CAST(s AS BIGINT)", {"s": "-12"}, -12),
        ("TRY_CAST('7' AS BIGINT) + i", {"i": 1}, 8),
        ("CAST(i AS STRING)", {"i": 7}, "7"),
        ("CAST(b AS BIGINT)", {"b": True}, 1),
        ("CAST(b AS BIGINT)", {}, None),
        ("CAST(b AS STRING)", {"b": False}, "FALSE"),
        ("CAST(i AS BOOLEAN)", {"i": -3}, True),
        ("ROUND(x, 2)", {"x": 2.675}, 2.68),
        ("ROUND(x)", {"x": -2.5}, -3.0),
        ("ROUND(x, -2)", {"x": 1250.0}, 1300.0),
        ("ROUND(x, 3)", {"x": math.inf}, math.inf),
        ("ROUND(i, 3)", {"i": HIGHEST}, HIGHEST),
        ("CEIL(x) + FLOOR(x)", {"x": 1.5}, 3.0),
        ("CEIL(i)", {"i": 7}, 7),
        ("SIGN(i)", {"i": -7}, -1),
        ("SQRT(x)", {"x": 2.25}, 1.5),
        ("LN(x)", {"x": 0.0}, -math.inf),
        ("EXP(x)", {"x": 0.0}, 1.0),
        ("LOG10(x)", {"x": 1000.0}, 3.0),
        ("LOG2(i)", {"i": 8}, 3.0),
        ("POWER(i, -1)", {"i": 2}, 0.5),
        ("GREATEST(x, i, 2)", {"x": 1.5, "i": 3}, 3.0),
        ("LEAST(i, j)", {"i": 3, "j": -1}, -1),
        ("GREATEST(i, j)", {"i": 3}, None),
        ("UPPER(s)", {"s": "päd"}, "PÄD"),
        ("LOWER('ABC')", {}, "abc"),
        ("CHAR_LENGTH(s)", {"s": "päd"}, 3),
        ("CHAR_LENGTH('four') + 1", {}, 5),
        ("CONCAT(s, '-', s)", {"s": "a"}, "a-a"),
        ("s || '!'", {"s": "a"}, "a!"),
        ("s || '!'", {}, None),
        ("SUBSTRING(s FROM 2 FOR 3)", {"s": "hällo"}, "äll"),
        ("SUBSTRING(s, 4)", {"s": "hällo"}, "lo"),
        ("REPLACE(s, 'l', '.')", {"s": "hello"}, "he..o"),
        ("TRIM(s)", {"s": "  a b "}, "a b"),
        ("NULLIF(i, 0)", {"i": 0}, None),
        ("NULLIF(i, 0)", {"i": 2}, 2),
        ("NULLIF(i, j)", {"i": 2}, 2),
        ("IF(b, 1, 2.5)", {"b": True}, 1.0),
        ("IF(b, 'yes', 'no')", {}, "no"),
        ("EXTRACT(YEAR FROM ts)", {"ts": -1}, 1969),
        ("EXTRACT(MONTH FROM ts)", {"ts": 951_782_400 * SECOND}, 2),
        ("EXTRACT(DAY FROM ts)", {"ts": 951_782_400 * SECOND}, 29),
        ("EXTRACT(DOW FROM ts)", {"ts": 0}, 5),
        (
            "EXTRACT(HOUR FROM ts) * 10000 + EXTRACT(MINUTE FROM ts) * 100 + EXTRACT(SECOND FROM ts)",
            {"ts": -1},
            235_959,
        ),
        ("EXTRACT(HOUR FROM ts)", {}, None),
    ],
)
def test_values(sql: str, row: dict[str, Any], expected: Any) -> None:
    found = value(sql, **row)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("sql", "row", "expected"),
    [
        ("x > 80", {"x": 81.0}, True),
        ("x > 80", {"x": 80.0}, False),
        ("x > 80", {}, None),
        ("NOT x > 80", {}, None),
        ("x > 80 AND FALSE", {}, False),
        ("x > 80 OR TRUE", {}, True),
        ("x > 80 AND NULL", {"x": 1.0}, False),
        ("x IS NULL", {}, True),
        ("x IS NOT NULL AND s IS NULL AND raw IS NULL", {"x": 1.0}, True),
        ("(x > 80) IS TRUE", {}, False),
        ("(x > 80) IS NOT FALSE", {}, True),
        ("x BETWEEN 1 AND 2", {"x": 2.0}, True),
        ("x NOT BETWEEN 1 AND i", {"x": 0.0}, True),
        ("x NOT BETWEEN 1 AND i", {"x": 3.0}, None),
        ("i IN (1, -2)", {"i": -2}, True),
        ("i IN (1, NULL)", {"i": 1}, True),
        ("i IN (1, NULL)", {"i": 2}, None),
        ("i NOT IN (1, 2, 3, 4, 5, 6)", {"i": 7}, True),
        ("i IN (1.5, 2, 3, 4, 5, 6)", {"i": 6}, True),
        ("s IN ('a', 'b', 'c', 'd', 'e')", {"s": "e"}, True),
        ("s IN ('a', 'b', 'c', 'd', 'e')", {}, None),
        ("s LIKE 'pump-%'", {"s": "pump-7"}, True),
        ("s LIKE 'pump-%'", {"s": "a pump-7"}, False),
        ("s LIKE 'p_mp'", {"s": "pümp"}, True),
        ("s LIKE '%.x'", {"s": "a\nb.x"}, True),
        ("s LIKE '%.x'", {"s": "a_x"}, False),
        ("s NOT LIKE 'a'", {}, None),
        ("s LIKE 'a'", {"s": "a\n"}, False),
        ("s > 'a' AND s <> 'c'", {"s": "b"}, True),
        ("'a' = 'a'", {}, True),
        ("b = TRUE", {"b": True}, True),
        ("b <> FALSE", {"b": False}, False),
        ("b = FALSE", {}, None),
        ("ts >= TIMESTAMP '1970-01-01 00:00:01.5'", {"ts": 1_500_000}, True),
        ("ts < TIMESTAMP '1970-01-01'", {"ts": -1}, True),
        ("x = x", {"x": math.nan}, False),
        ("x <> x", {"x": math.nan}, True),
        ("x > 0 OR x <= 0", {"x": math.nan}, False),
        ("TRUE", {}, True),
        ("NULL", {}, "no type"),
    ],
)
def test_conditions(sql: str, row: dict[str, Any], expected: bool | str | None) -> None:
    if expected == "no type":
        with pytest.raises(SqlError, match="NULL is no condition"):
            compile_condition(sql, COLUMNS)
        return
    true, false = compile_condition(sql, COLUMNS).evaluate(batch_of([row]))
    assert (true.tolist(), false.tolist()) == ([expected is True], [expected is False])
    assert value(sql, **row) is expected


@pytest.mark.parametrize(
    ("sql", "position", "text"),
    [
        ("x > 1 AND temprature > 80", 10, "no column 'temprature'; there are b, i,"),
        ("X > 1", 0, "did you mean 'x'?"),
        ("t.x > 1", 0, "write 'x'"),
        ("x > 1 AND soundx(y) > 2", 10, "function SOUNDX is outside the subset; did you mean ROUND?"),
        ("x > 1 AND qqqq(y) > 2", 10, "function QQQQ is outside the subset; the functions are ABS, CEIL,"),
        ("SQRT(s) > 1", 5, "SQRT needs BIGINT or DOUBLE, found STRING"),
        ("ROUND(x, i) > 1", 9, "ROUND needs a whole number"),
        ("ROUND(x, 16) > 1", 0, "ROUND rounds to -15 to 15 digits"),
        ("ROUND(i, -1) > 1", 0, "ROUND of a BIGINT"),
        ("LOG(3, x) > 1", 0, "has the base 2 or 10"),
        ("SUBSTRING(s FROM 0) = 'a'", 10, "counts characters from 1"),
        ("REPLACE(s, s, 'a') = 'a'", 11, "needs a text in quotes"),
        ("FLOOR(ts TO HOUR) > ts", 6, "FLOOR is written FLOOR"),
        ("EXTRACT(CENTURY FROM ts) > 1", 21, "takes one of YEAR, MONTH"),
        ("EXTRACT(YEAR FROM x) > 1", 18, "EXTRACT needs a TIMESTAMP, found DOUBLE"),
        ("IF(b, 1) > 1", 3, "IF is written"),
        ("NULLIF(i, s) > 1", 7, "BIGINT cannot be compared with STRING"),
        ("coalesc(x, 1) > 2", 0, "did you mean COALESCE?"),
        ("x > 1 garbage", 6, "text after the expression: 'garbage'"),
        ("x > 1 1", 6, "not understood"),
        ("x > 1; y", 5, "text after ';'"),
        ("x > 1 AND", 6, "operand is missing"),
        ("SELECT x", 7, "without SELECT"),
        ("x IN (SELECT 1)", 0, "subquery"),
        ("x > 'hot'", 0, "DOUBLE cannot be compared with STRING"),
        ("ts > '2026-01-01'", 0, "write TIMESTAMP"),
        ("ts > TIMESTAMP 'noon'", 15, "'noon' is no timestamp"),
        ("ts > TIMESTAMP '2026-02-30 00:00:00'", 15, "is no timestamp"),
        ("x + s > 1", 4, r"\+ needs a number, found STRING"),
        ("x", 0, "DOUBLE is no condition"),
        ("b AND i", 6, "BIGINT is no condition"),
        ("b > FALSE", 0, "BOOLEAN has no order"),
        ("raw = raw", 0, "BINARY cannot be compared"),
        ("x = NULL", 0, "write IS NULL"),
        ("x < y = b", 0, "write parentheses"),
        ("b = x IS NULL", 4, "on the left"),
        ("i > 9223372036854775808", 4, "beyond BIGINT"),
        ("x > 1e400", 4, "beyond DOUBLE"),
        ("x > 1 || 2", 4, r"\|\| needs STRING, found BIGINT"),
        ("CAST(x AS INT) > 1", 5, "CAST to INT is outside the subset; nearest: BIGINT"),
        (
            "CAST(x AS STRING) = 'a'",
            5,
            "CAST of DOUBLE to STRING is outside the subset; it can be cast to BIGINT",
        ),
        ("CAST(s AS TIMESTAMP) > ts", 5, "takes a text in quotes"),
        ("s LIKE s", 7, "pattern in quotes"),
        ("s LIKE 'a' ESCAPE '!'", 0, "outside the subset"),
        ("COALESCE(x, s) = 1", 0, "common type, found DOUBLE and STRING"),
        ("s = 'open", 4, "quote is not closed"),
        ('x > 1\nAND "y" > 1', 12, "not understood"),
        ("", 0, "empty"),
        ("x > " + "1" * 10_000, 10_000, "10004 characters"),
    ],
)
def test_refusals_name_place_and_remedy(sql: str, position: int, text: str) -> None:
    with pytest.raises(SqlError, match=text) as caught:
        compile_condition(sql, COLUMNS)
    assert caught.value.position == position


@pytest.mark.parametrize(
    "sql", ["(" * 40 + "x > 1" + ")" * 40, "NOT " * 2000 + "b", "(" * 4000, "-(" * 900 + "x"]
)
def test_deep_nesting_is_refused(sql: str) -> None:
    with pytest.raises(SqlError):
        compile_condition(sql, COLUMNS)


def test_a_long_chain_is_not_deep() -> None:
    true, _ = compile_condition(" OR ".join(f"i = {n}" for n in range(500)), COLUMNS).evaluate(
        batch_of([{"i": 499}])
    )
    assert true.tolist() == [True]
    nested = "(" * (MAX_DEPTH - 2) + "x" + ")" * (MAX_DEPTH - 2)
    assert value(nested, x=1.0) == 1.0


def test_columns_are_what_is_read() -> None:
    assert compile_condition("x > i AND s IS NULL", COLUMNS).columns == {"x", "i", "s"}


def test_pruned_by_bounds_is_the_same() -> None:
    """From the third comparison of a column on, its bounds decide where they can."""
    batch = batch_of([{"x": 1.0, "i": 5}, {"i": 6}, {"x": 3.0, "i": 7}])
    sqls = [f"{column} {op} {n}" for column in "xi" for op in ("<", "<=", ">", ">=", "=") for n in range(9)]
    frame = Frame(batch)
    for sql in sqls:
        condition = compile_condition(f"{sql} AND NOT ({sql}) IS NULL", COLUMNS)
        shared, alone = condition.evaluate(frame), condition.evaluate(batch)
        assert [mask.tolist() for mask in shared] == [mask.tolist() for mask in alone], sql


@pytest.mark.parametrize("nulls", [False, True])
def test_looked_up_in_sorted_rows_is_the_same(nulls: bool) -> None:
    """From some hundred comparisons of a column on, those that hold for few rows are looked up."""
    rows = [{"x": (n * 7919 % 101) / 2, "i": n * 31 % 97} for n in range(300)]
    if nulls:
        rows[5].pop("x")
        rows[9].pop("i")
    batch = batch_of(rows)
    sqls = [
        f"{column} {op} {value}"
        for column, values in (("x", [n / 4 for n in range(-3, 210)]), ("i", range(-2, 100)))
        for op in ("<", "<=", ">", ">=", "=")
        for value in values
    ]
    frame = Frame(batch)
    for sql in sqls:
        condition = compile_condition(sql, COLUMNS)
        shared, alone = condition.evaluate(frame), condition.evaluate(batch)
        assert [mask.tolist() for mask in shared] == [mask.tolist() for mask in alone], sql
    types = {column: COLUMNS[column] for column in "xi"}
    constants = {"x": np.float64(1e9), "i": np.int64(10**9)}
    assert all(frame.few(">", name, type_, constants[name]) is not None for name, type_ in types.items())


def test_an_empty_batch() -> None:
    frame = Frame(batch_of([]))
    for sql in ("x > 1", "x > 2", "x > 3", "TRUE", "s LIKE 'a' OR s IN ('a','b','c','d','e')", "b = b"):
        true, false = compile_condition(sql, COLUMNS).evaluate(frame)
        assert (true.shape, false.shape) == ((0,), (0,))
    assert compile_expression("'a'", COLUMNS).evaluate(frame).type == pa.string()


def test_a_sliced_batch() -> None:
    batch = batch_of([{"x": float(n), "b": n % 2 == 0, "s": str(n)} for n in range(20)]).slice(9, 3)
    assert compile_expression("x", COLUMNS).evaluate(batch).to_pylist() == [9.0, 10.0, 11.0]
    assert compile_expression("b", COLUMNS).evaluate(batch).to_pylist() == [False, True, False]
    assert compile_condition("s = '10'", COLUMNS).evaluate(batch)[0].tolist() == [False, True, False]


# --- against an interpreter that walks the tree for every single row -----------------------------------------------

NUMBERS = st.sampled_from(["x", "y", "i", "j", "0", "1", "2", "-3", "0.5", "1e2"])
TEXTS = st.sampled_from(["s", "'a'", "'ab'", "''", "'%'"])


def numbers(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, st.sampled_from("+-*/%"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        inner.map(lambda a: f"ABS({a})"),
        inner.map(lambda a: f"(-({a}))"),
        st.tuples(inner, inner).map(lambda t: f"COALESCE({t[0]}, {t[1]})"),
        st.tuples(inner, inner, inner).map(
            lambda t: f"CASE WHEN {t[0]} > {t[1]} THEN {t[2]} ELSE {t[0]} END"
        ),
    )


NUMBER = st.recursive(NUMBERS, numbers, max_leaves=5)
ATOM = st.one_of(
    st.tuples(NUMBER, st.sampled_from(["=", "<>", "<", "<=", ">", ">="]), NUMBER).map(" ".join),
    st.tuples(TEXTS, st.sampled_from(["=", "<>", "<", "<=", ">", ">="]), TEXTS).map(" ".join),
    st.tuples(NUMBER, NUMBER, NUMBER).map(lambda t: f"{t[0]} BETWEEN {t[1]} AND {t[2]}"),
    st.tuples(
        NUMBER, st.lists(st.sampled_from(["1", "2", "0.5", "NULL", "i", "-3", "7"]), min_size=1, max_size=7)
    ).map(lambda t: f"{t[0]} IN ({', '.join(t[1])})"),
    st.tuples(TEXTS, st.lists(TEXTS.filter(lambda t: t != "s"), min_size=1, max_size=6)).map(
        lambda t: f"{t[0]} IN ({', '.join(t[1])})"
    ),
    st.tuples(TEXTS, st.sampled_from(["'a%'", "'_'", "'%b'", "''"])).map(lambda t: f"{t[0]} LIKE {t[1]}"),
    st.one_of(NUMBER, TEXTS).map(lambda a: f"({a}) IS NULL"),
    st.sampled_from(["b", "TRUE", "FALSE", "b = FALSE", "b <> (i > 0)", "(b AND NULL)"]),
)


def conditions(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, st.sampled_from(["AND", "OR"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        inner.map(lambda a: f"NOT ({a})"),
        inner.map(lambda a: f"({a}) IS NOT TRUE"),
        inner.map(lambda a: f"({a}) IS FALSE"),
        inner.map(lambda a: f"({a}) IS NULL"),
        st.tuples(inner, inner).map(lambda t: f"COALESCE({t[0]}, {t[1]})"),
        st.tuples(inner, inner, inner).map(lambda t: f"CASE WHEN {t[0]} THEN {t[1]} ELSE {t[2]} END"),
    )


CONDITION = st.recursive(ATOM, conditions, max_leaves=6)
ROW = st.fixed_dictionaries(
    {
        "x": st.none() | st.sampled_from([0.0, 0.5, 1.0, 2.0, -3.0, 100.0, math.inf, math.nan]),
        "y": st.none() | st.floats(-4, 4, allow_subnormal=False),
        "i": st.none() | st.sampled_from([0, 1, 2, -3, 7, LOWEST, HIGHEST]),
        "j": st.none() | st.integers(-4, 4),
        "b": st.none() | st.booleans(),
        "s": st.none() | st.sampled_from(["", "a", "ab", "b", "ü"]),
    }
)


@settings(max_examples=400, deadline=None)
@given(CONDITION, st.lists(ROW, max_size=6))
def test_conditions_equal_the_interpreter(sql: str, rows: list[dict[str, Any]]) -> None:
    expected = [interpret(sql_tree(sql), row) for row in rows]
    true, false = compile_condition(sql, COLUMNS).evaluate(batch_of(rows))
    assert (true.tolist(), false.tolist()) == (
        [found is True for found in expected],
        [found is False for found in expected],
    )


@settings(max_examples=300, deadline=None)
@given(NUMBER, st.lists(ROW, min_size=1, max_size=6))
def test_numbers_equal_the_interpreter(sql: str, rows: list[dict[str, Any]]) -> None:
    found = compile_expression(sql, COLUMNS).evaluate(batch_of(rows))
    double = found.type == pa.float64()
    for got, row in zip(found.to_pylist(), rows, strict=True):
        expected = interpret(sql_tree(sql), row)
        if expected is None or got is None:
            assert got is expected
        else:
            assert got == (float(expected) if double else expected) or (
                math.isnan(got) and math.isnan(expected)
            )


def as_declared(node: exp.Expr, value: Any) -> Any:
    """The value in the common type of the branches it was chosen from: a bigint beside a double is a double."""
    double = isinstance(value, int) and compile_expression(node, COLUMNS).type is ColumnType.DOUBLE
    return float(value) if double else value


def sql_tree(sql: str) -> exp.Expr:
    return sqlglot.parse_one(sql)


def interpret(node: Any, row: dict[str, Any]) -> Any:
    """Value of a node over one row: None for NULL, int for BIGINT, float for DOUBLE."""
    go = lambda part: interpret(part, row)  # noqa: E731
    kind = type(node)
    if kind is exp.Paren:
        return go(node.this)
    if kind is exp.Column:
        return row[node.name]
    if kind is exp.Literal:
        return node.this if node.is_string else int(node.this) if node.this.isdigit() else float(node.this)
    if kind is exp.Null:
        return None
    if kind is exp.Boolean:
        return bool(node.this)
    if kind in (exp.Neg, exp.Abs):
        a = go(node.this)
        return None if a is None else wrap(-a if kind is exp.Neg else abs(a))
    if kind is exp.And or kind is exp.Or:
        a, b, absorbing = go(node.this), go(node.expression), kind is exp.Or
        if a is absorbing or b is absorbing:
            return absorbing
        return None if a is None or b is None else not absorbing
    if kind is exp.Not:
        a = go(node.this)
        return None if a is None else not a
    if kind is exp.Is:
        a = go(node.this)
        return a is None if isinstance(node.expression, exp.Null) else a is bool(node.expression.this)
    if kind is exp.Coalesce:
        values = [go(part) for part in [node.this, *node.expressions]]
        return as_declared(node, next((a for a in values if a is not None), None))
    if kind is exp.Case:
        for branch in node.args["ifs"]:
            if go(branch.this) is True:
                return as_declared(node, go(branch.args["true"]))
        return as_declared(node, go(node.args["default"]))
    if kind is exp.Between:
        low = compared(exp.GTE, go(node.this), go(node.args["low"]))
        high = compared(exp.LTE, go(node.this), go(node.args["high"]))
        return False if False in (low, high) else None if None in (low, high) else True
    if kind is exp.In:
        found = [compared(exp.EQ, go(node.this), go(item)) for item in node.expressions]
        return True if True in found else None if None in found else False
    if kind is exp.Like:
        a = go(node.this)
        pattern = "".join({"%": ".*", "_": "."}.get(c, re.escape(c)) for c in node.expression.this)
        return None if a is None else re.fullmatch(pattern, a, re.DOTALL) is not None
    a, b = go(node.this), go(node.expression)
    if a is None or b is None:
        return None
    return compared(kind, a, b) if kind in COMPARED else arithmetic(kind, a, b)


COMPARED = {
    exp.EQ: "__eq__",
    exp.NEQ: "__ne__",
    exp.LT: "__lt__",
    exp.LTE: "__le__",
    exp.GT: "__gt__",
    exp.GTE: "__ge__",
}


def compared(kind: Any, a: Any, b: Any) -> bool | None:
    if a is None or b is None:
        return None
    if isinstance(a, float) or isinstance(b, float):
        a, b = float(a), float(b)  # BIGINT against DOUBLE is compared as DOUBLE, also beyond 2^53
    if isinstance(a, str):
        a, b = a.encode(), b.encode()
    return bool(getattr(a, COMPARED[kind])(b))


def arithmetic(kind: Any, a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        if kind in (exp.Div, exp.Mod):
            if b == 0:
                return None
            quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
            return wrap(quotient if kind is exp.Div else a - b * quotient)
        return wrap({exp.Add: a + b, exp.Sub: a - b, exp.Mul: a * b}[kind])
    a, b = np.float64(a), np.float64(b)
    with np.errstate(all="ignore"):
        function = {
            exp.Add: np.add,
            exp.Sub: np.subtract,
            exp.Mul: np.multiply,
            exp.Div: np.divide,
            exp.Mod: np.fmod,
        }
        return float(function[kind](a, b))


def wrap(a: Any) -> Any:
    return (a + 2**63) % 2**64 - 2**63 if isinstance(a, int) else a

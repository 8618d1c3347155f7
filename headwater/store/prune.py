"""Which span of event time and which keys a query can touch: files outside are not opened, rows in memory not read.

Conservative: a condition that is not understood prunes nothing. One is taken only from the WHERE of a SELECT whose FROM
is our table alone; those of several mentions of a table are joined to one that covers them all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import duckdb

from headwater.store.functions import names
from headwater.store.guard import Checked

#: Span of microseconds since the epoch, both ends included; None: open on that side.
Span = tuple[int | None, int | None]

ALL: Final[Span] = (None, None)

_FLIP: Final = {
    "COMPARE_LESSTHAN": "COMPARE_GREATERTHAN",
    "COMPARE_LESSTHANOREQUALTO": "COMPARE_GREATERTHANOREQUALTO",
    "COMPARE_GREATERTHAN": "COMPARE_LESSTHAN",
    "COMPARE_GREATERTHANOREQUALTO": "COMPARE_LESSTHANOREQUALTO",
    "COMPARE_EQUAL": "COMPARE_EQUAL",
}

#: Functions whose value is the same all through a transaction; the caller keeps one open.
_CONSTANT: Final = names("""
    now get_current_timestamp current_date today transaction_timestamp + - * timezone date_trunc make_timestamptz
    make_timestamp to_timestamp to_microseconds to_milliseconds to_seconds to_minutes to_hours to_days to_weeks
    to_months to_years epoch_ms trunc
""")


def spans(
    connection: duckdb.DuckDBPyConnection, checked: Checked, params: Sequence[object]
) -> Mapping[str, Span]:
    """Per table of the query the span of `ts` outside which no row can matter.

    connection: the one that will run the query, in the same transaction (so that now() is the same)
    raises:     duckdb.Error when a constant cannot be computed; the transaction may then be aborted
    """
    found: dict[str, list[Span]] = {}
    for name, aliases, where in _mentions(checked.tree):
        found.setdefault(name, []).append(_where(connection, where, aliases, params))
    hulls = {name: _hull(each) for name, each in found.items()}
    return {name: hulls.get(name, ALL) for name in checked.tables}


def keys(
    checked: Checked, columns: Mapping[str, str], params: Sequence[object]
) -> Mapping[str, frozenset[str]]:
    """Per table the texts of its key column outside which no row can matter; a table that may need others is absent.

    columns: by table its key column, where that holds texts
    """
    found: dict[str, list[frozenset[str] | None]] = {}
    for name, aliases, where in _mentions(checked.tree):
        each = _equal(where, columns[name], aliases, params) if name in columns else None
        found.setdefault(name, []).append(each)
    bounded = {name: [each for each in mentions if each is not None] for name, mentions in found.items()}
    return {name: frozenset().union(*each) for name, each in bounded.items() if len(each) == len(found[name])}


def _mentions(tree: Any) -> Iterator[tuple[str, set[str], Any]]:
    """Every mention of a table: its name, what its columns may be called by, and the condition that its rows must meet.

    None: the condition is not known.
    """
    # What is found twice, once alone and once as part of a join, has no condition the second time and is not pruned.
    stack = [tree]
    while stack:
        part = stack.pop()
        if isinstance(part, list):
            stack.extend(part)
        if not isinstance(part, dict):
            continue
        source = part.get("from_table")
        if (
            part.get("type") == "SELECT_NODE"
            and isinstance(source, dict)
            and source.get("type") == "BASE_TABLE"
        ):
            name = source["table_name"].lower()
            aliases = {name, (source.get("alias") or name).lower()}
            # A sample is taken of all rows, before the condition.
            other = source.get("column_name_alias") or source.get("sample") or part.get("sample")
            yield name, aliases, None if other else part.get("where_clause")
            stack.extend(value for key, value in part.items() if key != "from_table")
            continue
        if part.get("type") == "BASE_TABLE":
            yield part["table_name"].lower(), set(), None
        stack.extend(part.values())


def _where(
    connection: duckdb.DuckDBPyConnection, where: Any, aliases: set[str], params: Sequence[object]
) -> Span:
    low: int | None = None
    high: int | None = None
    for kind, value in _bounds(where, aliases):
        at = _evaluate(connection, value, params)
        if at is None:
            continue
        # `<` and `<=` alike: a file that touches the bound is opened, the condition itself is DuckDB's.
        if kind in ("COMPARE_GREATERTHAN", "COMPARE_GREATERTHANOREQUALTO", "COMPARE_EQUAL"):
            low = at if low is None else max(low, at)
        if kind in ("COMPARE_LESSTHAN", "COMPARE_LESSTHANOREQUALTO", "COMPARE_EQUAL"):
            high = at if high is None else min(high, at)
    return low, high


def _bounds(where: Any, aliases: set[str]) -> list[tuple[str, Any]]:
    """(comparison, constant) of every condition on `ts` that all rows must meet, as if `ts` stood on the left."""
    if not isinstance(where, dict):
        return []
    if where.get("type") == "CONJUNCTION_AND":
        return [bound for child in where["children"] for bound in _bounds(child, aliases)]
    if where.get("type") == "COMPARE_BETWEEN" and _is(where["input"], "ts", aliases):
        return [
            ("COMPARE_GREATERTHANOREQUALTO", where["lower"]),
            ("COMPARE_LESSTHANOREQUALTO", where["upper"]),
        ]
    kind = where.get("type")
    if kind in _FLIP:
        if _is(where["left"], "ts", aliases):
            return [(kind, where["right"])]
        if _is(where["right"], "ts", aliases):
            return [(_FLIP[kind], where["left"])]
    return []


def _equal(where: Any, column: str, aliases: set[str], params: Sequence[object]) -> frozenset[str] | None:
    """What the column must be equal to in every row that meets the condition; None: not known."""
    if not isinstance(where, dict):
        return None
    if where.get("type") == "CONJUNCTION_AND":
        found = (_equal(child, column, aliases, params) for child in where["children"])
        return next((each for each in found if each is not None), None)
    if where.get("type") == "COMPARE_EQUAL":
        sides = [where["left"], where["right"]]
        others = [other for one, other in (sides, sides[::-1]) if _is(one, column, aliases)]
    elif where.get("type") == "COMPARE_IN" and _is(where["children"][0], column, aliases):
        others = where["children"][1:]
    else:
        return None
    texts = [_text(other, params) for other in others]
    known = [text for text in texts if text is not None]
    return frozenset(known) if known and len(known) == len(texts) else None


def _text(part: Any, params: Sequence[object]) -> str | None:
    """A constant or parameter that is a text."""
    if not isinstance(part, dict):
        return None
    if part.get("class") == "CONSTANT":
        literal = part.get("literal") or {}
        text = literal.get("text")
        return text if literal.get("kind") == "STRING" and isinstance(text, str) else None
    if part.get("class") == "PARAMETER":
        value = _bound(part, params)
        return value if isinstance(value, str) else None
    return None


def _bound(part: dict[str, Any], params: Sequence[object]) -> object:
    """What a parameter stands for; None where there is none of its number."""
    identifier = str(part.get("identifier", ""))
    known = identifier.isdigit() and 1 <= int(identifier) <= len(params)
    return params[int(identifier) - 1] if known else None


def _is(part: Any, column: str, aliases: set[str]) -> bool:
    """Whether it is the column of the table."""
    if not isinstance(part, dict) or part.get("class") != "COLUMN_REF":
        return False
    path = [name.lower() for name in part["column_names"]]
    return path == [column] or (len(path) == 2 and path[0] in aliases and path[1] == column)


def _evaluate(connection: duckdb.DuckDBPyConnection, part: Any, params: Sequence[object]) -> int | None:
    """Microseconds of a constant, as DuckDB computes it when it compares it with `ts`; None where it is none.

    raises: duckdb.Error when it cannot be computed
    """
    if not isinstance(part, dict) or not _is_constant(part, part):
        return None
    bound: list[object] = []
    if part.get("class") == "PARAMETER":
        value = _bound(part, params)
        if value is None:
            return None
        bound = [value]
        text = "?"
    else:
        # The expression goes back to text by DuckDB's own printer.
        tree = json.loads(_one(connection, "SELECT json_serialize_sql('SELECT 1')"))
        tree["statements"][0]["node"]["select_list"] = [part]
        text = _one(connection, "SELECT json_deserialize_sql(?::JSON)", [json.dumps(tree)])
        text = text.removeprefix("SELECT ").rstrip("; ")
    value = _one(connection, f"SELECT epoch_us(CAST(({text}) AS TIMESTAMPTZ))", bound)
    return value if isinstance(value, int) else None


def _one(connection: duckdb.DuckDBPyConnection, sql: str, params: Sequence[object] = ()) -> Any:
    return connection.execute(sql, list(params)).fetchall()[0][0]


def _is_constant(part: Any, whole: Any) -> bool:
    if isinstance(part, list):
        return all(_is_constant(item, whole) for item in part)
    if not isinstance(part, dict):
        return True
    class_ = part.get("class")
    if class_ in ("COLUMN_REF", "SUBQUERY", "WINDOW", "LAMBDA", "STAR", "POSITIONAL_REFERENCE"):
        return False
    if class_ == "PARAMETER" and part is not whole:
        return False
    if class_ == "FUNCTION" and part["function_name"].lower() not in _CONSTANT:
        return False
    return all(_is_constant(value, whole) for value in part.values())


def _hull(each: Sequence[Span]) -> Span:
    lows, highs = [low for low, _ in each], [high for _, high in each]
    known_lows = [low for low in lows if low is not None]
    known_highs = [high for high in highs if high is not None]
    return (
        min(known_lows) if len(known_lows) == len(lows) else None,
        max(known_highs) if len(known_highs) == len(highs) else None,
    )

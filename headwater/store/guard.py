"""Which SQL may run: one read-only SELECT over our tables, judged on DuckDB's own syntax tree.

The tree comes from the parser that will run the text (`json_serialize_sql`), so there is no second grammar whose
differences could let something through. Everything in it is on an allow-list: kinds of nodes, functions, types and
table names. What is not known is refused; a new DuckDB that adds a kind of node makes queries fail here, never pass.
This module decides on text alone: it opens no file and runs nothing but the parser.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

import duckdb

from headwater.errors import SqlError
from headwater.store.functions import FUNCTIONS, OPERATORS, TABLE_FUNCTIONS, TYPES, names

#: Longest text accepted, bytes of UTF-8. The parser's time and memory grow with it. Ours.
MAX_SQL_BYTES: Final = 64 << 10

_EXPRESSIONS: Final = names("""
    BETWEEN CASE CAST COLLATE COLUMN_REF COMPARISON CONJUNCTION CONSTANT FUNCTION LAMBDA OPERATOR PARAMETER
    POSITIONAL_REFERENCE STAR SUBQUERY TYPE WINDOW
""")
_NODES: Final = names("""
    SELECT_NODE SET_OPERATION_NODE RECURSIVE_CTE_NODE CTE_NODE
    BASE_TABLE SUBQUERY JOIN TABLE_FUNCTION EXPRESSION_LIST EMPTY PIVOT
    ORDER_MODIFIER LIMIT_MODIFIER LIMIT_PERCENT_MODIFIER DISTINCT_MODIFIER
    ORDER_DEFAULT ASCENDING DESCENDING
""")
_CTE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


@dataclass(frozen=True, slots=True)
class Checked:
    """A query that may run.

    tables: names of our tables that it reads, lower case
    tree:   DuckDB's syntax tree of the one statement, as `json_serialize_sql` gives it
    """

    sql: str
    tables: frozenset[str]
    tree: dict[str, Any]


def check(connection: duckdb.DuckDBPyConnection, sql: str, tables: Collection[str]) -> Checked:
    """Judges `sql`.

    connection: any connection; only its parser is used
    tables:     names that may be read, lower case
    raises:     SqlError with position and reason
    """
    if len(sql.encode("utf-8", "surrogatepass")) > MAX_SQL_BYTES:
        raise SqlError(f"the query is longer than {MAX_SQL_BYTES} bytes; bind long values as parameters")
    if "\0" in sql or any("\ud800" <= char <= "\udfff" for char in sql):
        raise SqlError("the query holds a character that is no text (NUL or half of a surrogate pair)")
    tree = _parse(connection, sql)
    try:
        return Checked(sql, frozenset(_judge(tree, sql, tables)), tree)
    except RecursionError:
        raise SqlError("the query is nested too deeply") from None


def _parse(connection: duckdb.DuckDBPyConnection, sql: str) -> dict[str, Any]:
    try:
        text = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchall()[0][0]
        answer = json.loads(text)
    except RecursionError:
        raise SqlError("the query is nested too deeply") from None
    except duckdb.Error as error:
        raise SqlError(f"the query cannot be parsed: {_first_line(error)}") from None
    if answer["error"]:
        if answer.get("error_type") == "not implemented":
            raise SqlError(f"{_kind(connection, sql)}; send one read-only SELECT")
        position = answer.get("position")
        raise SqlError(
            f"syntax: {answer.get('error_message', 'not SQL')}",
            None if position is None else _characters(sql, int(position)),
        )
    statements = answer["statements"]
    if not statements:
        raise SqlError("the query is empty; send one read-only SELECT")
    if len(statements) > 1:
        raise SqlError(f"{len(statements)} statements in one text; send one read-only SELECT")
    if (kind := _kind(connection, sql)) != "SELECT":
        raise SqlError(f"{kind}; send one read-only SELECT")
    statement: dict[str, Any] = statements[0]
    return statement


def _kind(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    """`SELECT`, or why the text is none, by the interface that also executes it."""
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        return f"the query cannot be parsed: {_first_line(error)}"
    if len(statements) != 1:
        return f"{len(statements)} statements in one text"
    try:
        type_ = statements[0].type
    except ValueError:
        # A kind that the parser knows and its Python interface does not, such as CONNECT.
        return "the query is no SELECT"
    if type_ is duckdb.StatementType.SELECT:
        return "SELECT"
    return f"{type_.name} is not accepted"


def _judge(tree: dict[str, Any], sql: str, tables: Collection[str]) -> Iterator[str]:
    """Names of our tables that the tree reads. The stack holds (part of the tree, CTE names in scope there)."""
    stack: list[tuple[Any, frozenset[str]]] = [(tree, frozenset())]
    while stack:
        part, scope = stack.pop()
        if isinstance(part, list):
            stack.extend((item, scope) for item in part)
        if not isinstance(part, dict):
            continue
        class_, type_ = part.get("class"), part.get("type")
        if isinstance(class_, str):
            _expression(part, class_, sql)
        elif isinstance(type_, str):
            _node(part, type_, sql)
        if type_ == "BASE_TABLE":
            name = part["table_name"].lower()
            if name not in scope:
                yield _table(part, name, sql, tables)
        for entry in part.get("cte_map", {}).get("map", ()):
            # A CTE sees those before it, and itself only when it is recursive: as DuckDB binds them.
            name = entry["key"].lower()
            if not _CTE_NAME.fullmatch(name):
                raise SqlError(f"WITH {entry['key']!r}: a name is letters, digits and _")
            node = entry["value"]["query_node"]
            recursive = node["type"] == "RECURSIVE_CTE_NODE"
            stack.append((entry["value"], scope | {name} if recursive else scope))
            scope = scope | {name}
        if type_ == "TABLE_FUNCTION":
            # Its call is judged by _node; as an expression it would need the scalar function's leave.
            stack.extend((value, scope) for value in part["function"].values())
            continue
        stack.extend((value, scope) for key, value in part.items() if key != "cte_map")


def _expression(part: dict[str, Any], class_: str, sql: str) -> None:
    if class_ not in _EXPRESSIONS:
        raise SqlError(f"{class_.lower().replace('_', ' ')} expressions are not accepted", _at(part, sql))
    if class_ in ("FUNCTION", "WINDOW"):
        name = _one_name(part, sql, "function").lower()
        allowed = OPERATORS if part.get("is_operator") else FUNCTIONS
        if name not in allowed or part.get("export_state"):
            raise SqlError(f"function {name!r} is not accepted{_nearest(name, allowed)}", _at(part, sql))
    if class_ == "TYPE" and (name := _one_name(part, sql, "type").lower()) not in TYPES:
        raise SqlError(f"type {name!r} is not accepted{_nearest(name, TYPES)}", _at(part, sql))


def _node(part: dict[str, Any], type_: str, sql: str) -> None:
    if type_ == "SHOW_REF":
        raise SqlError(
            "DESCRIBE, SHOW and SUMMARIZE are not accepted; send one read-only SELECT", _at(part, sql)
        )
    if type_ not in _NODES:
        raise SqlError(f"{type_.lower().replace('_', ' ')} is not accepted", _at(part, sql))
    if part.get("at_clause") is not None:
        raise SqlError("AT (reading an older version) is not accepted", _at(part, sql))
    if type_ == "TABLE_FUNCTION":
        function = part["function"]
        name = _one_name(function, sql, "function").lower() if function.get("class") == "FUNCTION" else ""
        if name not in TABLE_FUNCTIONS:
            allowed = ", ".join(sorted(TABLE_FUNCTIONS))
            raise SqlError(f"table function {name!r} is not accepted; there are {allowed}", _at(part, sql))


def _table(part: dict[str, Any], name: str, sql: str, tables: Collection[str]) -> str:
    _one_name(part, sql, "table")
    if name not in tables:
        raise SqlError(f"there is no table {part['table_name']!r}{_nearest(name, tables)}", _at(part, sql))
    return name


def _one_name(part: dict[str, Any], sql: str, what: str) -> str:
    """The plain name of a table, function or type. A qualified one could reach the catalog."""
    path = part["qualified_name"]["path"]
    if len(path) != 1 or any(part.get(key) for key in ("catalog", "catalog_name", "schema", "schema_name")):
        raise SqlError(f"{what} {'.'.join(path)!r}: write the name alone", _at(part, sql))
    name: str = path[0]
    return name


def _nearest(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _at(part: dict[str, Any], sql: str) -> int | None:
    at = part.get("query_location")
    return _characters(sql, at) if isinstance(at, int) and at < len(sql.encode()) else None


def _characters(sql: str, at_byte: int) -> int:
    """DuckDB counts bytes; an error's position counts characters."""
    return len(sql.encode()[:at_byte].decode(errors="ignore"))


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]

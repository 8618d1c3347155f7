"""Continuous SQL to a typed plan: what a query reads, how it groups, what it counts and what its rows look like.

Pure: no log, no kernel, no clock. The language is a subset of Flink SQL (docs/sql.md lists it with every refusal);
what is outside is refused with the position, what was found and the nearest thing that works.

source: Apache Flink documentation, "Windowing TVF" and "Window Aggregation"
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from sqlglot import exp

from headwater.errors import SqlError
from headwater.expressions import Condition, compile_condition
from headwater.records import NAME, Column, ColumnType, Schema
from headwater.streams import dialect

#: Columns of the window itself. `window_time` is the window's last millisecond, as in Flink.
WINDOW_COLUMNS: Final = ("window_start", "window_end", "window_time")
#: Event time of a result row, and how often its window was amended. Every result has them.
RESULT_COLUMNS: Final = ("ts", "revision")
#: Names no result column may have: the two above, and what stores add to a table.
_RESERVED: Final = (*RESULT_COLUMNS, "received_at", "hour", "_key", "_partition", "_offset")

_TUMBLE: Final = "TABLE(TUMBLE(TABLE {table}, DESCRIPTOR(ts), INTERVAL '5' MINUTES))"

#: Every refusal of this module, by code: docs/sql.md shows each with an example, and a test compares.
REFUSALS: Final[Mapping[str, str]] = {
    "not-select": "found {found}; a query is one SELECT ... FROM "
    + _TUMBLE.format(table="telemetry")
    + " GROUP BY ...",
    "with": "found WITH; name the inner query as [queries.<name>] and read it by that name",
    "distinct": "found DISTINCT; rows of a result are distinct by group columns and window already",
    "order": "found {found}; a continuous result has no end to order or cut, do it when you query the table",
    "having": "found HAVING; filter when you query the result, or in an alarm's where",
    "join": "found a join; a query reads one stream",
    "clause": "found {found}; a query is SELECT, FROM, WHERE and GROUP BY",
    "subquery": "found a query inside FROM; name the inner query as [queries.<name>] and read it by that name",
    "no-from": "found no FROM; read a stream by FROM " + _TUMBLE,
    "no-window": "found {found}, which is no window table; write FROM " + _TUMBLE,
    "window-kind": "found {found}; TUMBLE is the window that is available: " + _TUMBLE,
    "window-arguments": "found {found}; TUMBLE takes TABLE, DESCRIPTOR and a size, such as " + _TUMBLE,
    "window-offset": "found a window offset; windows are aligned to 1970-01-01T00:00:00Z, leave it out",
    "descriptor": "found DESCRIPTOR({found}); the event time of {table} is ts, write DESCRIPTOR(ts)",
    "interval": "found INTERVAL {found}; the units are DAY, HOUR, MINUTE and SECOND, such as INTERVAL '5' MINUTES",
    "size": "found a window of {found}; a window lasts whole milliseconds, at least 1 and at most 366 days",
    "table": "found {found!r}, which is no stream and no query{nearest}",
    "no-time": "found {found!r}, a table without event time ts; windows need one",
    "column": "found {found!r}, which is no column of {table}{nearest}",
    "qualified": "found {found!r}; the window table is known here only {alias}",
    "star": "found *; name the columns, a grouped query has no others",
    "not-grouped": "found {found!r} outside an aggregate; add it to GROUP BY or aggregate it, such as MAX({found})",
    "expression": "found {found}; SELECT holds group columns and aggregates, compute when you query the result",
    "aggregate": "found {found}; the aggregates are AVG, SUM, MIN, MAX, COUNT(x) and COUNT(*)",
    "aggregate-argument": "found {found}; an aggregate takes one plain column, such as {function}({example})",
    "aggregate-type": "found {function} of {found!r}, a {type}; it takes {takes}",
    "aggregate-distinct": "found {function}(DISTINCT ...); group by the column and count when you query the result",
    "aggregate-modifier": "found {found} on an aggregate; move a condition to WHERE, one query per condition",
    "no-aggregate": "found no aggregate; add one, such as COUNT(*) AS n",
    "alias-missing": "found {found} without a name; write {found} AS {example}",
    "alias": "found the name {found!r}; a name is lower-case letters, digits and _, at most 63",
    "alias-reserved": "found the name {found!r}, which every result has by itself; choose another",
    "alias-twice": "found the name {found!r} twice; each column of a result has its own name",
    "no-group": "found no GROUP BY; write GROUP BY {example}",
    "group-window": "found GROUP BY without {found}; a window is named by both, write GROUP BY {example}",
    "group-expression": "found {found} in GROUP BY; group by plain columns",
    "group-type": "found {found!r} in GROUP BY, a {type}; group by string, bigint, boolean or timestamp",
    "group-twice": "found {found!r} in GROUP BY twice; once is enough",
}

_MAX_SIZE_US: Final = 366 * 86_400_000_000
_FUNCTIONS: Final[Mapping[type[exp.Expr], str]] = {
    exp.Avg: "avg",
    exp.Sum: "sum",
    exp.Min: "min",
    exp.Max: "max",
    exp.Count: "count",
}
_FROM_PARTS: Final = {"sample": "TABLESAMPLE", "pivots": "PIVOT", "version": "FOR SYSTEM_TIME"}
_NUMERIC: Final = (ColumnType.DOUBLE, ColumnType.BIGINT)
_ORDERED: Final = (*_NUMERIC, ColumnType.TIMESTAMP)
_GROUPS: Final = (ColumnType.STRING, ColumnType.BIGINT, ColumnType.BOOLEAN, ColumnType.TIMESTAMP)


@dataclass(frozen=True, slots=True)
class Group:
    """A group column: its name in the source and in the result."""

    column: str
    alias: str
    type: ColumnType


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One aggregate. function: count_star | count | sum | avg | min | max; column: None for count_star.

    type: of the result. As in Flink, AVG and SUM of a bigint are bigint (AVG truncates towards zero).
    """

    function: str
    column: str | None
    alias: str
    type: ColumnType


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked query.

    columns: of the result, in order: those of SELECT, then group columns and window bounds it leaves out (they name the
             row), then `ts` (last millisecond of the window) and `revision`
    windows: result column -> window_start | window_end | window_time
    key:     result column whose hash partitions the result: the group column that is the source's key, else the
             first string group column, else None
    """

    name: str
    sql: str
    source: str
    size_us: int
    groups: tuple[Group, ...]
    aggregates: tuple[Aggregate, ...]
    where: Condition | None
    where_sql: str | None
    windows: Mapping[str, str]
    columns: tuple[Column, ...]
    key: str | None

    @property
    def latest_by(self) -> tuple[str, ...]:
        """Result columns that name a window of a key: `latest_by` of its table."""
        bounds = [name for name, what in self.windows.items() if what != "window_time"]
        return (*(group.alias for group in self.groups), *bounds)

    def signature(self, source: Schema) -> str:
        """Names the meaning of the engine's state: equal signatures can go on from each other's checkpoint."""
        types = {column.name: column.type.value for column in source.columns}
        meaning = {
            "source": [source.stream, source.key],
            "size_us": self.size_us,
            "groups": [[group.column, group.alias, group.type.value] for group in self.groups],
            "aggregates": [
                [a.function, a.column, a.alias, types.get(a.column or "")] for a in self.aggregates
            ],
            "where": self.where_sql,
            "columns": [[column.name, column.type.value] for column in self.columns],
        }
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:16]


def plan(sql: str, name: str, tables: Mapping[str, Schema]) -> Plan:
    """The plan of query `name` over `tables` (streams and the results of other queries).

    raises: SqlError, message `query <name>, line L, column C: found ...; <what works>`, with position

    >>> from headwater.records import Column, ColumnType, Schema
    >>> columns = (Column("device", ColumnType.STRING), Column("ts", ColumnType.TIMESTAMP))
    >>> text = '''SELECT device, COUNT(*) AS n FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' HOUR))
    ...           GROUP BY device, window_start, window_end'''
    >>> [column.name for column in plan(text, "hourly", {"t": Schema(16, 16, "t", columns, "device")}).columns]
    ['device', 'n', 'window_start', 'window_end', 'ts', 'revision']
    """
    try:
        return _Planner(name, sql, tables).plan(dialect.parse(sql))
    except SqlError as error:
        at = ""
        if error.position is not None:
            before = sql[: error.position]
            at = f", line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"
        reason = re.sub(
            r"^at position \d+: ", "", str(error)
        )  # of an expression: line and column say it better
        raise SqlError(f"query {name}{at}: {reason}", error.position) from None


class _Planner:
    """Walks the tree once; every check raises at the node that it refuses."""

    def __init__(self, name: str, sql: str, tables: Mapping[str, Schema]) -> None:
        self._name = name
        self._sql = sql
        self._tables = tables
        self._alias: str | None = None
        self._source: Schema

    def plan(self, tree: exp.Expr) -> Plan:
        select = self._select(tree)
        size_us = self._from(select)
        source = self._source
        where, where_sql = self._where(select)
        groups = self._group_by(select)
        selected = self._items(select, groups)
        aggregates = tuple(item for item in selected.values() if isinstance(item, Aggregate))
        if not aggregates:
            raise _refuse("no-aggregate", select.expressions[-1])
        named = {item: alias for alias, item in selected.items() if isinstance(item, str)}
        for missing in [*(g for g in groups if g not in WINDOW_COLUMNS), "window_start", "window_end"]:
            if missing not in named:
                if missing in selected:
                    raise _refuse("alias-twice", select, found=missing)
                selected[missing] = missing
                named[missing] = missing
        keys = tuple(Group(g, named[g], self._column_type(g)) for g in groups if g not in WINDOW_COLUMNS)
        return Plan(
            name=self._name,
            sql=self._sql,
            source=source.name,
            size_us=size_us,
            groups=keys,
            aggregates=aggregates,
            where=where,
            where_sql=where_sql,
            windows={alias: item for alias, item in selected.items() if item in WINDOW_COLUMNS},
            columns=(
                *(Column(alias, self._result_type(item)) for alias, item in selected.items()),
                Column("ts", ColumnType.TIMESTAMP),
                Column("revision", ColumnType.BIGINT),
            ),
            key=_key(source, keys),
        )

    def _select(self, tree: exp.Expr) -> exp.Select:
        if not isinstance(tree, exp.Select):
            raise _refuse("not-select", tree, found=tree.key.upper())
        clauses: dict[str, tuple[str, str]] = {
            "with_": ("with", "WITH"),
            "distinct": ("distinct", "DISTINCT"),
            "order": ("order", "ORDER BY"),
            "limit": ("order", "LIMIT"),
            "offset": ("order", "OFFSET"),
            "having": ("having", "HAVING"),
            "joins": ("join", "JOIN"),
            "laterals": ("join", "LATERAL"),
        }
        for argument, value in tree.args.items():
            if not value or argument in ("expressions", "from_", "where", "group", "kind"):
                continue
            code, found = clauses.get(argument, ("clause", argument.strip("_").upper().replace("_", " ")))
            error = _refuse(code, tree, found=found)
            raise SqlError(str(error), dialect.keyword_position(self._sql, found.split()[0], error.position))
        return tree

    def _from(self, select: exp.Select) -> int:
        found = select.args.get("from_")
        table = found.this if found is not None else None
        if table is None:
            raise _refuse("no-from", select, table=next(iter(self._tables), "telemetry"))
        if isinstance(table, exp.Subquery):
            raise _refuse("subquery", table)
        if table.args.get("joins"):
            raise _refuse("join", table.args["joins"][0])
        beside = [name for name, value in table.args.items() if value and name not in ("this", "alias")]
        if not isinstance(table, exp.Table) or beside or table.alias_column_names:
            found = beside[0] if beside else "column names" if isinstance(table, exp.Table) else table.key
            raise _refuse("clause", table, found=_FROM_PARTS.get(found, found.upper()) + " in FROM")
        self._alias = table.alias or None
        window = table.this
        if (
            isinstance(window, exp.Anonymous)
            and window.name.upper() == "TABLE"
            and len(window.expressions) == 1
        ):
            window = window.expressions[0]
            if isinstance(window, dialect.WindowFunction):
                return self._window(window)
        inner = table.find(dialect.TableArgument)
        name = inner.this.name if inner else table.name or next(iter(self._tables), "telemetry")
        raise _refuse("no-window", table, found=_text(table), table=name)

    def _window(self, window: dialect.WindowFunction) -> int:
        arguments = _by_name(window)
        argument = arguments.get("DATA")
        name = argument.this.name if isinstance(argument, dialect.TableArgument) else "telemetry"
        if window.this != "TUMBLE":
            raise _refuse("window-kind", window, found=window.this, table=name)
        descriptor, size = arguments.get("TIMECOL"), arguments.get("SIZE")
        if "OFFSET" in arguments:
            raise _refuse("window-offset", arguments["OFFSET"])
        unknown = set(arguments) - {"DATA", "TIMECOL", "SIZE"}
        if (
            unknown
            or not isinstance(argument, dialect.TableArgument)
            or argument.args.get("partition")
            or not isinstance(descriptor, dialect.Descriptor)
            or not isinstance(size, dialect.DayTimeInterval)
        ):
            raise _refuse("window-arguments", window, found="other arguments", table=name)
        if name not in self._tables:
            raise _refuse("table", argument.this, found=name, nearest=_nearest(name, self._tables))
        self._source = self._tables[name]
        if self._column_or_none("ts") is not ColumnType.TIMESTAMP:
            raise _refuse("no-time", argument.this, found=name)
        columns = [column.name for column in descriptor.expressions]
        if columns != ["ts"]:
            raise _refuse("descriptor", descriptor, found=", ".join(columns), table=name)
        size_us = dialect.interval_us(size)
        shown = _interval_text(size)
        if size_us is None:
            raise _refuse("interval", size, found=shown)
        if size_us % 1000 or not 1000 <= size_us <= _MAX_SIZE_US:
            raise _refuse("size", size, found=shown)
        return size_us

    def _where(self, select: exp.Select) -> tuple[Condition | None, str | None]:
        where = select.args.get("where")
        if where is None:
            return None, None
        for column in where.find_all(exp.Column):
            self._unqualified(column)
            column.set("table", None)
        columns = {column.name: column.type for column in self._source.columns}
        return compile_condition(where.this, columns), where.this.sql(dialect.ContinuousSql)

    def _group_by(self, select: exp.Select) -> list[str]:
        group = select.args.get("group")
        example = ", ".join([*([self._source.key] if self._source.key else []), "window_start", "window_end"])
        if group is None:
            raise _refuse("no-group", select.expressions[0], example=example)
        for argument, value in group.args.items():
            if value and argument != "expressions":
                raise _refuse("group-expression", group, found=argument.upper().replace("_", " "))
        names: list[str] = []
        for node in group.expressions:
            if not isinstance(node, exp.Column):
                raise _refuse("group-expression", node, found=_text(node))
            name = self._unqualified(node)
            if name in names:
                raise _refuse("group-twice", node, found=name)
            if name not in WINDOW_COLUMNS:
                type_ = self._checked_type(node, name)
                if type_ not in _GROUPS:
                    raise _refuse("group-type", node, found=name, type=type_)
            names.append(name)
        for bound in ("window_start", "window_end"):
            if bound not in names:
                raise _refuse("group-window", group, found=bound, example=example)
        return names

    def _items(self, select: exp.Select, groups: list[str]) -> dict[str, str | Aggregate]:
        """Result name -> group or window column, or aggregate; in the order of SELECT."""
        items: dict[str, str | Aggregate] = {}
        for node in select.expressions:
            alias = node.alias if isinstance(node, exp.Alias) else None
            inner = node.this if isinstance(node, exp.Alias) else node
            if isinstance(inner, exp.Star) or (
                isinstance(inner, exp.Column) and isinstance(inner.this, exp.Star)
            ):
                raise _refuse("star", inner)
            if isinstance(inner, exp.Column):
                item: str | Aggregate = self._grouped(inner, groups)
                alias = alias or inner.name
            else:
                item = self._aggregate(inner, alias)
                alias = item.alias
            if not NAME.fullmatch(alias):
                raise _refuse("alias", node, found=alias)
            if alias in _RESERVED:
                raise _refuse("alias-reserved", node, found=alias)
            if alias in items or (isinstance(item, str) and item in items.values()):
                raise _refuse("alias-twice", node, found=alias)
            items[alias] = item
        return items

    def _grouped(self, node: exp.Column, groups: list[str]) -> str:
        name = self._unqualified(node)
        if name not in WINDOW_COLUMNS:
            self._checked_type(node, name)
        if name not in groups:
            raise _refuse("not-grouped", node, found=name)
        return name

    def _aggregate(self, node: exp.Expr, alias: str | None) -> Aggregate:
        if isinstance(node, exp.Filter | exp.Window | exp.WithinGroup | exp.IgnoreNulls | exp.RespectNulls):
            found = {"filter": "FILTER", "window": "OVER"}.get(node.key, node.key.upper())
            raise _refuse("aggregate-modifier", node, found=found)
        function = _FUNCTIONS.get(type(node))
        if function is None:
            code = "aggregate" if isinstance(node, exp.AggFunc) else "expression"
            raise _refuse(code, node, found=_text(node))
        if isinstance(node.this, exp.Distinct):
            raise _refuse("aggregate-distinct", node, function=function.upper())
        if alias is None:
            name = node.this.name if isinstance(node.this, exp.Column) else "n"
            example = "n" if function == "count" else f"{function}_{name}"
            raise _refuse("alias-missing", node, found=_text(node), example=example)
        if isinstance(node, exp.Count) and isinstance(node.this, exp.Star):
            return Aggregate("count_star", None, alias, ColumnType.BIGINT)
        if not isinstance(node.this, exp.Column) or node.expressions or node.args.get("expression"):
            example = next((c.name for c in self._source.columns if c.type in _NUMERIC), "x")
            raise _refuse(
                "aggregate-argument", node, found=_text(node), function=function.upper(), example=example
            )
        name = self._unqualified(node.this)
        type_ = self._checked_type(node.this, name)
        if function == "count":
            return Aggregate("count", name, alias, ColumnType.BIGINT)
        accepted = _NUMERIC if function in ("avg", "sum") else _ORDERED
        if type_ not in accepted:
            takes = ", ".join(accepted[:-1]) + " or " + accepted[-1]
            raise _refuse(
                "aggregate-type", node.this, function=function.upper(), found=name, type=type_, takes=takes
            )
        return Aggregate(function, name, alias, type_)

    def _unqualified(self, node: exp.Column) -> str:
        """The column's name. A qualifier must be the alias of the window table."""
        if node.table and (node.table != self._alias or node.args.get("db")):
            alias = f"by its alias {self._alias}" if self._alias else "without a name"
            raise _refuse("qualified", node, found=_text(node), alias=alias)
        return node.name

    def _checked_type(self, node: exp.Expr, name: str) -> ColumnType:
        type_ = self._column_or_none(name)
        if type_ is None:
            known = [*(column.name for column in self._source.columns), *WINDOW_COLUMNS]
            raise _refuse("column", node, found=name, table=self._source.name, nearest=_nearest(name, known))
        return type_

    def _column_or_none(self, name: str) -> ColumnType | None:
        column = self._source.column(name)
        return None if column is None else column.type

    def _column_type(self, name: str) -> ColumnType:
        return next(column.type for column in self._source.columns if column.name == name)

    def _result_type(self, item: str | Aggregate) -> ColumnType:
        if isinstance(item, Aggregate):
            return item.type
        return ColumnType.TIMESTAMP if item in WINDOW_COLUMNS else self._column_type(item)


def _refuse(code: str, node: exp.Expr, **values: object) -> SqlError:
    return SqlError(REFUSALS[code].format(**values), dialect.position(node))


def _by_name(window: dialect.WindowFunction) -> dict[str, exp.Expr]:
    """Arguments by their Flink names; unnamed ones take the names in order."""
    order = ("DATA", "TIMECOL", "SIZE", "OFFSET")
    arguments: dict[str, exp.Expr] = {}
    for at, node in enumerate(window.expressions):
        if isinstance(node, dialect.NamedArgument):
            arguments[node.this] = node.expression
        else:
            arguments[order[at] if at < len(order) else f"argument {at + 1}"] = node
    return arguments


def _interval_text(interval: dialect.DayTimeInterval) -> str:
    last = interval.args.get("last")
    return f"'{interval.args['this']}' {interval.args['first']}{f' TO {last}' if last else ''}"


def _text(node: exp.Expr) -> str:
    """The node as SQL, short enough for a message."""
    for part in (*node.find_all(dialect.WindowFunction),):
        return f"{part.this}(...)"
    try:
        shown: str = node.sql(dialect.ContinuousSql)
    except ValueError:
        # sqlglot writes only its own nodes: what stands within is one of ours.
        shown = next(type(part).__name__ for part in node.walk() if type(part).__module__ == dialect.__name__)
        return f"{shown.upper()}(...)"
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _nearest(wrong: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(wrong, names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are {', '.join(names)}" if names else "; there are none"


def _key(source: Schema, groups: tuple[Group, ...]) -> str | None:
    for group in groups:
        if group.column == source.key:
            return group.alias
    return next((group.alias for group in groups if group.type is ColumnType.STRING), None)

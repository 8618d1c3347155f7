"""Continuous SQL to a typed plan: what a query reads, how it groups, what it counts and what its rows look like.

Pure: no log, no kernel, no clock. The language is a subset of Flink SQL (docs/sql.md lists it with every refusal);
what is outside is refused with the position, what was found and the nearest thing that works.

source: Apache Flink documentation, "Windowing TVF" and "Window Aggregation"
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sqlglot import exp

from headwater.errors import SqlError
from headwater.expressions import Condition, Expression, compile_condition, compile_expression
from headwater.records import NAME, Column, ColumnType, Schema
from headwater.streams import dialect
from headwater.streams.aggregates import Aggregates, is_aggregate
from headwater.streams.patterns import match_plan
from headwater.streams.plan import GROUP_TYPES, RESERVED, WINDOW_COLUMNS, Aggregate, Group, Plan, result_key
from headwater.streams.refusals import REFUSALS, nearest, refuse, text
from headwater.streams.window_table import WindowTable, window_table

__all__ = ["REFUSALS", "Aggregate", "Group", "Plan", "plan"]


def plan(sql: str, name: str, tables: Mapping[str, Schema]) -> Plan:
    """The plan of query `name` over `tables` (streams and the results of other queries).

    raises: SqlError, message `query <name>, line L, column C: found ...; <what works>`, with position

    >>> from headwater.records import Column, ColumnType, Schema
    >>> columns = (Column("device", ColumnType.STRING), Column("ts", ColumnType.TIMESTAMP))
    >>> sql = '''SELECT device, COUNT(*) AS n FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' HOUR))
    ...          GROUP BY device, window_start, window_end'''
    >>> [column.name for column in plan(sql, "hourly", {"t": Schema(16, 16, "t", columns, "device")}).columns]
    ['device', 'n', 'window_start', 'window_end', 'ts', 'revision']
    """
    try:
        select = _select(dialect.parse(sql), sql)
        return match_plan(name, sql, select, tables) or _Planner(
            name, sql, window_table(select, tables)
        ).plan(select)
    except SqlError as error:
        at = ""
        if error.position is not None:
            before = sql[: error.position]
            at = f", line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"
        reason = re.sub(
            r"^at position \d+: ", "", str(error)
        )  # of an expression: line and column say it better
        raise SqlError(f"query {name}{at}: {reason}", error.position) from None
    except RecursionError:
        raise SqlError(f"query {name}: the text is nested too deep to be planned; write it flatter") from None


def _select(tree: exp.Expr, sql: str) -> exp.Select:
    """The statement, if it is a SELECT of clauses that a query may have."""
    if not isinstance(tree, exp.Select):
        raise refuse("not-select", tree, found=tree.key.upper())
    clauses: dict[str, tuple[str, str]] = {
        "with_": ("with", "WITH"),
        "distinct": ("distinct", "DISTINCT"),
        "order": ("order", "ORDER BY"),
        "limit": ("order", "LIMIT"),
        "offset": ("order", "OFFSET"),
        "joins": ("join", "JOIN"),
        "laterals": ("join", "LATERAL"),
    }
    for argument, value in tree.args.items():
        if not value or argument in ("expressions", "from_", "where", "group", "having", "kind", "match"):
            continue
        code, found = clauses.get(argument, ("clause", argument.strip("_").upper().replace("_", " ")))
        error = refuse(code, tree, found=found)
        raise SqlError(str(error), dialect.keyword_position(sql, found.split()[0], error.position))
    return tree


#: One column of SELECT: the name of a group or window column, an aggregate's number, or what is computed from them.
_Item = str | int | Expression


class _Planner:
    """Walks the tree once; every check raises at the node that it refuses."""

    def __init__(self, name: str, sql: str, table: WindowTable) -> None:
        self._name = name
        self._sql = sql
        self._table = table
        self._source = table.source
        self._types = {column.name: column.type for column in table.source.columns}
        self._aggregates = Aggregates(table.source.name, self._types, self.unqualified)

    def plan(self, select: exp.Select) -> Plan:
        where, where_sql = self._where(select)
        groups = self._group_by(select)
        self._sessions(groups)
        selected = self._items(select, groups)
        having = self._having(select, groups)
        if not self._aggregates.found:
            raise refuse("no-aggregate", select.expressions[-1])
        named = {item: alias for alias, item in selected.items() if isinstance(item, str)}
        for missing in [*(g for g in groups if g not in WINDOW_COLUMNS), "window_start", "window_end"]:
            if missing not in named:
                if missing in selected:
                    raise refuse("alias-twice", select, found=missing)
                selected[missing] = missing
                named[missing] = missing
        keys = tuple(Group(g, named[g], self._types[g]) for g in groups if g not in WINDOW_COLUMNS)
        return Plan(
            name=self._name,
            sql=self._sql,
            source=self._source.name,
            shape=self._table.shape,
            groups=keys,
            aggregates=tuple(self._aggregates.found),
            where=where,
            where_sql=where_sql,
            windows={
                alias: item
                for alias, item in selected.items()
                if isinstance(item, str) and item in WINDOW_COLUMNS
            },
            columns=(
                *(Column(alias, self._result_type(item)) for alias, item in selected.items()),
                Column("ts", ColumnType.TIMESTAMP),
                Column("revision", ColumnType.BIGINT),
            ),
            key=result_key(self._source, keys),
            computed=self._aggregates.computed,
            shown={alias: item for alias, item in selected.items() if isinstance(item, Expression)},
            having=having,
        )

    def unqualified(self, node: exp.Column) -> str:
        """The column's name. A qualifier must be the alias of the window table."""
        if node.table and (node.table != self._table.alias or node.args.get("db")):
            known = f"by its alias {self._table.alias}" if self._table.alias else "without a name"
            raise refuse("qualified", node, found=text(node), alias=known)
        return node.name

    def _where(self, select: exp.Select) -> tuple[Condition | None, str | None]:
        where = select.args.get("where")
        if where is None:
            return None, None
        for column in where.find_all(exp.Column):
            self.unqualified(column)
            column.set("table", None)
        return compile_condition(where.this, self._types), where.this.sql(dialect.ContinuousSql)

    def _group_by(self, select: exp.Select) -> list[str]:
        group = select.args.get("group")
        example = ", ".join([*([self._source.key] if self._source.key else []), "window_start", "window_end"])
        if group is None:
            raise refuse("no-group", select.expressions[0], example=example)
        for argument, value in group.args.items():
            if value and argument != "expressions":
                raise refuse("group-expression", group, found=argument.upper().replace("_", " "))
        names: list[str] = []
        for node in group.expressions:
            if not isinstance(node, exp.Column):
                raise refuse("group-expression", node, found=text(node))
            name = self.unqualified(node)
            if name in names:
                raise refuse("group-twice", node, found=name)
            if name not in WINDOW_COLUMNS:
                type_ = self._checked_type(node, name)
                if type_ not in GROUP_TYPES:
                    raise refuse("group-type", node, found=name, type=type_)
            names.append(name)
        for bound in ("window_start", "window_end"):
            if bound not in names:
                raise refuse("group-window", group, found=bound, example=example)
        return names

    def _sessions(self, groups: list[str]) -> None:
        """Sessions are those of the group columns, so both must name the same."""
        if self._table.shape.kind != "session":
            return
        found = [self.unqualified(column) for column in self._table.partition]
        wanted = [group for group in groups if group not in WINDOW_COLUMNS]
        if set(found) != set(wanted):
            table = f"TABLE {self._source.name}"
            raise refuse(
                "session-partition",
                self._table.node,
                found=", ".join(found) or "nothing",
                groups=", ".join(wanted) or "no column",
                wanted=f"{table} PARTITION BY {', '.join(wanted)}" if wanted else table,
            )

    def _items(self, select: exp.Select, groups: list[str]) -> dict[str, _Item]:
        """Result name -> what it shows; in the order of SELECT."""
        items: dict[str, _Item] = {}
        for node in select.expressions:
            alias = node.alias if isinstance(node, exp.Alias) else None
            inner = node.this if isinstance(node, exp.Alias) else node
            if isinstance(inner, exp.Star) or (
                isinstance(inner, exp.Column) and isinstance(inner.this, exp.Star)
            ):
                raise refuse("star", inner)
            if alias is None and not isinstance(inner, exp.Column):
                raise refuse("alias-missing", inner, found=text(inner), example=_example(inner))
            item: _Item
            if isinstance(inner, exp.Column):
                item = self._grouped(inner, groups)
            elif is_aggregate(inner):
                item = self._aggregates.add(inner, alias)
            else:
                item = self._computed(inner, groups)
            alias = alias or inner.name
            if not NAME.fullmatch(alias):
                raise refuse("alias", node, found=alias)
            if alias in RESERVED:
                raise refuse("alias-reserved", node, found=alias)
            if alias in items or (isinstance(item, str) and item in items.values()):
                raise refuse("alias-twice", node, found=alias)
            items[alias] = item
        return items

    def _having(self, select: exp.Select, groups: list[str]) -> Condition | None:
        having = select.args.get("having")
        if having is None:
            return None
        node = self._over_result(having.this, groups)
        return compile_condition(node, self._result_types(groups))

    def _computed(self, node: exp.Expr, groups: list[str]) -> Expression:
        replaced = self._over_result(node, groups)
        return compile_expression(replaced, self._result_types(groups))

    def _over_result(self, node: exp.Expr, groups: list[str]) -> exp.Expr:
        """The node with aggregates as columns of their numbers, and columns without the table's name."""
        if is_aggregate(node):
            name = Aggregates.column(self._aggregates.add(node, None))
        elif isinstance(node, exp.Column):
            name = self._grouped(node, groups)
        else:
            for part in list(node.iter_expressions()):
                other = self._over_result(part, groups)
                if other is not part:
                    part.replace(other)
            return node
        column = exp.column(exp.to_identifier(name))
        column.meta.update({"start": dialect.position(node) or 0})
        return column

    def _result_types(self, groups: list[str]) -> dict[str, ColumnType]:
        windows = dict.fromkeys(WINDOW_COLUMNS, ColumnType.TIMESTAMP)
        keys = {group: self._types[group] for group in groups if group not in WINDOW_COLUMNS}
        found = self._aggregates.found
        return windows | keys | {Aggregates.column(at): one.type for at, one in enumerate(found)}

    def _grouped(self, node: exp.Column, groups: list[str]) -> str:
        name = self.unqualified(node)
        if name not in WINDOW_COLUMNS:
            self._checked_type(node, name)
        if name not in groups:
            raise refuse("not-grouped", node, found=name)
        return name

    def _checked_type(self, node: exp.Expr, name: str) -> ColumnType:
        type_ = self._types.get(name)
        if type_ is None:
            near = nearest(name, [*self._types, *WINDOW_COLUMNS])
            raise refuse("column", node, found=name, table=self._source.name, nearest=near)
        return type_

    def _result_type(self, item: _Item) -> ColumnType:
        if isinstance(item, Expression):
            return item.type
        if isinstance(item, int):
            return self._aggregates.found[item].type
        return ColumnType.TIMESTAMP if item in WINDOW_COLUMNS else self._types[item]


def _example(node: exp.Expr) -> str:
    """A name for what has none."""
    column = node.find(exp.Column)
    if isinstance(node, exp.Count) or column is None:
        return "n"
    what = node.key if is_aggregate(node) else "computed"
    return f"{what}_{column.name}"

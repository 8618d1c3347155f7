"""MATCH_RECOGNIZE to a typed plan: "A then B within t", row by row in event time.

A pattern is a sequence of variables, each of them one row. Between two of them an undefined variable with `*?` leaves
room for any other rows, so that the next one is the first that fits. A condition may compare the row with that of the
first variable; then the first row that completes a match is the only one that can, wherever batches are cut.

source: Apache Flink documentation, "Pattern Recognition"; ISO/IEC 19075-5 (row pattern recognition)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlglot import exp

from headwater.errors import SqlError
from headwater.expressions import Condition, Expression, compile_condition, compile_expression
from headwater.records import NAME, Column, ColumnType, Schema
from headwater.streams import dialect
from headwater.streams.dialect import MatchRecognize
from headwater.streams.plan import GROUP_TYPES, RESERVED, Group, Plan, result_key
from headwater.streams.refusals import nearest, refuse, text
from headwater.streams.shapes import MAX_LENGTH_US, Shape

#: Variables of one row each in a pattern.
LENGTHS: Final = (2, 4)
_ELEMENT: Final = re.compile(r"\s*([A-Za-z_]\w*)\s*((?:[*+?]|\{[^}]*\})*)")
_CLAUSES: Final = ("expressions", "from_", "where", "kind")


@dataclass(frozen=True, slots=True)
class Variable:
    """One row of a match.

    loose:     whether other rows may lie between it and the variable before it
    condition: over the row's columns, and those of the first variable's row under `column_of(first, column)`; None:
               every row fits
    compares:  whether it reads the first variable's row
    """

    name: str
    loose: bool
    condition: Condition | None
    compares: bool


@dataclass(frozen=True, slots=True)
class Pattern:
    """What to look for, and what a match gives.

    within_us: the last row of a match is less than this after its first one, microseconds
    overlaps:  the next match may begin at the row after the first one, else after the last one
    columns:   columns of the source that conditions, partition and measures read
    measures:  name -> expression over `column_of(variable, column)`
    shown:     result column -> measure, or column of the partition
    """

    variables: tuple[Variable, ...]
    within_us: int
    overlaps: bool
    columns: tuple[str, ...]
    measures: Mapping[str, Expression]
    shown: Mapping[str, str]

    @property
    def loose(self) -> bool:
        """Whether rows that fit no variable change nothing."""
        return all(variable.loose for variable in self.variables[1:])

    @property
    def meaning(self) -> list[Any]:
        """What tells two patterns apart."""
        variables = [
            [one.name, one.loose, None if one.condition is None else one.condition.sql]
            for one in self.variables
        ]
        measures = {alias: expression.sql for alias, expression in self.measures.items()}
        return [variables, self.within_us, self.overlaps, measures, dict(self.shown)]


def column_of(variable: str, column: str) -> str:
    """Name of a variable's column; no column of a stream has a dot."""
    return f"{variable}.{column}"


def match_plan(name: str, sql: str, select: exp.Select, tables: Mapping[str, Schema]) -> Plan | None:
    """The plan of a query that matches a pattern, None where there is none.

    raises: SqlError
    """
    clause = select.args.get("from_")
    table = clause.this if clause is not None else None
    match = select.args.get("match") or (table.args.get("match") if isinstance(table, exp.Table) else None)
    if not isinstance(match, MatchRecognize):
        return None
    if (
        not isinstance(table, exp.Table)
        or not isinstance(table.this, exp.Identifier)
        or any(value for name, value in table.args.items() if name not in ("this", "match"))
    ):
        raise refuse("match-table", match)
    if table.name not in tables:
        raise refuse("table", table, found=table.name, nearest=nearest(table.name, tables))
    source = tables[table.name]
    ts = source.column("ts")
    if ts is None or ts.type is not ColumnType.TIMESTAMP:
        raise refuse("no-time", table, found=table.name)
    return _Planner(name, sql, source, match).plan(select)


class _Planner:
    """Walks the clauses once; every check raises at the node that it refuses."""

    def __init__(self, name: str, sql: str, source: Schema, match: MatchRecognize) -> None:
        self._name = name
        self._sql = sql
        self._source = source
        self._match = match
        self._types = {column.name: column.type for column in source.columns}
        self._read: set[str] = {"ts"}
        #: Variables that columns may be of; in DEFINE the one that is defined, and the first one.
        self._known: list[str] = []
        self._own = self._first = ""

    def plan(self, select: exp.Select) -> Plan:
        for argument, value in select.args.items():
            if value and argument not in (*_CLAUSES, "match"):
                found = {"group": "GROUP BY"}.get(argument, argument.strip("_").upper())
                raise refuse("match-select", self._match, found=found)
        groups = self._groups()
        self._order()
        self._modes()
        names = self._elements()
        within_us = self._within()
        measures = self._measures([name for name, _ in names])
        variables = self._variables(names)
        known = {group.column: group.type for group in groups}
        known |= {alias: one.type for alias, one in measures.items()}
        shown = self._shown(select, known)
        for group in groups:
            if group.column not in shown.values():
                if group.column in shown:
                    raise refuse("alias-twice", select, found=group.column)
                shown[group.column] = group.column
        alias_of = {what: alias for alias, what in shown.items()}
        groups = [Group(one.column, alias_of[one.column], one.type) for one in groups]
        columns = [Column(alias, known[what]) for alias, what in shown.items()]
        return Plan(
            name=self._name,
            sql=self._sql,
            source=self._source.name,
            shape=Shape("match", within_us, within_us),
            groups=tuple(groups),
            aggregates=(),
            where=None,
            where_sql=None,
            windows={},
            columns=(
                *columns,
                Column("ts", ColumnType.TIMESTAMP),
                Column("revision", ColumnType.BIGINT),
            ),
            key=result_key(self._source, tuple(groups)),
            having=self._where(select, known),
            pattern=Pattern(
                variables,
                within_us,
                self._match.args["after"] == "TO NEXT ROW",
                tuple(sorted(self._read)),
                measures,
                shown,
            ),
        )

    def _groups(self) -> list[Group]:
        groups: list[Group] = []
        for node in self._match.args["partition"] or []:
            if not isinstance(node, exp.Column) or node.table:
                raise refuse("match-partition", node, found=text(node))
            type_ = self._type(node, node.name)
            if type_ not in GROUP_TYPES:
                raise refuse("group-type", node, found=node.name, type=type_)
            if node.name in [group.column for group in groups]:
                raise refuse("group-twice", node, found=node.name)
            groups.append(Group(node.name, node.name, type_))
        return groups

    def _order(self) -> None:
        order = self._match.args["order"]
        found = [text(node) for node in order.expressions] if order is not None else []
        column = order.expressions[0].this if found else None
        descends = bool(found) and order.expressions[0].args.get("desc")
        if len(found) != 1 or descends or not isinstance(column, exp.Column) or text(column) != "ts":
            raise refuse("match-order", order or self._match, found=", ".join(found) or "no ORDER BY")

    def _modes(self) -> None:
        if self._match.args["rows"] not in (None, "ONE ROW PER MATCH"):
            raise refuse("match-rows", self._match, found=self._match.args["rows"])
        if self._match.args["after"] not in (None, "PAST LAST ROW", "TO NEXT ROW"):
            raise refuse("match-after", self._match, found=self._match.args["after"])

    def _elements(self) -> list[tuple[str, bool]]:
        """Variables in order: name, and whether other rows may lie before it; undefined ones that do so are gone."""
        pattern = self._match.args["pattern"]
        if pattern is None:
            raise refuse("match-pattern", self._match, found="no PATTERN")
        written, start = pattern.this, pattern.meta["start"]
        defined = {node.alias for node in self._match.args["define"] or []}
        names: list[tuple[str, bool]] = []
        gaps: list[str] = []
        at, loose = 0, False
        while written[at:].strip():
            element = _ELEMENT.match(written, at)
            here = start + at + len(written[at:]) - len(written[at:].lstrip())
            if element is None:
                raise _at(refuse("match-pattern", self._match, found=repr(written[at:].strip()[:20])), here)
            name, quantifier = element.groups()
            if quantifier not in ("", "*?") or (quantifier and name in defined):
                raise _at(refuse("match-quantifier", self._match, found=name + quantifier), here)
            if name in [one for one, _ in names] + gaps:
                raise _at(refuse("match-twice", self._match, found=name), here)
            if quantifier:
                if not names:
                    raise _at(refuse("match-ends", self._match, found=name + quantifier), here)
                gaps.append(name)
                loose = True
            else:
                names.append((name, loose))
                loose = False
            at = element.end()
        if loose:
            raise _at(refuse("match-ends", self._match, found=f"{gaps[-1]}*?"), start)
        if not LENGTHS[0] <= len(names) <= LENGTHS[1]:
            raise _at(refuse("match-length", self._match, found=len(names)), start)
        for node in self._match.args["define"] or []:
            if node.alias not in [name for name, _ in names]:
                raise refuse("match-variable", node, found=node.alias, known=", ".join(n for n, _ in names))
        return names

    def _within(self) -> int:
        interval = self._match.args["within"]
        if interval is None:
            raise refuse("match-within", self._match)
        found = dialect.interval_us(interval)
        shown = dialect.shown(interval)
        if found is None:
            raise refuse("interval", interval, found=shown)
        if found % 1000 or not 1000 <= found <= MAX_LENGTH_US:
            raise refuse("size", interval, what="WITHIN", found=shown)
        return found

    def _variables(self, names: list[tuple[str, bool]]) -> tuple[Variable, ...]:
        defined: dict[str, exp.Expr] = {}
        for node in self._match.args["define"] or []:
            if node.alias in defined:
                raise refuse("match-twice", node, found=node.alias)
            defined[node.alias] = node.this
        first = names[0][0]
        types = self._types | {column_of(first, name): type_ for name, type_ in self._types.items()}
        found = []
        for name, loose in names:
            if name not in defined:
                found.append(Variable(name, loose, None, False))
                continue
            self._own, self._first = name, first
            self._known = [one for one, _ in names]
            condition = compile_condition(self._resolved(defined[name], self._in_define), types)
            found.append(Variable(name, loose, condition, any("." in column for column in condition.columns)))
        return tuple(found)

    def _measures(self, names: list[str]) -> dict[str, Expression]:
        types = {column_of(v, name): type_ for v in names for name, type_ in self._types.items()}
        self._known = names
        found: dict[str, Expression] = {}
        for node in self._match.args["measures"] or []:
            if not isinstance(node, exp.Alias):
                raise refuse("alias-missing", node, found=text(node), example="x")
            if not NAME.fullmatch(node.alias):
                raise refuse("alias", node, found=node.alias)
            if node.alias in RESERVED:
                raise refuse("alias-reserved", node, found=node.alias)
            partition = [column.name for column in self._match.args["partition"] or []]
            if node.alias in found or node.alias in partition:
                raise refuse("alias-twice", node, found=node.alias)
            found[node.alias] = compile_expression(self._resolved(node.this, self._in_measures), types)
        return found

    def _shown(self, select: exp.Select, known: Mapping[str, ColumnType]) -> dict[str, str]:
        """Result name -> partition column or measure, in the order of SELECT."""
        shown: dict[str, str] = {}
        for node in select.expressions:
            inner = node.this if isinstance(node, exp.Alias) else node
            if isinstance(inner, exp.Star) and len(select.expressions) == 1:
                return {name: name for name in known}
            if not isinstance(inner, exp.Column) or isinstance(inner.this, exp.Star):
                raise refuse("match-item", inner, found=text(inner))
            name = self._of_match(inner)
            if name not in known:
                near = nearest(name, known)
                raise refuse("column", inner, found=name, table="the match", nearest=near)
            alias = node.alias or name
            if not NAME.fullmatch(alias):
                raise refuse("alias", node, found=alias)
            if alias in RESERVED:
                raise refuse("alias-reserved", node, found=alias)
            if alias in shown or name in shown.values():
                raise refuse("alias-twice", node, found=alias)
            shown[alias] = name
        return shown

    def _where(self, select: exp.Select, known: Mapping[str, ColumnType]) -> Condition | None:
        """Over what the match gives, also where SELECT leaves it out or names it otherwise."""
        where = select.args.get("where")
        if where is None:
            return None
        for column in where.find_all(exp.Column):
            name = self._of_match(column)
            if name not in known:
                near = nearest(name, known)
                raise refuse("column", column, found=name, table="the match", nearest=near)
            column.set("this", exp.to_identifier(column_of("", name)))
            column.set("table", None)
        return compile_condition(where.this, {column_of("", name): type_ for name, type_ in known.items()})

    def _of_match(self, node: exp.Column) -> str:
        """The column's name. A qualifier must be the alias of the match."""
        alias = self._match.args["alias"]
        if node.table and node.table != alias:
            known = f"by its alias {alias}" if alias else "without a name"
            raise refuse("qualified", node, found=text(node), alias=known)
        return node.name

    def _type(self, node: exp.Expr, name: str) -> ColumnType:
        type_ = self._types.get(name)
        if type_ is None:
            near = nearest(name, self._types)
            raise refuse("column", node, found=name, table=self._source.name, nearest=near)
        self._read.add(name)
        return type_

    def _resolved(self, node: exp.Expr, name_of: Callable[[exp.Column], str]) -> exp.Expr:
        """The node with the columns of variables under one name. Each variable is one row: its first and its last."""
        whole = not any(value for name, value in node.args.items() if name != "this")
        if isinstance(node, exp.First | exp.Last) and isinstance(node.this, exp.Column) and whole:
            return self._resolved(node.this, name_of)
        if isinstance(node, exp.AggFunc | exp.First | exp.Last):
            raise refuse("match-function", node, found=text(node))
        if isinstance(node, exp.Anonymous):
            if node.name.upper() != "MATCH_ROWTIME" or node.expressions or name_of != self._in_measures:
                raise refuse("match-function", node, found=text(node))
            name = column_of(self._known[-1], "ts")
        elif isinstance(node, exp.Column):
            if node.table and node.table not in self._known:
                raise refuse("match-variable", node, found=node.table, known=", ".join(self._known))
            self._type(node, node.name)
            name = name_of(node)
        else:
            for part in list(node.iter_expressions()):
                other = self._resolved(part, name_of)
                if other is not part:
                    part.replace(other)
            return node
        column = exp.column(exp.to_identifier(name))
        column.meta.update({"start": dialect.position(node) or 0})
        return column

    def _in_measures(self, node: exp.Column) -> str:
        if not node.table:
            raise refuse("match-unqualified", node, found=node.name, variable=self._known[0])
        return column_of(node.table, node.name)

    def _in_define(self, node: exp.Column) -> str:
        if node.table in ("", self._own):
            return node.name
        if node.table != self._first:
            raise refuse("match-reference", node, found=text(node), own=self._own, first=self._first)
        return column_of(node.table, node.name)


def _at(error: SqlError, position: int) -> SqlError:
    """The error of a clause at a place within it."""
    return SqlError(str(error), position)

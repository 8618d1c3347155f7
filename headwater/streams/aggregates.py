"""The aggregates of a query: which functions there are, what they take, and how the kernel computes them.

source: Apache Flink documentation, "System (Built-in) Functions", aggregate functions
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from sqlglot import exp

from headwater.expressions import Expression, compile_expression
from headwater.records import ColumnType
from headwater.streams import dialect
from headwater.streams.plan import Aggregate
from headwater.streams.refusals import nearest, refuse, text

_T = ColumnType
_NUMERIC: Final = (_T.DOUBLE, _T.BIGINT)
_ORDERED: Final = (*_NUMERIC, _T.TIMESTAMP)
_COMPARED: Final = (*_ORDERED, _T.BOOLEAN, _T.STRING)

#: Function of the kernel -> types it takes, None for any; and the type of its result, None for that of its input.
FUNCTIONS: Final[Mapping[str, tuple[tuple[ColumnType, ...] | None, ColumnType | None]]] = {
    "count": (None, _T.BIGINT),
    "sum": (_NUMERIC, None),
    "avg": (_NUMERIC, None),
    "min": (_ORDERED, None),
    "max": (_ORDERED, None),
    "var_pop": (_NUMERIC, _T.DOUBLE),
    "var_samp": (_NUMERIC, _T.DOUBLE),
    "stddev_pop": (_NUMERIC, _T.DOUBLE),
    "stddev_samp": (_NUMERIC, _T.DOUBLE),
    "first_value": (_COMPARED, None),
    "last_value": (_COMPARED, None),
    "count_distinct": (_COMPARED, _T.BIGINT),
    "percentile": (_NUMERIC, _T.DOUBLE),
}
_NODES: Final[Mapping[type[exp.Expr], str]] = {
    exp.Count: "count",
    exp.Sum: "sum",
    exp.Avg: "avg",
    exp.Min: "min",
    exp.Max: "max",
    exp.VariancePop: "var_pop",
    exp.Variance: "var_samp",
    exp.StddevPop: "stddev_pop",
    exp.StddevSamp: "stddev_samp",
    exp.Stddev: "stddev_samp",
    exp.FirstValue: "first_value",
    exp.LastValue: "last_value",
}
_MODIFIERS: Final[Mapping[type[Any], str]] = {
    exp.Filter: "FILTER",
    exp.Window: "OVER",
    exp.WithinGroup: "WITHIN GROUP",
    exp.IgnoreNulls: "IGNORE NULLS",
    exp.RespectNulls: "RESPECT NULLS",
}


def is_aggregate(node: exp.Expr) -> bool:
    """Whether the node computes one value of many rows, or was meant to."""
    return isinstance(node, (exp.AggFunc, *_MODIFIERS)) or _is_percentile(node)


def _is_percentile(node: exp.Expr) -> bool:
    return isinstance(node, exp.Anonymous) and node.name.upper() == "PERCENTILE"


class Aggregates:
    """Collects the aggregates of one query over columns of these types; equal ones are computed once.

    found:       in order of appearance
    computed:    their inputs that are no plain column
    unqualified: the name of a column, with its qualifier checked
    """

    def __init__(
        self, source: str, types: Mapping[str, ColumnType], unqualified: Callable[[exp.Column], str]
    ) -> None:
        self.found: list[Aggregate] = []
        self.computed: dict[str, Expression] = {}
        self._source = source
        self._types = types
        self._unqualified = unqualified

    @staticmethod
    def column(number: int) -> str:
        """What expressions over a result call an aggregate: a name that no column can have."""
        return f"_a{number}"

    def add(self, node: exp.Expr, alias: str | None) -> int:
        """The aggregate's number. alias: its result column; None: only an expression uses it.

        raises: SqlError
        """
        found = self._checked(node)
        for number, known in enumerate(self.found):
            same = replace(known, alias=found.alias) == found
            if same and (alias is None or known.alias == self.column(number)):
                if alias is not None:
                    self.found[number] = replace(known, alias=alias)
                return number
        number = len(self.found)
        self.found.append(replace(found, alias=alias or self.column(number)))
        return number

    def _checked(self, node: exp.Expr) -> Aggregate:
        condition = None
        if isinstance(node, exp.Filter):
            condition, node = node.expression.this, node.this
        if type(node) in _MODIFIERS:
            raise refuse("aggregate-modifier", node, found=_MODIFIERS[type(node)])
        function = "percentile" if _is_percentile(node) else _NODES.get(type(node))
        if function is None:
            raise refuse("aggregate", node, found=text(node))
        if function == "percentile":
            value, parameter = self._percentile(node)
        else:
            value, parameter = node.this, 0
            if isinstance(value, exp.Distinct):
                if function != "count":
                    raise refuse("aggregate-distinct", node, function=function.upper())
                function, inside = "count_distinct", value.expressions
                value = inside[0] if len(inside) == 1 else None
        if value is None or (function != "percentile" and (node.expressions or node.args.get("expression"))):
            takes = "one value, such as COUNT(DISTINCT x)" if function == "count_distinct" else "one value"
            raise refuse("aggregate-argument", node, found=text(node), takes=takes)
        if isinstance(value, exp.Star):
            if condition is None:
                return Aggregate("count_star", None, "", _T.BIGINT)
            value = exp.Literal.number(1)
        if condition is not None:
            value = exp.Case(ifs=[exp.If(this=condition, true=value)])
        column, type_ = self._input(value)
        accepted, result = FUNCTIONS[function]
        if accepted is not None and type_ not in accepted:
            shown = "COUNT(DISTINCT)" if function == "count_distinct" else function.upper()
            takes = ", ".join(accepted[:-1]) + " or " + accepted[-1]
            raise refuse("aggregate-type", value, function=shown, found=repr(column), type=type_, takes=takes)
        return Aggregate(function, column, "", result or type_, parameter)

    def _percentile(self, node: exp.Expr) -> tuple[exp.Expr | None, int]:
        """The value and the share in millionths."""
        takes = "a value and a share from 0 to 1 of at most six digits, such as PERCENTILE(x, 0.95)"
        wrong = refuse("aggregate-argument", node, found=text(node), takes=takes)
        if len(node.expressions) != 2 or not isinstance(node.expressions[1], exp.Literal):
            raise wrong
        try:
            share = Decimal(node.expressions[1].this) * 1_000_000
        except InvalidOperation:
            raise wrong from None
        if not 0 <= share <= 1_000_000 or share != int(share) or node.expressions[1].is_string:
            raise wrong
        return node.expressions[0], int(share)

    def _input(self, value: exp.Expr) -> tuple[str, ColumnType]:
        """Name and type of what is aggregated."""
        inner = next((part for part in value.walk() if is_aggregate(part)), None)
        if inner is not None:
            raise refuse("aggregate-nested", inner, found=text(inner))
        for column in list(value.find_all(exp.Column)):
            name = self._unqualified(column)
            if name not in self._types:
                raise refuse(
                    "column", column, found=name, table=self._source, nearest=nearest(name, self._types)
                )
        if isinstance(value, exp.Column):
            return value.name, self._types[value.name]
        for column in value.find_all(exp.Column):
            column.set("table", None)
        name = value.sql(dialect.ContinuousSql)
        self.computed[name] = compile_expression(value, self._types)
        return name, self.computed[name].type

"""SQL scalar expressions over Arrow batches: text is parsed once, then every batch costs a few numpy calls.

Used by alarm conditions and by the filters and projections of continuous queries. It is no query language: no SELECT,
no aggregates, no windows. What is outside the subset is refused at compile time with a position. The operators
themselves are in `vectors.py`.

Subset: columns (`name`, or quoted with backticks as in Flink), numbers, 'strings', TRUE, FALSE, NULL, TIMESTAMP
'2026-01-31 12:00:00.5' (UTC), + - * / %, unary -, = <> < <= > >=, AND, OR, NOT, IS [NOT] NULL, IS [NOT] TRUE | FALSE,
[NOT] BETWEEN, [NOT] IN (list), [NOT] LIKE 'pattern', COALESCE, NULLIF, IF, CASE, CAST, TRY_CAST, EXTRACT, the
functions of `functions.py`, parentheses.

Meaning, as in Flink SQL where a choice exists:
  - Three-valued logic: an operator over NULL is NULL; `FALSE AND NULL` is FALSE, `TRUE OR NULL` is TRUE.
  - BIGINT with DOUBLE is DOUBLE. A literal with point or exponent is DOUBLE (Flink: DECIMAL), another number BIGINT.
  - BIGINT arithmetic wraps at 64 bits; `/` truncates towards zero and `%` has the sign of the dividend, as in Java.
    By zero both are NULL: Flink fails the whole job there, and a device's input must not.
  - DOUBLE is IEEE 754, as Java's primitives: 1/0.0 is infinity, 0/0.0 is NaN; NaN is <> everything, itself
    included, and every other comparison with it is FALSE (not NULL).
  - Strings compare by their UTF-8 bytes. In LIKE `%` is any text, `_` one character; there is no escape character.
  - CAST of a text that is no number is NULL, as TRY_CAST: Flink fails the job at CAST.
  - A literal NULL may not be compared: that is NULL for every row, and IS NULL was meant.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
from sqlglot import exp

from headwater import functions, vectors
from headwater.errors import SqlError
from headwater.expression_text import MAX_DEPTH, MAX_LENGTH, parse, text_of
from headwater.records import ColumnType
from headwater.vectors import Frame, Mask, Value, Vector

__all__ = [
    "MAX_DEPTH",
    "MAX_LENGTH",
    "Condition",
    "Expression",
    "Frame",
    "compile_condition",
    "compile_expression",
]

_TIMESTAMP: Final = re.compile(r"\d{4}-\d\d-\d\d( \d\d:\d\d(:\d\d(\.\d{1,6})?)?)?")
_Made = TypeVar("_Made")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NUMERIC: Final = (ColumnType.BIGINT, ColumnType.DOUBLE)
#: Names that sqlglot has for types.
_CAST_TYPES: Final = {
    "BIGINT": ColumnType.BIGINT,
    "DOUBLE": ColumnType.DOUBLE,
    "BOOLEAN": ColumnType.BOOLEAN,
    "TEXT": ColumnType.STRING,
    "VARCHAR": ColumnType.STRING,
}


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled scalar expression; `columns` are the columns it reads, `type` is that of its result."""

    sql: str
    columns: frozenset[str]
    type: ColumnType
    _run: Callable[[Frame], Value]

    def evaluate(self, batch: pa.RecordBatch | Frame) -> pa.Array:
        """One value per row, of `type`, NULL where SQL says so. Never raises for any values in the batch."""
        frame = Frame.of(batch)
        return vectors.to_arrow(self._run(frame), self.type, frame.rows)


@dataclass(frozen=True, slots=True)
class Condition:
    """A compiled boolean expression; `columns` are the columns it reads."""

    sql: str
    columns: frozenset[str]
    _run: Callable[[Frame], Value]

    def evaluate(self, batch: pa.RecordBatch | Frame) -> tuple[Mask, Mask]:
        """Where it is TRUE and where it is FALSE, one bool per row each; NULL is neither."""
        frame = Frame.of(batch)
        true, false = vectors.two_masks(self._run(frame))
        return frame.mask(true), frame.mask(false)


def compile_expression(sql: str | exp.Expr, columns: Mapping[str, ColumnType]) -> Expression:
    """Compiles a scalar expression over these columns.

    sql:    text, or a node of sqlglot's tree, whose positions are then those of its own text
    raises: SqlError with position

    >>> battery = compile_expression("battery / 1000.0", {"battery": ColumnType.BIGINT})
    >>> battery.evaluate(pa.record_batch({"battery": pa.array([3300, None], pa.int64())})).to_pylist()
    [3.3, None]
    """
    node, compiler = parse(sql), _Compiler(columns)
    typed = compiler.compile(node, 0)
    if typed.type is None:
        raise _error(node, "NULL alone has no type; nearest: COALESCE over columns")
    return Expression(text_of(sql), frozenset(compiler.used), typed.type, typed.run)


def compile_condition(sql: str | exp.Expr, columns: Mapping[str, ColumnType]) -> Condition:
    """Compiles a boolean expression over these columns; as `compile_expression` otherwise.

    >>> hot = compile_condition("temperature > 80", {"temperature": ColumnType.DOUBLE})
    >>> true, false = hot.evaluate(pa.record_batch({"temperature": pa.array([81.0, 79.0, None])}))
    >>> true.tolist(), false.tolist()
    ([True, False, False], [False, True, False])
    """
    node, compiler = parse(sql), _Compiler(columns)
    typed = compiler.compile(node, 0)
    if typed.type is not ColumnType.BOOLEAN:
        raise _error(
            node, f"{_shown(typed.type)} is no condition; compare it, such as ... > 0 or ... IS NOT NULL"
        )
    return Condition(text_of(sql), frozenset(compiler.used), typed.run)


class _Compiler:
    """Turns nodes into vectors and collects the columns they read."""

    def __init__(self, columns: Mapping[str, ColumnType]) -> None:
        self.columns = columns
        self.used: set[str] = set()

    def compile(self, node: exp.Expr, depth: int) -> Vector:
        if depth > MAX_DEPTH:
            raise _error(node, f"nested deeper than {MAX_DEPTH} levels")
        method = _METHODS.get(type(node))
        if method is None:
            raise _error(node, _outside(node))
        return method(self, node, depth + 1)

    def _boolean(self, node: exp.Expr, depth: int) -> Vector:
        vector = self.compile(node, depth)
        if vector.type is None:
            return vectors.null(ColumnType.BOOLEAN)
        if vector.type is not ColumnType.BOOLEAN:
            raise _error(node, f"{_shown(vector.type)} is no condition; compare it, such as ... > 0")
        return vector

    def _number(self, node: exp.Expr, depth: int, what: str) -> Vector:
        vector = self.compile(node, depth)
        if vector.type not in _NUMERIC:
            raise _error(node, f"{what} needs a number, found {_shown(vector.type)}")
        return vector

    def _paren(self, node: exp.Expr, depth: int) -> Vector:
        return self.compile(node.this, depth)

    def _column(self, node: exp.Expr, _depth: int) -> Vector:
        name = node.name
        if node.args.get("table") is not None or not isinstance(node.this, exp.Identifier):
            raise _error(node, f"{node.sql()!r}: columns are named without their table; write {name!r}")
        type_ = self.columns.get(name)
        if type_ is None:
            close = difflib.get_close_matches(name.lower(), self.columns, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(self.columns))}"
            raise _error(node, f"no column {name!r}; {hint}")
        self.used.add(name)
        return vectors.column(name, type_)

    def _literal(self, node: exp.Expr, _depth: int) -> Vector:
        if node.is_string:
            return vectors.constant(ColumnType.STRING, node.this)
        return _number_literal(node, node.this)

    def _null(self, _node: exp.Expr, _depth: int) -> Vector:
        return vectors.null()

    def _true_false(self, node: exp.Expr, _depth: int) -> Vector:
        return vectors.constant(ColumnType.BOOLEAN, bool(node.this))

    def _cast(self, node: exp.Expr, depth: int) -> Vector:
        to = node.args["to"]
        if to.is_type("timestamp"):
            return self._timestamp(node)
        target = _CAST_TYPES.get(to.this.value)
        if target is None or to.expressions:
            wanted = "BIGINT, DOUBLE, BOOLEAN or STRING"
            raise _error(node, f"CAST to {to.sql()} is outside the subset; nearest: {wanted}")
        return self._built(node, "CAST", functions.cast, self.compile(node.this, depth), target)

    def _timestamp(self, node: exp.Expr) -> Vector:
        literal = node.this
        if not (isinstance(literal, exp.Literal) and literal.is_string):
            raise _error(
                node, "CAST to TIMESTAMP takes a text in quotes: TIMESTAMP '2026-01-31 12:00:00' (UTC)"
            )
        try:
            if not _TIMESTAMP.fullmatch(literal.this):
                raise ValueError("another form")
            since = datetime.fromisoformat(literal.this).replace(tzinfo=UTC) - _EPOCH
        except ValueError:
            wanted = "TIMESTAMP '2026-01-31 12:00:00.000' (UTC)"
            raise _error(literal, f"{literal.this!r} is no timestamp; write {wanted}") from None
        at_us = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
        return vectors.constant(ColumnType.TIMESTAMP, at_us)

    def _negative(self, node: exp.Expr, depth: int) -> Vector:
        # -9223372036854775808 is a BIGINT, but its digits alone are not.
        if isinstance(node.this, exp.Literal) and not node.this.is_string:
            return _number_literal(node.this, "-" + node.this.this)
        return vectors.unary(np.negative, self._number(node.this, depth, "-"))

    def _function(self, node: exp.Expr, depth: int) -> Vector:
        function = functions.FUNCTIONS[type(node)]
        name = function.name
        nodes = function.parts(node)
        if node.args.get("position") or node.args.get("to"):  # TRIM(LEADING ...), FLOOR(ts TO HOUR)
            raise _error(node, f"{name} is written {function.form}")
        values: list[Any] = []
        for at, part in enumerate(nodes):
            kind = function.takes[min(at, len(function.takes) - 1)]
            if part is None:
                raise _error(node, f"{name} is written {function.form}")
            if functions.is_literal(kind):
                values.append(self._built(part, name, functions.literal, part, kind))
                continue
            value = self.compile(part, depth)
            if value.type not in kind:
                wanted = " or ".join(type_.value.upper() for type_ in kind if isinstance(type_, ColumnType))
                raise _error(part, f"{name} needs {wanted}, found {_shown(value.type)}")
            values.append(value)
        return self._built(node, name, function.build, *values)

    def _extract(self, node: exp.Expr, depth: int) -> Vector:
        time = self.compile(node.expression, depth)
        if time.type is not ColumnType.TIMESTAMP:
            raise _error(node.expression, f"EXTRACT needs a TIMESTAMP, found {_shown(time.type)}")
        return self._built(node, "EXTRACT", functions.extract, node.this.name.upper(), time)

    def _built(self, node: exp.Expr, name: str, build: Callable[..., _Made], *values: Any) -> _Made:
        try:
            return build(*values)
        except functions.Refused as refused:
            raise _error(node, f"{name} {refused}") from None

    def _arithmetic(self, node: exp.Expr, depth: int) -> Vector:
        symbol = _ARITHMETIC[type(node)]
        left, right = (self._number(side, depth, symbol) for side in (node.this, node.expression))
        return vectors.arithmetic(symbol, left, right)

    def _comparison(self, node: exp.Expr, depth: int) -> Vector:
        for side in (node.this, node.expression):
            # `a = b IS NULL` groups otherwise in Flink than in sqlglot; what could differ is not accepted.
            if isinstance(side, _NEEDS_PARENTHESES):
                raise _error(side, "write parentheses around a condition that is compared: (a > 1) = b")
        if isinstance(node.expression, exp.Paren) and isinstance(node.expression.this, exp.Is):
            # sqlglot writes these parentheses itself, so they are not known to be the user's.
            raise _error(
                node.expression, "write an IS condition that is compared on the left: (a IS NULL) = b"
            )
        left, right = self.compile(node.this, depth), self.compile(node.expression, depth)
        return _compare(_COMPARISON[type(node)], (node.this, left), (node.expression, right))

    def _between(self, node: exp.Expr, depth: int) -> Vector:
        if node.args.get("symmetric"):
            raise _error(node, "BETWEEN SYMMETRIC is outside the subset; nearest: BETWEEN low AND high")
        value, low, high = (
            (part, self.compile(part, depth)) for part in (node.this, node.args["low"], node.args["high"])
        )
        return vectors.all_of([_compare(">=", value, low), _compare("<=", value, high)])

    def _in(self, node: exp.Expr, depth: int) -> Vector:
        if not node.expressions or any(isinstance(item, exp.Query) for item in node.expressions):
            raise _error(
                node, "IN takes a list of values, such as IN ('a', 'b'); a subquery is outside the subset"
            )
        value = node.this, self.compile(node.this, depth)
        items = [(item, self.compile(item, depth)) for item in node.expressions]
        some = [item for item in items if item[1].type is not None]
        tests = [_compare("=", value, item) for item in some]  # checks the types in any case
        constants = [vector.constant for _, vector in some]
        if len(some) > 4 and None not in constants and value[1].type is not ColumnType.BOOLEAN:
            tests = [vectors.is_in(value[1], constants)]
        if len(some) < len(items):
            tests.append(vectors.null(ColumnType.BOOLEAN))
        return vectors.any_of(tests)

    def _like(self, node: exp.Expr, depth: int) -> Vector:
        value, pattern = self.compile(node.this, depth), node.expression
        if value.type is not ColumnType.STRING:
            raise _error(node.this, f"LIKE needs a STRING, found {_shown(value.type)}")
        if not (isinstance(pattern, exp.Literal) and pattern.is_string):
            raise _error(pattern, "LIKE takes a pattern in quotes, such as LIKE 'pump-%'")
        return vectors.like(value, pattern.this)

    def _connective(self, node: exp.Expr, depth: int) -> Vector:
        # A chain leans to the left, one level per operand: walked, so that its length is no depth.
        parts: list[exp.Expr] = []
        rest: exp.Expr = node
        while type(rest) is type(node):
            parts.append(rest.expression)
            rest = rest.this
        operands = [self._boolean(part, depth) for part in [rest, *reversed(parts)]]
        return (vectors.all_of if isinstance(node, exp.And) else vectors.any_of)(operands)

    def _not(self, node: exp.Expr, depth: int) -> Vector:
        return vectors.negation(self._boolean(node.this, depth))

    def _is(self, node: exp.Expr, depth: int) -> Vector:
        wanted = node.expression
        if isinstance(wanted, exp.Null):
            return vectors.is_null(self.compile(node.this, depth))
        if not isinstance(wanted, exp.Boolean):
            raise _error(node, "IS is followed by [NOT] NULL, TRUE or FALSE")
        return (vectors.is_true if wanted.this else vectors.is_false)(self._boolean(node.this, depth))

    def _coalesce(self, node: exp.Expr, depth: int) -> Vector:
        values = [self.compile(part, depth) for part in [node.this, *node.expressions]]
        return _choose(node, [(functools.partial(_is_known, value), value) for value in values])

    def _nullif(self, node: exp.Expr, depth: int) -> Vector:
        value, other = self.compile(node.this, depth), self.compile(node.expression, depth)
        same = _compare("=", (node.this, value), (node.expression, other))
        rest = lambda frame: np.True_  # noqa: E731
        return _choose(node, [(functools.partial(_is_true, same), vectors.null()), (rest, value)])

    def _if(self, node: exp.Expr, depth: int) -> Vector:
        if node.args.get("false") is None:
            raise _error(node, "IF is written IF(condition, value, other value)")
        return self._case(exp.Case(ifs=[node], default=node.args["false"]), depth)

    def _case(self, node: exp.Expr, depth: int) -> Vector:
        branches: list[tuple[Callable[[Frame], Any], Vector]] = []
        for branch in node.args["ifs"]:
            if node.this is None:
                test = self._boolean(branch.this, depth)
            else:
                subject = node.this, self.compile(node.this, depth)
                test = _compare("=", subject, (branch.this, self.compile(branch.this, depth)))
            branches.append((functools.partial(_is_true, test), self.compile(branch.args["true"], depth)))
        if (default := node.args.get("default")) is not None:
            branches.append((lambda frame: np.True_, self.compile(default, depth)))
        return _choose(node, branches)


_ARITHMETIC: Final[dict[type[exp.Expr], str]] = {
    exp.Add: "+",
    exp.Sub: "-",
    exp.Mul: "*",
    exp.Div: "/",
    exp.Mod: "%",
}
_COMPARISON: Final[dict[type[exp.Expr], str]] = {
    exp.EQ: "=",
    exp.NEQ: "<>",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.GT: ">",
    exp.GTE: ">=",
}
_NEEDS_PARENTHESES: Final[tuple[type[Any], ...]] = (
    *_COMPARISON,
    exp.Is,
    exp.In,
    exp.Like,
    exp.Between,
    exp.Not,
    exp.And,
    exp.Or,
)
_METHODS: Final[dict[type[exp.Expr], Callable[[_Compiler, Any, int], Vector]]] = {
    exp.Paren: _Compiler._paren,
    exp.Column: _Compiler._column,
    exp.Literal: _Compiler._literal,
    exp.Null: _Compiler._null,
    exp.Boolean: _Compiler._true_false,
    exp.Cast: _Compiler._cast,
    exp.TryCast: _Compiler._cast,
    exp.Extract: _Compiler._extract,
    exp.Nullif: _Compiler._nullif,
    exp.If: _Compiler._if,
    exp.Neg: _Compiler._negative,
    exp.Between: _Compiler._between,
    exp.In: _Compiler._in,
    exp.Like: _Compiler._like,
    exp.And: _Compiler._connective,
    exp.Or: _Compiler._connective,
    exp.Not: _Compiler._not,
    exp.Is: _Compiler._is,
    exp.Coalesce: _Compiler._coalesce,
    exp.Case: _Compiler._case,
    **dict.fromkeys(functions.FUNCTIONS, _Compiler._function),
    **dict.fromkeys(_ARITHMETIC, _Compiler._arithmetic),
    **dict.fromkeys(_COMPARISON, _Compiler._comparison),
}


def _outside(node: exp.Expr) -> str:
    """Why a node is refused, with the nearest thing that works."""
    if isinstance(node, exp.Alias):
        return f"text after the expression: {node.args['alias'].name!r}"
    if isinstance(node, (exp.Query, exp.Command, exp.DDL, exp.DML)):
        return "a statement stands where a condition or value is expected; write only the expression, without SELECT"
    if isinstance(node, exp.Func):
        name = node.name if isinstance(node, exp.Anonymous) else node.sql_name()
        known = [
            "COALESCE",
            "NULLIF",
            "EXTRACT",
            *(function.name for function in functions.FUNCTIONS.values()),
        ]
        close = difflib.get_close_matches(name.upper(), known, n=1)
        nearest = f"did you mean {close[0]}?" if close else f"the functions are {', '.join(sorted(known))}"
        return f"function {name.upper()} is outside the subset; {nearest}"
    return f"{node.sql()!r} is outside the subset of scalar expressions"


def _error(node: exp.Expr, reason: str) -> SqlError:
    position = _position(node)
    return SqlError(reason if position is None else f"at position {position}: {reason}", position)


def _position(node: exp.Expr) -> int | None:
    """Where the node begins: sqlglot marks names, literals and functions, so the leftmost of those within."""
    if isinstance(node, exp.Alias):
        node = node.args["alias"]
    starts = [part.meta["start"] for part in node.walk() if "start" in part.meta]
    return min(starts, default=None)


def _shown(type_: ColumnType | None) -> str:
    return "NULL" if type_ is None else type_.value.upper()


def _number_literal(node: exp.Expr, text: str) -> Vector:
    if re.fullmatch(r"-?\d+", text):
        if not -(2**63) <= int(text) < 2**63:
            raise _error(node, f"{text} is beyond BIGINT; write it as a DOUBLE: {text}.0")
        return vectors.constant(ColumnType.BIGINT, int(text))
    try:
        value = float(text)
    except ValueError:
        raise _error(node, f"{text!r} is no number") from None
    if not np.isfinite(value):
        raise _error(node, f"{text} is beyond DOUBLE")
    return vectors.constant(ColumnType.DOUBLE, value)


def _compare(symbol: str, left: tuple[exp.Expr, Vector], right: tuple[exp.Expr, Vector]) -> Vector:
    """left <symbol> right, once their types allow it; each with the node that an error names."""
    for node, vector in (left, right):
        if vector.type is None:
            raise _error(left[0], "a comparison with NULL is never true; write IS NULL")
        if vector.type is ColumnType.BINARY:
            raise _error(node, "BINARY cannot be compared; only IS NULL applies to it")
    types = left[1].type, right[1].type
    if types[0] is not types[1] and not (types[0] in _NUMERIC and types[1] in _NUMERIC):
        hint = "; write TIMESTAMP '...'" if ColumnType.TIMESTAMP in types else ""
        raise _error(left[0], f"{_shown(types[0])} cannot be compared with {_shown(types[1])}{hint}")
    if types[0] is ColumnType.BOOLEAN and symbol not in ("=", "<>"):
        raise _error(left[0], "BOOLEAN has no order; compare it with = or <>")
    return vectors.compare(symbol, left[1], right[1])


def _choose(node: exp.Expr, branches: list[tuple[Callable[[Frame], Any], Vector]]) -> Vector:
    types = {value.type for _, value in branches if value.type is not None}
    if types == {*_NUMERIC}:
        types = {ColumnType.DOUBLE}
    if len(types) != 1:
        found = " and ".join(sorted(_shown(type_) for type_ in types)) or "only NULL"
        raise _error(node, f"the values of COALESCE or CASE need one common type, found {found}")
    return vectors.choose(types.pop(), branches)


def _is_known(vector: Vector, frame: Frame) -> Any:
    return vectors.is_known(vector.type, vector.run(frame))


def _is_true(vector: Vector, frame: Frame) -> Any:
    return vector.run(frame)[0]

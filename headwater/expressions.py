"""SQL scalar expressions over Arrow batches: text is parsed once, then every batch costs a few numpy calls.

Used by alarm conditions and by the filters and projections of continuous queries. It is no query language: no SELECT,
no aggregates, no windows. What is outside the subset is refused at compile time with a position.

Subset: columns (`name`, or quoted with backticks as in Flink), numbers, 'strings', TRUE, FALSE, NULL, TIMESTAMP
'2026-01-31 12:00:00.5' (UTC), + - * / %, unary -, = <> < <= > >=, AND, OR, NOT, IS [NOT] NULL, IS [NOT] TRUE | FALSE,
[NOT] BETWEEN, [NOT] IN (list), [NOT] LIKE 'pattern', COALESCE, ABS, CASE, parentheses.

Meaning, as in Flink SQL where a choice exists:
  - Three-valued logic: an operator over NULL is NULL; `FALSE AND NULL` is FALSE, `TRUE OR NULL` is TRUE.
  - BIGINT with DOUBLE is DOUBLE. A literal with point or exponent is DOUBLE (Flink: DECIMAL), another number BIGINT.
  - BIGINT arithmetic wraps at 64 bits; `/` truncates towards zero and `%` has the sign of the dividend, as in Java.
    By zero both are NULL: Flink fails the whole job there, and a device's input must not.
  - DOUBLE is IEEE 754, as Java's primitives: 1/0.0 is infinity, 0/0.0 is NaN; NaN is <> everything, itself
    included, and every other comparison with it is FALSE (not NULL).
  - Strings compare by their UTF-8 bytes. In LIKE `%` is any text, `_` one character; there is no escape character.
  - A literal NULL may not be compared: that is NULL for every row, and IS NULL was meant.
"""

from __future__ import annotations

import difflib
import functools
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from sqlglot import exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import ParseError, TokenError
from sqlglot.tokens import Tokenizer

from headwater.errors import SqlError
from headwater.records import ColumnType

#: Longest text in characters, and deepest nesting (AND and OR chains count once). Ours; nobody writes that by hand.
MAX_LENGTH: Final = 10_000
MAX_DEPTH: Final = 32

_TIMESTAMP: Final = re.compile(r"\d{4}-\d\d-\d\d( \d\d:\d\d(:\d\d(\.\d{1,6})?)?)?")
_NUMERIC: Final = (ColumnType.BIGINT, ColumnType.DOUBLE)

#: Numbers and timestamps: (values, which of them are not NULL; None: all). Each an array or, for a constant, a scalar.
#: Booleans: (where TRUE, where FALSE; None: everywhere else). Strings and binary: an Arrow array or scalar.
_Value = Any
_Mask = npt.NDArray[np.bool_]


class Frame:
    """A batch whose columns are turned into numpy once, however many expressions read them.

    Every `evaluate` takes a batch or a Frame of it; with many expressions over one batch, make the Frame once.
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.batch = batch
        self.rows: int = batch.num_rows
        self._values: dict[str, _Value] = {}
        self._bounds: dict[str, tuple[Any, Any] | None] = {}
        self._asked: dict[str, int] = {}
        self._constant: dict[bool, _Mask] = {}

    @classmethod
    def of(cls, batch: pa.RecordBatch | Frame) -> Frame:
        return batch if isinstance(batch, Frame) else cls(batch)

    def value(self, name: str, type_: ColumnType) -> _Value:
        """The column's values; a batch without the column is an error of the caller (KeyError)."""
        if name not in self._values:
            self._values[name] = _from_arrow(self.batch.column(name), type_)
        return self._values[name]

    def mask(self, found: Any) -> _Mask:
        """One bool per row, also where `found` is a single one for all rows. Not to be written to."""
        if isinstance(found, np.ndarray) and found.ndim:
            return found
        if bool(found) not in self._constant:
            self._constant[bool(found)] = np.full(self.rows, bool(found))
        return self._constant[bool(found)]

    def bounds(self, name: str, type_: ColumnType) -> tuple[Any, Any] | None:
        """Least and greatest value of a numeric column, or None where they are not known.

        They cost two passes and save one per comparison, so they are taken from the third comparison on.
        """
        self._asked[name] = self._asked.get(name, 0) + 1
        if self._asked[name] < 3 or not self.rows:
            return None
        if name not in self._bounds:
            values = self.value(name, type_)[0]
            low, high = values.min(), values.max()
            self._bounds[name] = (low, high) if low <= high else None  # NaN has no order
        return self._bounds[name]


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled scalar expression; `columns` are the columns it reads, `type` is that of its result."""

    sql: str
    columns: frozenset[str]
    type: ColumnType
    _run: Callable[[Frame], _Value]

    def evaluate(self, batch: pa.RecordBatch | Frame) -> pa.Array:
        """One value per row, of `type`, NULL where SQL says so. Never raises for any values in the batch."""
        frame = Frame.of(batch)
        return _to_arrow(self._run(frame), self.type, frame.rows)


@dataclass(frozen=True, slots=True)
class Condition:
    """A compiled boolean expression; `columns` are the columns it reads."""

    sql: str
    columns: frozenset[str]
    _run: Callable[[Frame], _Value]

    def evaluate(self, batch: pa.RecordBatch | Frame) -> tuple[_Mask, _Mask]:
        """Where it is TRUE and where it is FALSE, one bool per row each; NULL is neither."""
        frame = Frame.of(batch)
        true, false = _two_masks(self._run(frame))
        return frame.mask(true), frame.mask(false)


def compile_expression(sql: str | exp.Expr, columns: Mapping[str, ColumnType]) -> Expression:
    """Compiles a scalar expression over these columns.

    sql:    text, or a node of sqlglot's tree, whose positions are then those of its own text
    raises: SqlError with position

    >>> battery = compile_expression("battery / 1000.0", {"battery": ColumnType.BIGINT})
    >>> battery.evaluate(pa.record_batch({"battery": pa.array([3300, None], pa.int64())})).to_pylist()
    [3.3, None]
    """
    node, compiler = _parse(sql), _Compiler(columns)
    typed = compiler.compile(node, 0)
    if typed.type is None:
        raise _error(node, "NULL alone has no type; nearest: COALESCE over columns")
    return Expression(_text(sql), frozenset(compiler.used), typed.type, typed.run)


def compile_condition(sql: str | exp.Expr, columns: Mapping[str, ColumnType]) -> Condition:
    """Compiles a boolean expression over these columns; as `compile_expression` otherwise.

    >>> hot = compile_condition("temperature > 80", {"temperature": ColumnType.DOUBLE})
    >>> true, false = hot.evaluate(pa.record_batch({"temperature": pa.array([81.0, 79.0, None])}))
    >>> true.tolist(), false.tolist()
    ([True, False, False], [False, True, False])
    """
    node, compiler = _parse(sql), _Compiler(columns)
    typed = compiler.compile(node, 0)
    if typed.type is not ColumnType.BOOLEAN:
        raise _error(
            node, f"{_shown(typed.type)} is no condition; compare it, such as ... > 0 or ... IS NOT NULL"
        )
    return Condition(_text(sql), frozenset(compiler.used), typed.run)


class _Scalar(Dialect):
    """sqlglot's base SQL with Flink's backtick as the quote of names."""

    class Tokenizer(Tokenizer):
        IDENTIFIERS = ["`"]  # noqa: RUF012  (sqlglot reads it from the class)


def _text(sql: str | exp.Expr) -> str:
    return sql if isinstance(sql, str) else sql.sql()


def _parse(sql: str | exp.Expr) -> exp.Expr:
    if not isinstance(sql, str):
        return sql
    if len(sql) > MAX_LENGTH:
        raise SqlError(f"the expression has {len(sql)} characters; at most {MAX_LENGTH}", MAX_LENGTH)
    try:
        statements = _Scalar().parse(sql)
    except ParseError as error:
        problem = error.errors[0]
        line, mark = problem.get("line") or 1, problem.get("highlight") or ""
        before = sum(map(len, sql.splitlines(keepends=True)[: line - 1]))
        position = before + (problem.get("col") or 0) - len(mark)
        reason = "an operand is missing" if "missing" in str(problem.get("description")) else "not understood"
        raise SqlError(f"at position {position}, {mark!r}: {reason} in {sql!r}", position) from None
    except TokenError:
        raise SqlError(f"a quote is not closed in {sql!r}", sql.rfind("'")) from None
    except RecursionError:
        raise SqlError(f"nested deeper than {MAX_DEPTH} levels") from None
    if not statements or statements[0] is None:
        raise SqlError("the expression is empty", 0)
    if len(statements) > 1:
        raise SqlError(f"text after ';' in {sql!r}; one expression is expected", sql.find(";"))
    return statements[0]


@dataclass(frozen=True, slots=True)
class _Typed:
    """A compiled node. type None: the literal NULL. column: its name, for a bare column. constant: for a literal."""

    type: ColumnType | None
    run: Callable[[Frame], _Value]
    column: str | None = None
    constant: Any = None


class _Compiler:
    """Turns nodes into closures and collects the columns they read."""

    def __init__(self, columns: Mapping[str, ColumnType]) -> None:
        self.columns = columns
        self.used: set[str] = set()

    def compile(self, node: exp.Expr, depth: int) -> _Typed:
        if depth > MAX_DEPTH:
            raise _error(node, f"nested deeper than {MAX_DEPTH} levels")
        method = _METHODS.get(type(node))
        if method is None:
            raise _error(node, _outside(node))
        return method(self, node, depth + 1)

    def _boolean(self, node: exp.Expr, depth: int) -> _Typed:
        typed = self.compile(node, depth)
        if typed.type is None:
            return _Typed(ColumnType.BOOLEAN, lambda frame: (np.False_, np.False_))
        if typed.type is not ColumnType.BOOLEAN:
            raise _error(node, f"{_shown(typed.type)} is no condition; compare it, such as ... > 0")
        return typed

    def _number(self, node: exp.Expr, depth: int, what: str) -> _Typed:
        typed = self.compile(node, depth)
        if typed.type not in _NUMERIC:
            raise _error(node, f"{what} needs a number, found {_shown(typed.type)}")
        return typed

    def _paren(self, node: exp.Expr, depth: int) -> _Typed:
        return self.compile(node.this, depth)

    def _column(self, node: exp.Expr, _depth: int) -> _Typed:
        name = node.name
        if node.args.get("table") is not None or not isinstance(node.this, exp.Identifier):
            raise _error(node, f"{node.sql()!r}: columns are named without their table; write {name!r}")
        type_ = self.columns.get(name)
        if type_ is None:
            close = difflib.get_close_matches(name.lower(), self.columns, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(self.columns))}"
            raise _error(node, f"no column {name!r}; {hint}")
        self.used.add(name)
        return _Typed(type_, lambda frame: frame.value(name, type_), column=name)

    def _literal(self, node: exp.Expr, _depth: int) -> _Typed:
        text = node.this
        if node.is_string:
            return _constant(ColumnType.STRING, text)
        return _number_literal(node, text)

    def _null(self, _node: exp.Expr, _depth: int) -> _Typed:
        return _Typed(None, lambda frame: None)

    def _true_false(self, node: exp.Expr, _depth: int) -> _Typed:
        return _constant(ColumnType.BOOLEAN, bool(node.this))

    def _timestamp(self, node: exp.Expr, _depth: int) -> _Typed:
        literal, to = node.this, node.args["to"]
        if not (to.is_type("timestamp") and isinstance(literal, exp.Literal) and literal.is_string):
            raise _error(node, _outside(node))
        text = literal.this
        try:
            if not _TIMESTAMP.fullmatch(text):
                raise ValueError("another form")
            at = datetime.fromisoformat(text).replace(tzinfo=UTC)
        except ValueError:
            raise _error(
                literal, f"{text!r} is no timestamp; write TIMESTAMP '2026-01-31 12:00:00.000' (UTC)"
            ) from None
        since = at - datetime(1970, 1, 1, tzinfo=UTC)
        return _constant(
            ColumnType.TIMESTAMP, (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
        )

    def _negative(self, node: exp.Expr, depth: int) -> _Typed:
        # -9223372036854775808 is a BIGINT, but its digits alone are not.
        if isinstance(node.this, exp.Literal) and not node.this.is_string:
            return _number_literal(node.this, "-" + node.this.this)
        operand = self._number(node.this, depth, "-")
        return _Typed(operand.type, _unary(np.negative, operand))

    def _abs(self, node: exp.Expr, depth: int) -> _Typed:
        operand = self._number(node.this, depth, "ABS")
        return _Typed(operand.type, _unary(np.abs, operand))

    def _arithmetic(self, node: exp.Expr, depth: int) -> _Typed:
        symbol, function = _ARITHMETIC[type(node)]
        left, right = (self._number(side, depth, symbol) for side in (node.this, node.expression))
        if ColumnType.DOUBLE in (left.type, right.type):
            return _Typed(ColumnType.DOUBLE, _binary(function, left, right))
        if symbol in "/%":
            return _Typed(ColumnType.BIGINT, _integer_division(symbol, left, right))
        return _Typed(ColumnType.BIGINT, _binary(function, left, right))

    def _comparison(self, node: exp.Expr, depth: int) -> _Typed:
        for side in (node.this, node.expression):
            # `a = b IS NULL` groups otherwise in Flink than in sqlglot; what could differ is not accepted.
            if isinstance(side, _NEEDS_PARENTHESES):
                raise _error(
                    side, "write parentheses around a condition that is compared, such as (a > 1) = b"
                )
        if isinstance(node.expression, exp.Paren) and isinstance(node.expression.this, exp.Is):
            # sqlglot writes these parentheses itself, so they are not known to be the user's.
            raise _error(
                node.expression, "write an IS condition that is compared on the left: (a IS NULL) = b"
            )
        left, right = self.compile(node.this, depth), self.compile(node.expression, depth)
        return _compare(node, left, right)

    def _between(self, node: exp.Expr, depth: int) -> _Typed:
        value, low, high = (
            self.compile(part, depth) for part in (node.this, node.args["low"], node.args["high"])
        )
        if node.args.get("symmetric"):
            raise _error(node, "BETWEEN SYMMETRIC is outside the subset; nearest: BETWEEN low AND high")
        above = _compare(exp.GTE(this=node.this, expression=node.args["low"]), value, low)
        below = _compare(exp.LTE(this=node.this, expression=node.args["high"]), value, high)
        return _Typed(ColumnType.BOOLEAN, _all_of([above, below]))

    def _in(self, node: exp.Expr, depth: int) -> _Typed:
        if not node.expressions or any(isinstance(item, exp.Query) for item in node.expressions):
            raise _error(
                node, "IN takes a list of values, such as IN ('a', 'b'); a subquery is outside the subset"
            )
        value = self.compile(node.this, depth)
        items = [self.compile(item, depth) for item in node.expressions]
        some = [item for item in items if item.type is not None]
        tests = [
            _compare(exp.EQ(this=node.this, expression=at), value, item)
            for at, item in zip(node.expressions, items, strict=True)
            if item.type is not None
        ]
        if (
            len(some) > 4
            and all(item.constant is not None for item in some)
            and value.type is not ColumnType.BOOLEAN
        ):
            tests = [_Typed(ColumnType.BOOLEAN, _in_set(value, [item.constant for item in some]))]
        if len(some) < len(items):
            tests.append(_Typed(ColumnType.BOOLEAN, lambda frame: (np.False_, np.False_)))
        return _Typed(ColumnType.BOOLEAN, _any_of(tests))

    def _like(self, node: exp.Expr, depth: int) -> _Typed:
        value, pattern = self.compile(node.this, depth), node.expression
        if value.type is not ColumnType.STRING:
            raise _error(node.this, f"LIKE needs a STRING, found {_shown(value.type)}")
        if not (isinstance(pattern, exp.Literal) and pattern.is_string):
            raise _error(pattern, "LIKE takes a pattern in quotes, such as LIKE 'pump-%'")
        regex = "".join({"%": ".*", "_": "."}.get(mark) or re.escape(mark) for mark in pattern.this)
        matches = functools.partial(pc.match_substring_regex, pattern=f"(?s)\\A(?:{regex})\\z")
        return _Typed(
            ColumnType.BOOLEAN, lambda frame: _from_arrow(matches(value.run(frame)), ColumnType.BOOLEAN)
        )

    def _connective(self, node: exp.Expr, depth: int) -> _Typed:
        # A chain leans to the left, one level per operand: walked, so that its length is no depth.
        parts: list[exp.Expr] = []
        rest: exp.Expr = node
        while type(rest) is type(node):
            parts.append(rest.expression)
            rest = rest.this
        operands = [self._boolean(part, depth) for part in [rest, *reversed(parts)]]
        return _Typed(ColumnType.BOOLEAN, (_all_of if isinstance(node, exp.And) else _any_of)(operands))

    def _not(self, node: exp.Expr, depth: int) -> _Typed:
        operand = self._boolean(node.this, depth)

        def run(frame: Frame) -> _Value:
            true, false = _two_masks(operand.run(frame))
            return false, true

        return _Typed(ColumnType.BOOLEAN, run)

    def _is(self, node: exp.Expr, depth: int) -> _Typed:
        wanted = node.expression
        if isinstance(wanted, exp.Null):
            value = self.compile(node.this, depth)
            return _Typed(ColumnType.BOOLEAN, lambda frame: (~_known(value.type, value.run(frame)), None))
        if not isinstance(wanted, exp.Boolean):
            raise _error(node, "IS is followed by [NOT] NULL, TRUE or FALSE")
        operand, side = self._boolean(node.this, depth), 0 if wanted.this else 1
        return _Typed(ColumnType.BOOLEAN, lambda frame: (_two_masks(operand.run(frame))[side], None))

    def _coalesce(self, node: exp.Expr, depth: int) -> _Typed:
        values = [self.compile(part, depth) for part in [node.this, *node.expressions]]
        masks = [
            functools.partial(lambda value, frame: _known(value.type, value.run(frame)), v) for v in values
        ]
        return _choose(node, list(zip(masks, values, strict=True)))

    def _case(self, node: exp.Expr, depth: int) -> _Typed:
        branches: list[tuple[Callable[[Frame], Any], _Typed]] = []
        for branch in node.args["ifs"]:
            when = branch.this
            if node.this is not None:
                test = _compare(
                    exp.EQ(this=node.this, expression=when),
                    self.compile(node.this, depth),
                    self.compile(when, depth),
                )
            else:
                test = self._boolean(when, depth)
            mask = functools.partial(lambda test, frame: test.run(frame)[0], test)
            branches.append((mask, self.compile(branch.args["true"], depth)))
        default = node.args.get("default")
        if default is not None:
            branches.append((lambda frame: np.True_, self.compile(default, depth)))
        return _choose(node, branches)


_ARITHMETIC: Final[dict[type[exp.Expr], tuple[str, Any]]] = {
    exp.Add: ("+", np.add),
    exp.Sub: ("-", np.subtract),
    exp.Mul: ("*", np.multiply),
    exp.Div: ("/", np.divide),
    exp.Mod: ("%", np.fmod),
}
_COMPARISON: Final[dict[type[exp.Expr], tuple[Any, Any]]] = {
    exp.EQ: (operator.eq, pc.equal),
    exp.NEQ: (operator.ne, pc.not_equal),
    exp.LT: (operator.lt, pc.less),
    exp.LTE: (operator.le, pc.less_equal),
    exp.GT: (operator.gt, pc.greater),
    exp.GTE: (operator.ge, pc.greater_equal),
}
_NEEDS_PARENTHESES: Final = (*_COMPARISON, exp.Is, exp.In, exp.Like, exp.Between, exp.Not, exp.And, exp.Or)
_METHODS: Final[dict[type[exp.Expr], Callable[[_Compiler, Any, int], _Typed]]] = {
    exp.Paren: _Compiler._paren,
    exp.Column: _Compiler._column,
    exp.Literal: _Compiler._literal,
    exp.Null: _Compiler._null,
    exp.Boolean: _Compiler._true_false,
    exp.Cast: _Compiler._timestamp,
    exp.Neg: _Compiler._negative,
    exp.Abs: _Compiler._abs,
    exp.Between: _Compiler._between,
    exp.In: _Compiler._in,
    exp.Like: _Compiler._like,
    exp.And: _Compiler._connective,
    exp.Or: _Compiler._connective,
    exp.Not: _Compiler._not,
    exp.Is: _Compiler._is,
    exp.Coalesce: _Compiler._coalesce,
    exp.Case: _Compiler._case,
    **dict.fromkeys(_ARITHMETIC, _Compiler._arithmetic),
    **dict.fromkeys(_COMPARISON, _Compiler._comparison),
}


def _outside(node: exp.Expr) -> str:
    """Why a node is refused, with the nearest thing that works."""
    if isinstance(node, exp.Alias):
        return f"text after the expression: {node.args['alias'].name!r}"
    if isinstance(node, (exp.Query, exp.Command, exp.DDL, exp.DML)):
        return "a statement stands where a condition or value is expected; write only the expression, without SELECT"
    if isinstance(node, exp.Cast):
        return "CAST is outside the subset; nearest: TIMESTAMP '...' for a time, 1.0 * x for a DOUBLE"
    if isinstance(node, exp.Func):
        name = node.name if isinstance(node, exp.Anonymous) else node.sql_name()
        close = difflib.get_close_matches(name.upper(), ["COALESCE", "ABS"], n=1)
        nearest = f"did you mean {close[0]}?" if close else "the functions are ABS and COALESCE"
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


def _number_literal(node: exp.Expr, text: str) -> _Typed:
    if re.fullmatch(r"-?\d+", text):
        if not -(2**63) <= int(text) < 2**63:
            raise _error(node, f"{text} is beyond BIGINT; write it as a DOUBLE: {text}.0")
        return _constant(ColumnType.BIGINT, int(text))
    try:
        value = float(text)
    except ValueError:
        raise _error(node, f"{text!r} is no number") from None
    if not np.isfinite(value):
        raise _error(node, f"{text} is beyond DOUBLE")
    return _constant(ColumnType.DOUBLE, value)


def _constant(type_: ColumnType, value: Any) -> _Typed:
    found: _Value
    if type_ is ColumnType.STRING:
        found = pa.scalar(value, pa.string())
    elif type_ is ColumnType.BOOLEAN:
        found = (np.bool_(value), None)
    else:
        found = ((np.float64 if type_ is ColumnType.DOUBLE else np.int64)(value), None)
    return _Typed(type_, lambda frame: found, constant=value)


def _compare(node: exp.Expr, left: _Typed, right: _Typed) -> _Typed:
    """left <op> right; the operator is the node's class."""
    on_numpy, on_arrow = _COMPARISON[type(node)]
    sides: tuple[tuple[exp.Expr, _Typed], ...] = ((node.this, left), (node.expression, right))
    for side, typed in sides:
        if typed.type is None:
            raise _error(
                side if typed is left else node, "a comparison with NULL is never true; write IS NULL"
            )
        if typed.type is ColumnType.BINARY:
            raise _error(side, "BINARY cannot be compared; only IS NULL applies to it")
    if left.type is not right.type and not (left.type in _NUMERIC and right.type in _NUMERIC):
        hint = "; write TIMESTAMP '...'" if ColumnType.TIMESTAMP in (left.type, right.type) else ""
        raise _error(node, f"{_shown(left.type)} cannot be compared with {_shown(right.type)}{hint}")

    if left.type is ColumnType.STRING:
        return _Typed(
            ColumnType.BOOLEAN,
            lambda frame: _from_arrow(on_arrow(left.run(frame), right.run(frame)), ColumnType.BOOLEAN),
        )
    if left.type is ColumnType.BOOLEAN:
        if not isinstance(node, (exp.EQ, exp.NEQ)):
            raise _error(node, "BOOLEAN has no order; compare it with = or <>")
        return _Typed(ColumnType.BOOLEAN, _compare_booleans(left, right, isinstance(node, exp.EQ)))

    def run(frame: Frame) -> _Value:
        if left.column is not None and right.constant is not None:
            (a, a_known), b, known = left.run(frame), right.run(frame)[0], None
            bounds = frame.bounds(left.column, left.type)  # type: ignore[arg-type]
            if bounds is not None and (outcome := _everywhere(node, bounds, b)) is not None:
                if a_known is None:
                    return np.bool_(outcome), None
                return (a_known, np.False_) if outcome else (np.False_, a_known)
        else:
            (a, a_known), (b, known) = left.run(frame), right.run(frame)
        true, known = on_numpy(a, b), _both(a_known, known)
        return (true, None) if known is None else (true & known, known & ~true)

    return _Typed(ColumnType.BOOLEAN, run)


def _everywhere(node: exp.Expr, bounds: tuple[Any, Any], constant: Any) -> bool | None:
    """What `column <op> constant` is in every row, judged by the column's bounds; None where rows may differ."""
    low, high = bounds
    match node:
        case exp.GT():
            return True if low > constant else False if high <= constant else None
        case exp.GTE():
            return True if low >= constant else False if high < constant else None
        case exp.LT():
            return True if high < constant else False if low >= constant else None
        case exp.LTE():
            return True if high <= constant else False if low > constant else None
    return None


def _compare_booleans(left: _Typed, right: _Typed, equal: bool) -> Callable[[Frame], _Value]:
    def run(frame: Frame) -> _Value:
        (a, not_a), (b, not_b) = _two_masks(left.run(frame)), _two_masks(right.run(frame))
        same, different = (a & b) | (not_a & not_b), (a & not_b) | (not_a & b)
        return (same, different) if equal else (different, same)

    return run


def _in_set(value: _Typed, constants: Sequence[Any]) -> Callable[[Frame], _Value]:
    """Membership in a longer list of literals by one lookup per row."""
    if value.type is ColumnType.STRING:
        members = pa.array(constants, pa.string())

        def run_text(frame: Frame) -> _Value:
            text = value.run(frame)
            known = _known(value.type, text)
            true = _from_arrow(pc.is_in(text, value_set=members), ColumnType.BOOLEAN)[0] & known
            return true, known & ~true

        return run_text
    numbers = np.array(constants)

    def run(frame: Frame) -> _Value:
        values, known = value.run(frame)
        true = np.isin(values, numbers)
        return (true, None) if known is None else (true & known, known & ~true)

    return run


def _unary(function: Any, operand: _Typed) -> Callable[[Frame], _Value]:
    def run(frame: Frame) -> _Value:
        values, known = operand.run(frame)
        with np.errstate(all="ignore"):
            return function(values), known

    return run


def _binary(function: Any, left: _Typed, right: _Typed) -> Callable[[Frame], _Value]:
    def run(frame: Frame) -> _Value:
        (a, a_known), (b, b_known) = left.run(frame), right.run(frame)
        with np.errstate(all="ignore"):
            return function(a, b), _both(a_known, b_known)

    return run


def _integer_division(symbol: str, left: _Typed, right: _Typed) -> Callable[[Frame], _Value]:
    def run(frame: Frame) -> _Value:
        (a, a_known), (b, b_known) = left.run(frame), right.run(frame)
        with np.errstate(all="ignore"):
            remainder = np.fmod(a, b)
            # numpy's // rounds down; without the remainder it is exact, and so the same as truncation.
            result = remainder if symbol == "%" else (a - remainder) // b
        return result, _both(_both(a_known, b_known), b != 0)

    return run


def _all_of(operands: Sequence[_Typed]) -> Callable[[Frame], _Value]:
    def run(frame: Frame) -> _Value:
        true, false = operands[0].run(frame)
        for operand in operands[1:]:
            if false is None and true is np.False_:
                break  # FALSE in every row: the rest cannot change it.
            more_true, more_false = operand.run(frame)
            if false is not None or more_false is not None:
                false = _false(true, false) | _false(more_true, more_false)
            true = true & more_true
        return true, false

    return run


def _any_of(operands: Sequence[_Typed]) -> Callable[[Frame], _Value]:
    def run(frame: Frame) -> _Value:
        true, false = operands[0].run(frame)
        for operand in operands[1:]:
            more_true, more_false = operand.run(frame)
            if false is not None or more_false is not None:
                false = _false(true, false) & _false(more_true, more_false)
            true = true | more_true
        return true, false

    return run


def _choose(node: exp.Expr, branches: list[tuple[Callable[[Frame], Any], _Typed]]) -> _Typed:
    """The value of the first branch whose mask is true, NULL where none is; of the branches' common type."""
    types = {value.type for _, value in branches if value.type is not None}
    if types == {*_NUMERIC}:
        types = {ColumnType.DOUBLE}
    if len(types) != 1:
        found = " and ".join(sorted(_shown(type_) for type_ in types)) or "only NULL"
        raise _error(node, f"the values of COALESCE or CASE need one common type, found {found}")
    (type_,) = types

    def run(frame: Frame) -> _Value:
        result = _nulls(type_)
        for mask, value in reversed(branches):
            chosen = mask(frame)
            other = value.run(frame) if value.type is not None else _nulls(type_)
            if type_ in (ColumnType.STRING, ColumnType.BINARY):
                condition = pa.array(chosen) if isinstance(chosen, np.ndarray) else pa.scalar(bool(chosen))
                result = pc.if_else(condition, other, result)
            elif type_ is ColumnType.BOOLEAN:
                pairs = zip(_two_masks(other), _two_masks(result), strict=True)
                result = tuple(np.where(chosen, a, b) for a, b in pairs)
            else:
                known = np.where(chosen, np.True_ if other[1] is None else other[1], result[1])
                result = np.where(chosen, other[0], result[0]), known
        return result

    return _Typed(type_, run)


def _nulls(type_: ColumnType) -> _Value:
    if type_ in (ColumnType.STRING, ColumnType.BINARY):
        return pa.scalar(None, type_.arrow)
    if type_ is ColumnType.BOOLEAN:
        return np.False_, np.False_
    return (np.float64(0) if type_ is ColumnType.DOUBLE else np.int64(0)), np.False_


def _both(a: Any, b: Any) -> Any:
    """Where both are not NULL; None stands for everywhere."""
    if a is None:
        return b
    return a if b is None else a & b


def _false(true: Any, false: Any) -> Any:
    return ~true if false is None else false


def _two_masks(value: _Value) -> tuple[Any, Any]:
    true, false = value
    return true, _false(true, false)


def _known(type_: ColumnType | None, value: _Value) -> Any:
    """Where a value is not NULL."""
    if type_ is None:
        return np.False_
    if type_ in (ColumnType.STRING, ColumnType.BINARY):
        if isinstance(value, pa.Scalar):
            return np.bool_(value.is_valid)
        return value.is_valid().to_numpy(zero_copy_only=False)
    if type_ is ColumnType.BOOLEAN:
        true, false = value
        return np.True_ if false is None else true | false
    return np.True_ if value[1] is None else value[1]


def _from_arrow(found: Any, type_: ColumnType) -> _Value:
    """An Arrow array or scalar as the form in which its type is computed."""
    if type_ in (ColumnType.STRING, ColumnType.BINARY):
        return found
    if isinstance(found, pa.Scalar):  # only BOOLEAN: a comparison of two string constants
        return np.bool_(found.as_py() is True), np.bool_(found.as_py() is False)
    known = found.is_valid().to_numpy(zero_copy_only=False) if found.null_count else None
    if known is not None:
        found = found.fill_null(False if type_ is ColumnType.BOOLEAN else 0)
    if type_ is ColumnType.BOOLEAN:
        true = found.to_numpy(zero_copy_only=False)
        return true, None if known is None else known & ~true
    values = found.to_numpy(zero_copy_only=True)
    return values.view(np.int64) if type_ is ColumnType.TIMESTAMP else values, known


def _to_arrow(value: _Value, type_: ColumnType, rows: int) -> pa.Array:
    if type_ in (ColumnType.STRING, ColumnType.BINARY):
        return pa.repeat(value, rows) if isinstance(value, pa.Scalar) else value
    if type_ is ColumnType.BOOLEAN:
        values, false = _two_masks(value)
        known: Any = values | false
    else:
        values, known = value
        dtype = np.float64 if type_ is ColumnType.DOUBLE else np.int64
        values = values.astype(dtype, copy=False)
    values = np.ascontiguousarray(np.broadcast_to(values, rows))
    mask = None if known is None else ~np.broadcast_to(known, rows)
    found = pa.array(values, mask=mask)
    return found.cast(type_.arrow) if type_ is ColumnType.TIMESTAMP else found

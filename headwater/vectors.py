"""Columns of a batch as numpy arrays, and SQL's operators over them: three-valued logic, one call per batch.

The arithmetic below `expressions.py`, which parses text, checks types and puts these operators together. Nothing
here knows SQL text, and nothing raises for any values in a batch.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headwater.records import ColumnType

#: A column of values in the form in which its type is computed.
#: Numbers and timestamps: (values, which of them are not NULL; None: all). Each an array or, for a constant, a scalar.
#: Booleans: (where TRUE, where FALSE; None: everywhere else). Strings and binary: an Arrow array or scalar.
Value = Any
Mask = npt.NDArray[np.bool_]

_TEXT: Final = (ColumnType.STRING, ColumnType.BINARY)
_COMPARE: Final = {
    "=": (operator.eq, pc.equal),
    "<>": (operator.ne, pc.not_equal),
    "<": (operator.lt, pc.less),
    "<=": (operator.le, pc.less_equal),
    ">": (operator.gt, pc.greater),
    ">=": (operator.ge, pc.greater_equal),
}
#: Whether it holds for the greater values, and the side at which those or the lesser ones begin.
_ORDERED: Final[dict[str, tuple[bool, Literal["left", "right"]]]] = {
    ">": (True, "right"),
    ">=": (True, "left"),
    "<": (False, "left"),
    "<=": (False, "right"),
}
_ARITHMETIC: Final[dict[str, Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "%": np.fmod,
}


#: Comparisons of a column after which its rows are sorted: so many cost about as much as sorting does.
_SORTED_FROM: Final = 160
#: A comparison that holds for at most one row in so many is looked up in the sorted rows.
_FEW: Final = 8


@dataclass(frozen=True, slots=True)
class Vector:
    """What gives a Value for every Frame.

    type:     None: the literal NULL
    column:   the column's name, where it is a bare column
    constant: the literal's value, where it is a literal
    """

    type: ColumnType | None
    run: Callable[[Frame], Value]
    column: str | None = None
    constant: Any = None


class Frame:
    """A batch whose columns are turned into numpy once, however many expressions read them.

    Every `evaluate` takes a batch or a Frame of it; with many expressions over one batch, make the Frame once.
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.batch = batch
        self.rows: int = batch.num_rows
        self._values: dict[str, Value] = {}
        self._bounds: dict[str, tuple[Any, Any] | None] = {}
        self._asked: dict[str, int] = {}
        self._sorted: dict[str, tuple[npt.NDArray[np.intp], Any]] = {}
        self._constant: dict[bool, Mask] = {}

    @classmethod
    def of(cls, batch: pa.RecordBatch | Frame) -> Frame:
        return batch if isinstance(batch, Frame) else cls(batch)

    def value(self, name: str, type_: ColumnType) -> Value:
        """The column's values; a batch without the column is an error of the caller (KeyError)."""
        if name not in self._values:
            self._values[name] = _from_arrow(self.batch.column(name), type_)
        return self._values[name]

    def mask(self, found: Any) -> Mask:
        """One bool per row, also where `found` is a single one for all rows. Not to be written to."""
        if isinstance(found, np.ndarray) and found.ndim:
            return found
        if bool(found) not in self._constant:
            self._constant[bool(found)] = np.full(self.rows, bool(found))
        return self._constant[bool(found)]

    def nowhere(self, mask: Mask) -> bool:
        """Whether the mask is false for every row."""
        return mask is self._constant.get(False) or not mask.any()

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

    def few(self, symbol: str, name: str, type_: ColumnType, constant: Any) -> Mask | None:
        """Where `column <symbol> constant` holds, if that is in few rows; None: compare them all.

        With hundreds of conditions on a column one sort of it is cheaper than a pass for each.
        """
        if (
            self._asked.get(name, 0) < _SORTED_FROM
            or self._bounds.get(name) is None
            or symbol not in _ORDERED
        ):
            return None
        values = self.value(name, type_)[0]
        if values.dtype != constant.dtype:
            return None
        if name not in self._sorted:
            order = np.argsort(values)
            self._sorted[name] = order, values[order]
        order, ascending = self._sorted[name]
        greater, side = _ORDERED[symbol]
        at = int(np.searchsorted(ascending, constant, side))
        rows = order[at:] if greater else order[:at]
        if len(rows) * _FEW > self.rows:
            return None
        found = np.zeros(self.rows, np.bool_)
        found[rows] = True
        return found


def column(name: str, type_: ColumnType) -> Vector:
    return Vector(type_, lambda frame: frame.value(name, type_), column=name)


def constant(type_: ColumnType, value: Any) -> Vector:
    found: Value
    if type_ is ColumnType.STRING:
        found = pa.scalar(value, pa.string())
    elif type_ is ColumnType.BOOLEAN:
        found = (np.bool_(value), None)
    else:
        found = ((np.float64 if type_ is ColumnType.DOUBLE else np.int64)(value), None)
    return Vector(type_, lambda frame: found, constant=value)


def null(type_: ColumnType | None = None) -> Vector:
    """NULL in every row."""
    found: Value
    if type_ is None or type_ in _TEXT:
        found = pa.scalar(None, type_.arrow if type_ else pa.null())
    elif type_ is ColumnType.BOOLEAN:
        found = np.False_, np.False_
    else:
        found = (np.float64(0) if type_ is ColumnType.DOUBLE else np.int64(0)), np.False_
    return Vector(type_, lambda frame: found)


def compare(symbol: str, left: Vector, right: Vector) -> Vector:
    """left <symbol> right, both numbers, or both of one type; booleans only with = and <>."""
    on_numpy, on_arrow = _COMPARE[symbol]
    if left.type is ColumnType.STRING:
        return _boolean(
            lambda frame: _from_arrow(on_arrow(left.run(frame), right.run(frame)), ColumnType.BOOLEAN)
        )
    if left.type is ColumnType.BOOLEAN:
        return _compare_booleans(symbol, left, right)

    def run(frame: Frame) -> Value:
        (a, a_known), (b, b_known) = left.run(frame), right.run(frame)
        if left.column is not None and right.constant is not None:
            outcome = _everywhere(symbol, frame.bounds(left.column, left.type or ColumnType.DOUBLE), b)
            if outcome is not None and a_known is None:
                return np.bool_(outcome), None
            if outcome is not None:
                return (a_known, np.False_) if outcome else (np.False_, a_known)
            few = frame.few(symbol, left.column, left.type or ColumnType.DOUBLE, b)
            if few is not None:
                return (few, None) if a_known is None else (few & a_known, a_known & ~few)
        true, known = on_numpy(a, b), _both(a_known, b_known)
        return (true, None) if known is None else (true & known, known & ~true)

    return _boolean(run)


def is_in(value: Vector, constants: Sequence[Any]) -> Vector:
    """Membership in a longer list of literals, by one lookup per row."""
    if value.type is ColumnType.STRING:
        members = pa.array(constants, pa.string())

        def run_text(frame: Frame) -> Value:
            text = value.run(frame)
            known, found = is_known(value.type, text), pc.is_in(text, value_set=members)
            true = _from_arrow(found, ColumnType.BOOLEAN)[0] & known
            return true, known & ~true

        return _boolean(run_text)
    numbers = np.array(constants)

    def run(frame: Frame) -> Value:
        values, known = value.run(frame)
        true = np.isin(values, numbers)
        return (true, None) if known is None else (true & known, known & ~true)

    return _boolean(run)


def like(value: Vector, pattern: str) -> Vector:
    """Text against a pattern in which `%` is any text and `_` one character."""
    regex = "".join({"%": ".*", "_": "."}.get(mark) or re.escape(mark) for mark in pattern)
    anchored = f"(?s)\\A(?:{regex})\\z"
    return _boolean(
        lambda frame: _from_arrow(pc.match_substring_regex(value.run(frame), anchored), ColumnType.BOOLEAN)
    )


def unary(function: Any, operand: Vector) -> Vector:
    """A numpy function of one number."""

    def run(frame: Frame) -> Value:
        values, known = operand.run(frame)
        with np.errstate(all="ignore"):
            return function(values), known

    return Vector(operand.type, run)


def of_numbers(type_: ColumnType, function: Any, operands: Sequence[Vector]) -> Vector:
    """A numpy function of numbers, element by element; `type_` is BIGINT or DOUBLE. NULL where one of them is."""
    dtype = np.float64 if type_ is ColumnType.DOUBLE else np.int64

    def run(frame: Frame) -> Value:
        known, values = None, []
        for operand in operands:
            value, has = operand.run(frame)
            values.append(value)
            known = _both(known, has)
        with np.errstate(all="ignore"):
            found = function(*values)
            return found.astype(dtype, copy=False) if isinstance(found, np.ndarray) else dtype(found), known

    return Vector(type_, run)


def of_texts(type_: ColumnType, function: Any, operands: Sequence[Vector]) -> Vector:
    """An Arrow function of texts, element by element, of a result of `type_`."""

    def run(frame: Frame) -> Value:
        found = function(*(operand.run(frame) for operand in operands))
        if type_ in _TEXT:
            return found
        if isinstance(found, pa.Scalar):
            dtype = np.float64 if type_ is ColumnType.DOUBLE else np.int64
            return (dtype(found.as_py()), None) if found.is_valid else (dtype(0), np.False_)
        return _from_arrow(found.cast(type_.arrow), type_)

    return Vector(type_, run)


def arithmetic(symbol: str, left: Vector, right: Vector) -> Vector:
    """left <symbol> right: DOUBLE where one of them is, else BIGINT."""
    type_ = ColumnType.DOUBLE if ColumnType.DOUBLE in (left.type, right.type) else ColumnType.BIGINT
    divides_integers = symbol in "/%" and type_ is ColumnType.BIGINT

    def run(frame: Frame) -> Value:
        (a, a_known), (b, b_known) = left.run(frame), right.run(frame)
        with np.errstate(all="ignore"):
            if not divides_integers:
                return _ARITHMETIC[symbol](a, b), _both(a_known, b_known)
            remainder = np.fmod(a, b)
            # numpy's // rounds down; without the remainder it is exact, and so the same as truncation.
            result = remainder if symbol == "%" else (a - remainder) // b
        return result, _both(_both(a_known, b_known), b != 0)

    return Vector(type_, run)


def all_of(operands: Sequence[Vector]) -> Vector:
    """AND: FALSE where one is FALSE, TRUE where all are TRUE, else NULL."""

    def run(frame: Frame) -> Value:
        true, false = operands[0].run(frame)
        for operand in operands[1:]:
            if false is None and true is np.False_:
                break  # FALSE in every row: the rest cannot change it.
            more_true, more_false = operand.run(frame)
            if false is not None or more_false is not None:
                false = _false(true, false) | _false(more_true, more_false)
            true = true & more_true
        return true, false

    return _boolean(run)


def any_of(operands: Sequence[Vector]) -> Vector:
    """OR: TRUE where one is TRUE, FALSE where all are FALSE, else NULL."""

    def run(frame: Frame) -> Value:
        true, false = operands[0].run(frame)
        for operand in operands[1:]:
            more_true, more_false = operand.run(frame)
            if false is not None or more_false is not None:
                false = _false(true, false) & _false(more_true, more_false)
            true = true | more_true
        return true, false

    return _boolean(run)


def negation(operand: Vector) -> Vector:
    """NOT: NULL stays NULL."""
    return _boolean(lambda frame: two_masks(operand.run(frame))[::-1])


def is_null(operand: Vector) -> Vector:
    return _boolean(lambda frame: (~is_known(operand.type, operand.run(frame)), None))


def is_true(operand: Vector) -> Vector:
    return _boolean(lambda frame: (operand.run(frame)[0], None))


def is_false(operand: Vector) -> Vector:
    return _boolean(lambda frame: (two_masks(operand.run(frame))[1], None))


def choose(type_: ColumnType, branches: Sequence[tuple[Callable[[Frame], Any], Vector]]) -> Vector:
    """The value of the first branch whose mask is true, NULL where none is. Branches are of `type_`, BIGINT also for
    DOUBLE, or the literal NULL."""

    def run(frame: Frame) -> Value:
        result = null(type_).run(frame)
        for mask, value in reversed(branches):
            chosen = mask(frame)
            other = (value if value.type is not None else null(type_)).run(frame)
            if type_ in _TEXT:
                condition = pa.array(chosen) if isinstance(chosen, np.ndarray) else pa.scalar(bool(chosen))
                result = pc.if_else(condition, other, result)
            elif type_ is ColumnType.BOOLEAN:
                pairs = zip(two_masks(other), two_masks(result), strict=True)
                result = tuple(np.where(chosen, a, b) for a, b in pairs)
            else:
                known = np.where(chosen, np.True_ if other[1] is None else other[1], result[1])
                result = np.where(chosen, other[0], result[0]), known
        return result

    return Vector(type_, run)


def is_known(type_: ColumnType | None, value: Value) -> Any:
    """Where a value is not NULL."""
    if type_ is None:
        return np.False_
    if type_ in _TEXT:
        if isinstance(value, pa.Scalar):
            return np.bool_(value.is_valid)
        return value.is_valid().to_numpy(zero_copy_only=False)
    if type_ is ColumnType.BOOLEAN:
        true, false = value
        return np.True_ if false is None else true | false
    return np.True_ if value[1] is None else value[1]


def two_masks(value: Value) -> tuple[Any, Any]:
    """Where a boolean is TRUE and where it is FALSE."""
    true, false = value
    return true, _false(true, false)


def to_arrow(value: Value, type_: ColumnType, rows: int) -> pa.Array:
    """The Arrow array of `rows` values, of the type's Arrow type."""
    if type_ in _TEXT:
        return pa.repeat(value, rows) if isinstance(value, pa.Scalar) else value
    if type_ is ColumnType.BOOLEAN:
        values, false = two_masks(value)
        known: Any = values | false
    else:
        values, known = value
        dtype = np.float64 if type_ is ColumnType.DOUBLE else np.int64
        values = values.astype(dtype, copy=False)
    values = np.ascontiguousarray(np.broadcast_to(values, rows))
    mask = None if known is None else ~np.broadcast_to(known, rows)
    found = pa.array(values, mask=mask)
    return found.cast(type_.arrow) if type_ is ColumnType.TIMESTAMP else found


def _boolean(run: Callable[[Frame], Value]) -> Vector:
    return Vector(ColumnType.BOOLEAN, run)


def _everywhere(symbol: str, bounds: tuple[Any, Any] | None, constant: Any) -> bool | None:
    """What `column <symbol> constant` is in every row, judged by the bounds; None where that is not known."""
    if bounds is None:
        return None
    low, high = bounds
    match symbol:
        case ">":
            return True if low > constant else False if high <= constant else None
        case ">=":
            return True if low >= constant else False if high < constant else None
        case "<":
            return True if high < constant else False if low >= constant else None
        case "<=":
            return True if high <= constant else False if low > constant else None
    return None


def _compare_booleans(symbol: str, left: Vector, right: Vector) -> Vector:
    def run(frame: Frame) -> Value:
        (a, not_a), (b, not_b) = two_masks(left.run(frame)), two_masks(right.run(frame))
        same, different = (a & b) | (not_a & not_b), (a & not_b) | (not_a & b)
        return (same, different) if symbol == "=" else (different, same)

    return _boolean(run)


def _both(a: Any, b: Any) -> Any:
    """Where both are not NULL; None stands for everywhere."""
    if a is None:
        return b
    return a if b is None else a & b


def _false(true: Any, false: Any) -> Any:
    return ~true if false is None else false


def _from_arrow(found: Any, type_: ColumnType) -> Value:
    """An Arrow array or scalar as the form in which its type is computed."""
    if type_ in _TEXT:
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

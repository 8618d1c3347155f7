"""Scalar functions of expressions: which there are, what they take, and their meaning over whole columns.

A table: `expressions.py` compiles the arguments and checks their types, docs/sql.md lists it. Every function of NULL is
NULL; none raises for any values. The meaning is Flink's; `portable` says where it is not.

source: Apache Flink documentation, "System (Built-in) Functions"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlglot import exp

from headwater import vectors
from headwater.records import ColumnType
from headwater.vectors import Frame, Value, Vector

_T = ColumnType
_NUMBER: Final = (_T.BIGINT, _T.DOUBLE)
_TEXT: Final = (_T.STRING,)
_TIME: Final = (_T.TIMESTAMP,)
#: A literal whole number, and a literal text.
_WHOLE: Final = "whole"
_QUOTED: Final = "quoted"

Kind = tuple[ColumnType, ...] | str


class Refused(Exception):
    """Why the arguments do not fit, for the compiler to say where."""


@dataclass(frozen=True, slots=True)
class Function:
    """One function.

    form:     how it is written; portable: whether Flink gives the same
    takes:    per argument the types it may have, or that it is a literal; the last one for all that follow
    parts:    the arguments of a node
    build:    makes the result; literals come as values. raises: Refused
    """

    form: str
    takes: tuple[Kind, ...]
    parts: Callable[[Any], Sequence[exp.Expr]]
    build: Callable[..., Vector]
    portable: str = "yes"

    @property
    def name(self) -> str:
        """For messages."""
        return self.form.partition("(")[0] if "(" in self.form else "||"


def is_literal(kind: Kind) -> bool:
    """Whether the argument is a value that the text of the query gives."""
    return isinstance(kind, str)


def literal(node: exp.Expr, kind: Kind) -> Any:
    """The value of a literal argument.

    raises: Refused
    """
    sign = -1 if isinstance(node, exp.Neg) else 1
    node = node.this if isinstance(node, exp.Neg) else node
    if kind == _QUOTED:
        if sign == 1 and isinstance(node, exp.Literal) and node.is_string:
            return node.this
        raise Refused("needs a text in quotes")
    if isinstance(node, exp.Literal) and not node.is_string and node.this.isdigit() and len(node.this) < 10:
        return sign * int(node.this)
    raise Refused("needs a whole number")


def _one(node: Any) -> Sequence[exp.Expr]:
    return (node.this,)


def _two(node: Any) -> Sequence[exp.Expr]:
    return (node.this, node.expression)


def _many(node: Any) -> Sequence[exp.Expr]:
    return (node.this, *node.expressions)


def _double(function: Any) -> Callable[[Vector], Vector]:
    return lambda x: vectors.of_numbers(_T.DOUBLE, function, [x])


def _same(function: Any) -> Callable[[Vector], Vector]:
    """Of a BIGINT a BIGINT."""
    return lambda x: x if x.type is _T.BIGINT else vectors.of_numbers(_T.DOUBLE, function, [x])


def _round(x: Vector, digits: int = 0) -> Vector:
    if not -15 <= digits <= 15:
        raise Refused("rounds to -15 to 15 digits")
    if x.type is _T.BIGINT:
        if digits < 0:
            raise Refused("of a BIGINT rounds to no digits before the point; write ROUND(1.0 * x, -2)")
        return x
    return vectors.of_numbers(_T.DOUBLE, lambda values: round_half_up(values, digits), [x])


def round_half_up(values: Any, digits: int) -> Any:
    """Halves away from zero; as in Flink those of the decimal text of a double: 2.675 is 2.68 to two digits.

    >>> round_half_up(np.array([2.675, -0.5, 1234.5]), 0).tolist()
    [3.0, -1.0, 1235.0]
    """
    unit = 10.0 ** abs(digits)
    size = np.abs(values)
    scaled = size * unit if digits >= 0 else size / unit
    whole = np.floor(scaled)
    # A half as close as doubles can be to one is one: its decimal text says so.
    up = scaled - whole >= 0.5 - 2 * np.spacing(scaled)
    rounded = whole + up
    rounded = rounded / unit if digits >= 0 else rounded * unit
    # Beyond 2^52 there are no digits to round; nor in infinity and NaN.
    return np.where(scaled < 2.0**52, np.copysign(rounded, values), values)


def _extreme(function: Any) -> Callable[..., Vector]:
    def build(*values: Vector) -> Vector:
        type_ = _T.DOUBLE if any(value.type is _T.DOUBLE for value in values) else _T.BIGINT
        return vectors.of_numbers(type_, lambda *parts: _reduced(function, parts), values)

    return build


def _reduced(function: Any, parts: Sequence[Any]) -> Any:
    found = parts[0]
    for part in parts[1:]:
        found = function(found, part)
    return found


def _concat(*values: Vector) -> Vector:
    return vectors.of_texts(
        _T.STRING,
        lambda *parts: pc.binary_join_element_wise(*parts, "", null_handling="emit_null"),
        values,
    )


def _substring(x: Vector, start: int, length: int | None = None) -> Vector:
    if start < 1 or (length is not None and length < 0):
        raise Refused("counts characters from 1; write SUBSTRING(x FROM 1 FOR 3)")
    stop = None if length is None else start - 1 + length
    return vectors.of_texts(_T.STRING, lambda text: pc.utf8_slice_codeunits(text, start - 1, stop=stop), [x])


def _replace(x: Vector, old: str, new: str) -> Vector:
    if not old:
        raise Refused("needs a text to look for that is not empty")
    return vectors.of_texts(
        _T.STRING, lambda text: pc.replace_substring(text, pattern=old, replacement=new), [x]
    )


def _text(function: Any, type_: ColumnType = _T.STRING) -> Callable[[Vector], Vector]:
    return lambda x: vectors.of_texts(type_, function, [x])


_DAY_US: Final = 86_400_000_000


def _months(days: Any) -> Any:
    return np.asarray(days).astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)


def _day_of_month(days: Any) -> Any:
    first = _months(days).astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    return days - first + 1


#: Of microseconds since the epoch.
_FIELDS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "YEAR": lambda us: _months(us // _DAY_US) // 12 + 1970,
    "MONTH": lambda us: _months(us // _DAY_US) % 12 + 1,
    "DAY": lambda us: _day_of_month(us // _DAY_US),
    "DOW": lambda us: (us // _DAY_US + 4) % 7 + 1,
    "HOUR": lambda us: us // 3_600_000_000 % 24,
    "MINUTE": lambda us: us // 60_000_000 % 60,
    "SECOND": lambda us: us // 1_000_000 % 60,
}


def extract(field: str, x: Vector) -> Vector:
    """A field of a time in UTC; of DOW Sunday is 1.

    raises: Refused
    """
    if field not in _FIELDS:
        raise Refused(f"takes one of {', '.join(_FIELDS)}, not {field}")
    return vectors.of_numbers(_T.BIGINT, _FIELDS[field], [x])


def cast(x: Vector, to: ColumnType) -> Vector:
    """CAST and TRY_CAST: a text that is no number is NULL.

    raises: Refused
    """
    if x.type is to:
        return x
    if x.type is None:
        return vectors.null(to)
    found = _CASTS.get((x.type, to))
    if found is None:
        targets = " or ".join(other.value.upper() for source, other in _CASTS if source is x.type)
        nearest = f"; it can be cast to {targets}" if targets else ""
        raise Refused(f"of {x.type.value.upper()} to {to.value.upper()} is outside the subset{nearest}")
    return found(x)


def _to_bigint(values: Any) -> Any:
    """As Java's (long): truncated, NaN is 0, what is too large is the largest."""
    cut = np.trunc(np.nan_to_num(values, nan=0.0, posinf=2.0**63, neginf=-(2.0**63)))
    inside = np.clip(cut, -(2.0**63), np.nextafter(2.0**63, 0)).astype(np.int64)
    return np.where(cut >= 2.0**63, np.int64(2**63 - 1), inside)


def _parsed(to: ColumnType, pattern: str) -> Callable[[Vector], Vector]:
    def parse(text: Any) -> Any:
        if isinstance(text, pa.Scalar):
            return parse(pa.array([text.as_py()], pa.string()))[0]
        trimmed = pc.utf8_trim_whitespace(text)
        fits = pc.match_substring_regex(trimmed, pattern)
        return pc.if_else(fits, trimmed, pa.scalar(None, pa.string())).cast(to.arrow)

    return lambda x: vectors.of_texts(to, parse, [x])


def _flag(x: Vector) -> Vector:
    return vectors.choose(
        _T.BIGINT,
        [
            (lambda frame: x.run(frame)[0], vectors.constant(_T.BIGINT, 1)),
            (lambda frame: vectors.two_masks(x.run(frame))[1], vectors.constant(_T.BIGINT, 0)),
        ],
    )


def _flag_text(x: Vector) -> Vector:
    return vectors.choose(
        _T.STRING,
        [
            (lambda frame: x.run(frame)[0], vectors.constant(_T.STRING, "TRUE")),
            (lambda frame: vectors.two_masks(x.run(frame))[1], vectors.constant(_T.STRING, "FALSE")),
        ],
    )


def _digits(x: Vector) -> Vector:
    def run(frame: Frame) -> Value:
        return vectors.to_arrow(x.run(frame), _T.BIGINT, frame.rows).cast(pa.string())

    return Vector(_T.STRING, run)


_CASTS: Final[Mapping[tuple[ColumnType, ColumnType], Callable[[Vector], Vector]]] = {
    (_T.BIGINT, _T.DOUBLE): _double(np.float64),
    (_T.DOUBLE, _T.BIGINT): lambda x: vectors.of_numbers(_T.BIGINT, _to_bigint, [x]),
    (_T.BOOLEAN, _T.BIGINT): _flag,
    (_T.BIGINT, _T.BOOLEAN): lambda x: vectors.compare("<>", x, vectors.constant(_T.BIGINT, 0)),
    (_T.STRING, _T.DOUBLE): _parsed(_T.DOUBLE, r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?$"),
    (_T.STRING, _T.BIGINT): _parsed(_T.BIGINT, r"^-?\d{1,18}$"),
    (_T.BIGINT, _T.STRING): _digits,
    (_T.BOOLEAN, _T.STRING): _flag_text,
}


def _logarithm(base: int, x: Vector) -> Vector:
    if base not in (2, 10):
        raise Refused("has the base 2 or 10; write LN(x) / LN(b) for another")
    return vectors.of_numbers(_T.DOUBLE, np.log2 if base == 2 else np.log10, [x])


def _trim(x: Vector, what: str = " ") -> Vector:
    if what != " ":
        raise Refused("takes spaces away; write REPLACE for other characters")
    return vectors.of_texts(_T.STRING, lambda text: pc.utf8_trim(text, characters=" "), [x])


_ROUNDING: Final = "yes, to rounding"

FUNCTIONS: Final[Mapping[type[exp.Expr], Function]] = {
    exp.Abs: Function("ABS(x)", (_NUMBER,), _one, lambda x: vectors.unary(np.abs, x)),
    exp.Sign: Function("SIGN(x)", (_NUMBER,), _one, lambda x: vectors.unary(np.sign, x)),
    exp.Ceil: Function("CEIL(x)", (_NUMBER,), _one, _same(np.ceil)),
    exp.Floor: Function("FLOOR(x)", (_NUMBER,), _one, _same(np.floor)),
    exp.Round: Function(
        "ROUND(x, 2)",
        (_NUMBER, _WHOLE),
        lambda node: (node.this, *([node.args["decimals"]] if node.args.get("decimals") else [])),
        _round,
    ),
    exp.Sqrt: Function("SQRT(x)", (_NUMBER,), _one, _double(np.sqrt)),
    exp.Exp: Function("EXP(x)", (_NUMBER,), _one, _double(np.exp), _ROUNDING),
    exp.Ln: Function("LN(x)", (_NUMBER,), _one, _double(np.log), _ROUNDING),
    exp.Log: Function(
        "LOG10(x)",
        (_WHOLE, _NUMBER),
        lambda node: (node.this, node.expression),
        _logarithm,
        _ROUNDING,
    ),
    exp.Pow: Function(
        "POWER(x, y)",
        (_NUMBER, _NUMBER),
        _two,
        lambda x, y: vectors.of_numbers(_T.DOUBLE, lambda a, b: np.power(np.float64(a), b), [x, y]),
        _ROUNDING,
    ),
    exp.Greatest: Function("GREATEST(x, y, ...)", (_NUMBER,), _many, _extreme(np.maximum)),
    exp.Least: Function("LEAST(x, y, ...)", (_NUMBER,), _many, _extreme(np.minimum)),
    exp.Upper: Function("UPPER(s)", (_TEXT,), _one, _text(pc.utf8_upper), "yes, of letters with one capital"),
    exp.Lower: Function("LOWER(s)", (_TEXT,), _one, _text(pc.utf8_lower), "yes, of letters with one capital"),
    exp.Length: Function("CHAR_LENGTH(s)", (_TEXT,), _one, _text(pc.utf8_length, _T.BIGINT)),
    exp.Concat: Function("CONCAT(s, t, ...)", (_TEXT,), lambda node: node.expressions, _concat),
    exp.DPipe: Function("s || t", (_TEXT, _TEXT), _two, _concat),
    exp.Substring: Function(
        "SUBSTRING(s FROM 1 FOR 3)",
        (_TEXT, _WHOLE, _WHOLE),
        lambda node: [node.this, *(node.args[part] for part in ("start", "length") if node.args.get(part))],
        _substring,
    ),
    exp.Replace: Function(
        "REPLACE(s, 'old', 'new')",
        (_TEXT, _QUOTED, _QUOTED),
        lambda node: (node.this, node.expression, node.args.get("replacement") or exp.Literal.string("")),
        _replace,
    ),
    exp.Trim: Function(
        "TRIM(s)",
        (_TEXT, _QUOTED),
        lambda node: [node.this, *(node.args[part] for part in ("expression",) if node.args.get(part))],
        _trim,
    ),
}

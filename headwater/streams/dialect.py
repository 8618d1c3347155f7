"""The text of a continuous query as a syntax tree: sqlglot with the window table functions of Flink SQL.

Pure: text in, tree out. What the tree may contain is decided in `sql.py`; here only what is no SQL at all is
refused. sqlglot has no Flink dialect and none of its dialects reads `TABLE(TUMBLE(TABLE t, DESCRIPTOR(c), ...))`.

source: Apache Flink documentation, "Windowing table-valued functions" and "Data types" (interval literals)
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final

import sqlglot
from sqlglot import exp, parser, tokens
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import ParseError, TokenError
from sqlglot.tokenizer_core import Token, TokenType

from headwater.errors import SqlError

#: Window table functions of Flink SQL.
WINDOW_FUNCTIONS: Final = ("TUMBLE", "HOP", "CUMULATE", "SESSION")

#: What may follow the words of ONE ROW PER MATCH or AFTER MATCH SKIP.
_MATCH_CLAUSES: Final = ("AFTER", "PATTERN", "WITHIN", "DEFINE", ")")
_UNIT_US: Final = {"DAY": 86_400_000_000, "HOUR": 3_600_000_000, "MINUTE": 60_000_000, "SECOND": 1_000_000}
_UNITS: Final = tuple(_UNIT_US)
#: One part of a day-time interval such as `1 10:30:05.250`, by unit.
_PART: Final = {"DAY": r"(\d+)", "HOUR": r"(\d+)", "MINUTE": r"(\d+)", "SECOND": r"(\d+(?:\.\d{1,6})?)"}


class WindowFunction(exp.Expression):
    """`TUMBLE(TABLE t, DESCRIPTOR(c), INTERVAL ...)`: `this` its name, `expressions` its arguments in order."""

    arg_types: ClassVar[dict[str, bool]] = {"this": True, "expressions": True}


class TableArgument(exp.Expression):
    """`TABLE t` as an argument, optionally with PARTITION BY."""

    arg_types: ClassVar[dict[str, bool]] = {"this": True, "partition": False}


class Descriptor(exp.Expression):
    """`DESCRIPTOR(c, ...)`: the columns."""

    arg_types: ClassVar[dict[str, bool]] = {"expressions": True}


class DayTimeInterval(exp.Expression):
    """`INTERVAL '5' MINUTES` or `INTERVAL '1 10' DAY TO HOUR`: `this` the text, `first` and `last` the units."""

    arg_types: ClassVar[dict[str, bool]] = {"this": True, "first": True, "last": False}


class MatchRecognize(exp.Expression):
    """MATCH_RECOGNIZE as Flink writes it. rows, after: what follows ONE ROW ... and AFTER MATCH SKIP; pattern: its
    text; within: an interval; define: aliases of conditions; None: left out."""

    arg_types: ClassVar[dict[str, bool]] = dict.fromkeys(
        ("partition", "order", "measures", "rows", "after", "pattern", "within", "define", "alias"), False
    )


class NamedArgument(exp.Expression):
    """`SIZE => ...`: `this` the name in upper case, `expression` the value."""

    arg_types: ClassVar[dict[str, bool]] = {"this": True, "expression": True}


class _Parser(parser.Parser):
    """sqlglot's parser with the window functions, DESCRIPTOR and their arguments."""

    FUNC_TOKENS = parser.Parser.FUNC_TOKENS | {TokenType.SESSION}
    FUNCTION_PARSERS = {  # noqa: RUF012  sqlglot's own way of extension
        **parser.Parser.FUNCTION_PARSERS,
        **{name: lambda self, name=name: self._window_function(name) for name in WINDOW_FUNCTIONS},
        "DESCRIPTOR": lambda self: self._descriptor(),
    }

    def _window_function(self, name: str) -> exp.Expr:
        at = self._tokens[self._index - 2]
        arguments = [self._window_argument()]
        while self._match(TokenType.COMMA):
            arguments.append(self._window_argument())
        return _placed(WindowFunction(this=name, expressions=arguments), at)

    def _window_argument(self) -> exp.Expr | None:
        at = self._curr
        if self._next and self._next.token_type == TokenType.FARROW:
            self._advance(2)
            return _placed(NamedArgument(this=at.text.upper(), expression=self._window_argument()), at)
        if self._match(TokenType.TABLE):
            table = self._parse_table_parts()
            partition = self._partition_columns()
            return _placed(TableArgument(this=table, partition=partition), at)
        if self._match(TokenType.INTERVAL):
            return self._day_time_interval(at)
        return self._parse_assignment()

    def _partition_columns(self) -> list[exp.Expr | None]:
        """Columns of PARTITION BY; the comma after the last one parts it from DESCRIPTOR."""
        if not self._match(TokenType.PARTITION_BY):
            return []
        columns = [self._parse_column()]
        while self._curr.token_type == TokenType.COMMA and self._next.text.upper() != "DESCRIPTOR":
            self._advance()
            columns.append(self._parse_column())
        return columns

    def _day_time_interval(self, at: Token) -> exp.Expr:
        if not self._match(TokenType.STRING):
            self.raise_error("An interval is text in quotes and a unit, such as INTERVAL '5' MINUTES")
        text = self._prev.text
        first = self._interval_unit()
        last = self._interval_unit() if self._match_text_seq("TO") else None
        return _placed(DayTimeInterval(this=text, first=first, last=last), at)

    def _interval_unit(self) -> str:
        if not self._curr or not self._curr.text.isalpha():
            self.raise_error("An interval needs a unit, such as INTERVAL '5' MINUTES")
        self._advance()
        unit = self._prev.text.upper()
        if self._match(TokenType.L_PAREN):  # precision, such as DAY(3): it bounds digits, not the value
            self._match(TokenType.NUMBER)
            self._match_r_paren()
        return str(unit)

    def _parse_match_recognize(self) -> Any:
        """sqlglot's own reading of it knows no WITHIN and keeps no positions."""
        if not self._match(TokenType.MATCH_RECOGNIZE):
            return None
        at = self._prev
        self._match_l_paren()
        partition, order = self._parse_partition_by(), self._parse_order()
        measures = self._parse_csv(self._parse_expression) if self._match_text_seq("MEASURES") else None
        rows = self._rows_per_match()
        after = None
        if self._match_text_seq("AFTER", "MATCH", "SKIP"):
            after = self._words()
        pattern = self._pattern_text() if self._match_text_seq("PATTERN") else None
        within = None
        if self._match_text_seq("WITHIN"):
            interval = self._curr
            if not self._match(TokenType.INTERVAL):
                self.raise_error("WITHIN takes an interval, such as WITHIN INTERVAL '5' MINUTES")
            within = self._day_time_interval(interval)
        define = self._parse_csv(self._definition) if self._match_text_seq("DEFINE") else None
        self._match_r_paren()
        alias = self._parse_table_alias()
        if alias is not None and alias.columns:
            self.raise_error("Columns of a match are named in MEASURES")
        return _placed(
            MatchRecognize(
                partition=partition,
                order=order,
                measures=measures,
                rows=rows,
                after=after,
                pattern=pattern,
                within=within,
                define=define,
                alias=alias.name if alias is not None else "",
            ),
            at,
        )

    def _rows_per_match(self) -> str | None:
        """`ONE ROW PER MATCH`, `ALL ROWS PER MATCH ...`: up to the next clause; None where nothing begins so."""
        if self._curr.text.upper() not in ("ONE", "ALL"):
            return None
        return self._words()

    def _words(self) -> str:
        """Words up to the next clause."""
        words = []
        while self._curr and self._curr.text.upper() not in _MATCH_CLAUSES:
            words.append(self._curr.text.upper())
            self._advance()
        return " ".join(words)

    def _pattern_text(self) -> exp.Expr:
        self._match_l_paren()
        start, depth = self._curr, 1
        while self._curr:
            depth += {TokenType.L_PAREN: 1, TokenType.R_PAREN: -1}.get(self._curr.token_type, 0)
            if not depth:
                break
            self._advance()
        pattern = "" if self._curr is start else self._find_sql(start, self._prev)
        self._match_r_paren()
        return _placed(exp.Literal.string(pattern), start)

    def _definition(self) -> exp.Expr:
        name = self._parse_id_var()
        if not self._match(TokenType.ALIAS):
            self.raise_error("DEFINE takes conditions by name, such as A AS A.temperature > 80")
        return exp.Alias(this=self._parse_assignment(), alias=name)

    def _descriptor(self) -> exp.Expr:
        at = self._tokens[self._index - 2]
        return _placed(Descriptor(expressions=self._parse_csv(self._parse_column)), at)


class ContinuousSql(Dialect):
    """Names in backticks, text in single quotes; names keep their case, as in Flink."""

    class Tokenizer(tokens.Tokenizer):
        IDENTIFIERS = ["`"]  # noqa: RUF012  sqlglot's own way of extension
        KEYWORDS = {  # noqa: RUF012
            **tokens.Tokenizer.KEYWORDS,
            "MATCH_RECOGNIZE": TokenType.MATCH_RECOGNIZE,
        }

    Parser = _Parser


def parse(text: str) -> exp.Expr:
    """The tree of the one statement in `text`; a closing semicolon is allowed.

    raises: SqlError with position where the text is no SQL, is empty or holds more than one statement
    """
    try:
        found = ContinuousSql().tokenize(text)
    except TokenError as error:
        raise SqlError(
            "found the end of the text inside of quotes or a comment; close it", len(text)
        ) from error
    ends = [token.start for token in found if token.token_type == TokenType.SEMICOLON]
    if ends and found[-1].start > ends[0]:
        raise SqlError("found a second statement; a query is one SELECT", ends[0])
    try:
        statements: list[Any] = sqlglot.parse(text, read=ContinuousSql)
    except ParseError as error:
        first = error.errors[0]
        position = _offset(text, first)
        what = str(first["description"] or "unexpected text").partition(" but got ")[0].rstrip(".")
        found_text = f"found {first['highlight']!r}" if first["highlight"] else "the text ends too early"
        raise SqlError(f"{found_text}: {what}", position) from None
    except RecursionError:
        raise SqlError("the text is nested too deep to be read; write it flatter", 0) from None
    if not statements or statements[0] is None:
        raise SqlError("the text is empty; a query is one SELECT", 0)
    tree: exp.Expr = statements[0]
    return tree


def interval_us(interval: DayTimeInterval) -> int | None:
    """Microseconds of an interval literal, None where text and units do not fit each other.

    Units are DAY, HOUR, MINUTE, SECOND, also in the plural, and ranges of them (`DAY TO SECOND`).
    """
    units = [_singular(interval.args["first"])]
    if interval.args.get("last"):
        units.append(_singular(interval.args["last"]))
    if any(unit not in _UNITS for unit in units) or units != sorted(set(units), key=_UNITS.index):
        return None
    span = _UNITS[_UNITS.index(units[0]) : _UNITS.index(units[-1]) + 1]
    pattern = _PART[span[0]]
    for unit in span[1:]:
        pattern += (" " if unit == "HOUR" else ":") + _PART[unit]
    match = re.fullmatch(pattern, interval.args["this"].strip())
    if match is None:
        return None
    return sum(_scaled(str(part), _UNIT_US[unit]) for unit, part in zip(span, match.groups(), strict=True))


def shown(interval: DayTimeInterval) -> str:
    """An interval as it was written, for messages."""
    last = interval.args.get("last")
    return f"'{interval.args['this']}' {interval.args['first']}{f' TO {last}' if last else ''}"


def position(node: exp.Expr | None) -> int | None:
    """0-based offset of the first character that `node` came from, None where the parser kept none."""
    if node is None:
        return None
    starts = [part.meta["start"] for part in node.walk() if "start" in part.meta]
    return min(starts) if starts else None


def keyword_position(text: str, keyword: str, default: int | None) -> int | None:
    """Offset of the first `keyword` outside of quotes; the parser keeps no place for clauses such as HAVING."""
    found = (token.start for token in ContinuousSql().tokenize(text) if token.text.upper() == keyword)
    return next(found, default)


def _placed(node: exp.Expr, token: Token) -> exp.Expr:
    node.meta.update(line=token.line, col=token.col, start=token.start, end=token.end)
    return node


def _singular(unit: str) -> str:
    return unit.removesuffix("S")


def _scaled(part: str, unit_us: int) -> int:
    whole, _, fraction = part.partition(".")
    return int(whole) * unit_us + int(fraction.ljust(6, "0")) * unit_us // 1_000_000


def _offset(text: str, error: dict[str, Any]) -> int:
    """The parser counts lines and the column of a word's last character, both from 1."""
    lines = text.splitlines(keepends=True)[: error["line"] - 1]
    word = error["highlight"] or ""
    found = sum(map(len, lines)) + int(error["col"]) - len(word)
    return min(max(found, 0), len(text))

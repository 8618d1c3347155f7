"""The text of a scalar expression as a syntax tree: what is no SQL, or more than one expression, is refused."""

from __future__ import annotations

from typing import Final

from sqlglot import exp, tokens
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import ParseError, TokenError

from headwater.errors import SqlError

#: Longest text in characters, and deepest nesting (AND and OR chains count once). Ours; nobody writes that by hand.
MAX_LENGTH: Final = 10_000
MAX_DEPTH: Final = 32


class _Scalar(Dialect):
    """sqlglot's base SQL with Flink's backtick as the quote of names."""

    class Tokenizer(tokens.Tokenizer):
        IDENTIFIERS = ["`"]  # noqa: RUF012  (sqlglot reads it from the class)


def text_of(sql: str | exp.Expr) -> str:
    """The text of an expression that may be a node."""
    return sql if isinstance(sql, str) else sql.sql()


def parse(sql: str | exp.Expr) -> exp.Expr:
    """The node of a text; a node is what it is.

    raises: SqlError with position
    """
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

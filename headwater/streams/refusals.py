"""What a continuous query may not hold: every refusal with what was found and the nearest thing that works.

docs/sql.md shows each with an example (reference.py), and a test compares.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Final

from sqlglot import exp

from headwater.errors import SqlError
from headwater.streams import dialect

#: A window of each kind, for messages.
EXAMPLES: Final[Mapping[str, str]] = {
    "TUMBLE": "TABLE(TUMBLE(TABLE {table}, DESCRIPTOR(ts), INTERVAL '5' MINUTES))",
    "HOP": "TABLE(HOP(TABLE {table}, DESCRIPTOR(ts), INTERVAL '1' MINUTE, INTERVAL '5' MINUTES))",
    "CUMULATE": "TABLE(CUMULATE(TABLE {table}, DESCRIPTOR(ts), INTERVAL '1' HOUR, INTERVAL '1' DAY))",
    "SESSION": "TABLE(SESSION(TABLE {table} PARTITION BY {key}, DESCRIPTOR(ts), INTERVAL '5' MINUTES))",
}
_TUMBLE: Final = EXAMPLES["TUMBLE"]
_AGGREGATES: Final = (
    "COUNT, SUM, AVG, MIN, MAX, STDDEV_POP, STDDEV_SAMP, VAR_POP, VAR_SAMP, FIRST_VALUE, LAST_VALUE, "
    "COUNT(DISTINCT x) and PERCENTILE(x, 0.95)"
)

REFUSALS: Final[Mapping[str, str]] = {
    "not-select": "found {found}; a query is one SELECT ... FROM "
    + _TUMBLE.format(table="telemetry")
    + " GROUP BY ...",
    "with": "found WITH; name the inner query as [queries.<name>] and read it by that name",
    "distinct": "found DISTINCT; rows of a result are distinct by group columns and window already",
    "order": "found {found}; a continuous result has no end to order or cut, do it when you query the table",
    "join": "found a join; a query reads one stream",
    "clause": "found {found}; a query is SELECT, FROM, WHERE, GROUP BY and HAVING",
    "subquery": "found a query inside FROM; name the inner query as [queries.<name>] and read it by that name",
    "no-from": "found no FROM; read a stream by FROM " + _TUMBLE,
    "no-window": "found {found}, which is no window table; write FROM " + _TUMBLE,
    "window-arguments": "found other arguments; {kind} takes {takes}, such as {example}",
    "window-offset": "found a window offset; windows are aligned to 1970-01-01T00:00:00Z, leave it out",
    "descriptor": "found DESCRIPTOR({found}); the event time of {table} is ts, write DESCRIPTOR(ts)",
    "interval": "found INTERVAL {found}; the units are DAY, HOUR, MINUTE and SECOND, such as INTERVAL '5' MINUTES",
    "size": "found {what} of {found}; it lasts whole milliseconds, at least 1 and at most 366 days",
    "multiple": "found a size of {size} and a {what} of {found}; the size is a multiple of the {what}, at most "
    "1440 times as long",
    "session-partition": "found PARTITION BY {found} and GROUP BY {groups}; sessions are those of the group columns, "
    "write {wanted}",
    "calendar-unit": "found INTERVAL {found} with a time zone; a calendar window is INTERVAL '1' DAY, '1' WEEK or "
    "'1' MONTH",
    "calendar-zone": "found no time zone for INTERVAL {found}; write TUMBLE(TABLE {table}, DESCRIPTOR(ts), "
    "INTERVAL {found}, 'UTC'), or another zone",
    "zone": "found the time zone {found!r}, which is not known; zones are those of the IANA database, such as "
    "'Europe/Paris' or 'UTC'",
    "table": "found {found!r}, which is no stream and no query{nearest}",
    "no-time": "found {found!r}, a table without event time ts; windows need one",
    "column": "found {found!r}, which is no column of {table}{nearest}",
    "qualified": "found {found!r}; the window table is known here only {alias}",
    "star": "found *; name the columns, a grouped query has no others",
    "not-grouped": "found {found!r} outside an aggregate; add it to GROUP BY or aggregate it, such as MAX({found})",
    "aggregate": "found {found}; the aggregates are " + _AGGREGATES,
    "aggregate-argument": "found {found}; it takes {takes}",
    "aggregate-nested": "found {found} inside of an aggregate; make it a query of its own and read it by its name",
    "aggregate-type": "found {function} of {found}, a {type}; it takes {takes}",
    "aggregate-distinct": "found {function}(DISTINCT ...); only COUNT(DISTINCT x) works",
    "aggregate-modifier": "found {found} on an aggregate; FILTER (WHERE ...) is what works",
    "no-aggregate": "found no aggregate; add one, such as COUNT(*) AS n",
    "alias-missing": "found {found} without a name; write {found} AS {example}",
    "alias": "found the name {found!r}; a name is lower-case letters, digits and _, at most 63",
    "alias-reserved": "found the name {found!r}, which every result has by itself; choose another",
    "alias-twice": "found the name {found!r} twice; each column of a result has its own name",
    "no-group": "found no GROUP BY; write GROUP BY {example}",
    "group-window": "found GROUP BY without {found}; a window is named by both, write GROUP BY {example}",
    "group-expression": "found {found} in GROUP BY; group by plain columns",
    "group-type": "found {found!r} in GROUP BY, a {type}; group by string, bigint, boolean or timestamp",
    "match-table": "found MATCH_RECOGNIZE of something else than a stream; write FROM telemetry MATCH_RECOGNIZE (...)",
    "match-select": "found {found} beside MATCH_RECOGNIZE; name the match as [queries.<name>] and read it by that name",
    "match-item": "found {found}; a match gives * or its columns, put what is computed into MEASURES",
    "match-partition": "found PARTITION BY {found}; partition by plain columns",
    "match-order": "found {found}; rows are matched in event time, write ORDER BY ts",
    "match-rows": "found {found}; write ONE ROW PER MATCH",
    "match-after": "found AFTER MATCH SKIP {found}; SKIP PAST LAST ROW and SKIP TO NEXT ROW are what works",
    "match-pattern": "found {found}; a pattern is a sequence, such as PATTERN (A B) or PATTERN (A X*? B)",
    "match-quantifier": "found {found}; a variable is one row. For 'A, then some time B' put an undefined variable "
    "with *? between them, such as PATTERN (A X*? B)",
    "match-twice": "found the variable {found} twice; give each row of the pattern its own",
    "match-ends": "found {found} at an end of PATTERN; it stands between two variables, such as PATTERN (A X*? B)",
    "match-length": "found {found} variables of one row in PATTERN; there are two to four, such as PATTERN (A X*? B)",
    "match-within": "found no WITHIN; without it open matches grow for ever, write PATTERN (...) WITHIN INTERVAL "
    "'5' MINUTES",
    "match-variable": "found {found!r}, which is no variable of one row in PATTERN; there are {known}",
    "match-reference": "found {found} in the condition of {own}; it may compare its own row with that of {first}, "
    "the first variable",
    "match-unqualified": "found {found} without its variable; write {variable}.{found}",
    "match-function": "found {found}; a variable is one row, write its columns such as A.ts, or MATCH_ROWTIME() in "
    "MEASURES",
    "group-twice": "found {found!r} in GROUP BY twice; once is enough",
}


def refuse(code: str, node: exp.Expr, **values: object) -> SqlError:
    """The error to raise for a node."""
    return SqlError(REFUSALS[code].format(**values), dialect.position(node))


def text(node: exp.Expr) -> str:
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


def nearest(wrong: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name."""
    names = sorted(known)
    close = difflib.get_close_matches(wrong, names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are {', '.join(names)}" if names else "; there are none"

"""What docs/sql.md lists: features, functions and refusals, each with an example that is planned.

`python -m headwater.streams.reference docs/sql.md` renews the page's tables; a test compares them with these.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from headwater import functions
from headwater.errors import SqlError
from headwater.records import Column, ColumnType, Schema
from headwater.streams.sql import plan

_T = ColumnType
#: The stream that the examples read, and a table that has no time.
TELEMETRY: Final = Schema(
    16,
    16,
    "telemetry",
    (
        Column("site", _T.STRING),
        Column("device", _T.STRING),
        Column("ts", _T.TIMESTAMP),
        Column("received_at", _T.TIMESTAMP),
        Column("temperature", _T.DOUBLE),
        Column("rssi", _T.BIGINT),
        Column("door", _T.BOOLEAN),
    ),
    "device",
)
_NO_TIME: Final = Schema(17, 17, "places", (Column("site", _T.STRING), Column("rooms", _T.BIGINT)), "site")
TABLES: Final = {"telemetry": TELEMETRY, "places": _NO_TIME}

#: Abbreviations of the page.
SHORT: Final = {
    "$W": "TABLE(TUMBLE(TABLE telemetry, DESCRIPTOR(ts), INTERVAL '5' MINUTES))",
    "$G": "GROUP BY device, window_start, window_end",
    "$S": "TABLE telemetry PARTITION BY device, DESCRIPTOR(ts)",
    "$T": "TABLE telemetry, DESCRIPTOR(ts)",
    "$M": "PARTITION BY device ORDER BY ts MEASURES B.ts AS at",
    "$B": "WITHIN INTERVAL '5' MINUTES DEFINE A AS A.door, B AS NOT B.door",
}

#: (feature, example, whether Flink gives the same).
FEATURES: Final = (
    (
        "Fixed windows",
        "SELECT device, window_start, window_end, COUNT(*) AS n FROM TABLE(TUMBLE($T, INTERVAL '10' SECONDS)) $G",
        "yes",
    ),
    (
        "Hopping windows: a size, every slide; the size is a multiple of the slide",
        "SELECT COUNT(*) AS n FROM TABLE(HOP($T, INTERVAL '1' MINUTE, INTERVAL '5' MINUTES)) $G",
        "yes",
    ),
    (
        "Cumulating windows: from every multiple of the size, growing by steps",
        "SELECT COUNT(*) AS n FROM TABLE(CUMULATE($T, INTERVAL '1' HOUR, INTERVAL '1' DAY)) $G",
        "yes",
    ),
    (
        "Sessions of the group columns: rows no further apart than a gap",
        "SELECT COUNT(*) AS n FROM TABLE(SESSION($S, INTERVAL '5' MINUTES)) $G",
        "yes",
    ),
    (
        "Sessions of all rows",
        "SELECT COUNT(*) AS n FROM TABLE(SESSION($T, INTERVAL '5' MINUTES)) GROUP BY window_start, window_end",
        "yes",
    ),
    (
        "Calendar windows: local day, week (from Monday) or month of a time zone",
        "SELECT COUNT(*) AS n FROM TABLE(TUMBLE($T, INTERVAL '1' MONTH, 'Europe/Paris')) $G",
        "no: Flink has no such windows",
    ),
    (
        "Named arguments",
        (
            "SELECT COUNT(*) AS n FROM TABLE(TUMBLE(DATA => TABLE telemetry, TIMECOL => DESCRIPTOR(ts), "
            "SIZE => INTERVAL '1' HOUR)) $G"
        ),
        "yes",
    ),
    (
        "A named time zone",
        (
            "SELECT COUNT(*) AS n FROM TABLE(TUMBLE(DATA => TABLE telemetry, TIMECOL => DESCRIPTOR(ts), "
            "SIZE => INTERVAL '1' DAY, TIME_ZONE => 'UTC')) $G"
        ),
        "no: Flink has no such windows",
    ),
    (
        "Size in DAY, HOUR, MINUTE, SECOND, plural or not",
        "SELECT COUNT(*) AS n FROM TABLE(TUMBLE($T, INTERVAL '7' DAYS)) $G",
        "yes",
    ),
    ("Size below a second", "SELECT COUNT(*) AS n FROM TABLE(TUMBLE($T, INTERVAL '0.250' SECOND)) $G", "yes"),
    (
        "Size over several units",
        "SELECT COUNT(*) AS n FROM TABLE(TUMBLE($T, INTERVAL '1 12:30' DAY TO MINUTE)) $G",
        "yes",
    ),
    (
        "Window bounds and window time",
        (
            "SELECT window_start, window_end, window_time, COUNT(*) AS n FROM $W "
            "GROUP BY window_start, window_end, window_time"
        ),
        "yes",
    ),
    (
        "Any group columns",
        "SELECT site, door, rssi, COUNT(*) AS n FROM $W GROUP BY site, door, rssi, window_start, window_end",
        "yes",
    ),
    ("No group column", "SELECT COUNT(*) AS n FROM $W GROUP BY window_start, window_end", "yes"),
    (
        "Group columns left out of SELECT",
        "SELECT COUNT(*) AS n FROM $W $G",
        "no: the result has them all the same",
    ),
    ("Rows and values counted", "SELECT COUNT(*) AS n, COUNT(temperature) AS measured FROM $W $G", "yes"),
    (
        "AVG, SUM, MIN, MAX of a double",
        (
            "SELECT AVG(temperature) AS a, SUM(temperature) AS s, MIN(temperature) AS low, MAX(temperature) AS high "
            "FROM $W $G"
        ),
        "yes, to rounding",
    ),
    (
        "AVG, SUM, MIN, MAX of a bigint",
        "SELECT AVG(rssi) AS a, SUM(rssi) AS s, MIN(rssi) AS low, MAX(rssi) AS high FROM $W $G",
        "yes",
    ),
    ("First and last time", "SELECT MIN(ts) AS first_ts, MAX(ts) AS last_ts FROM $W $G", "yes"),
    (
        "Spread of a double: VAR_POP, VAR_SAMP (VARIANCE), STDDEV_POP, STDDEV_SAMP (STDDEV)",
        "SELECT VAR_POP(temperature) AS v, STDDEV_SAMP(temperature) AS s FROM $W $G",
        "yes, to rounding",
    ),
    (
        "Spread of a bigint, as a double",
        "SELECT STDDEV_POP(rssi) AS s FROM $W $G",
        "no: in Flink it is a bigint",
    ),
    (
        "Value of the first and the last row by event time, of equal times by place in the log",
        "SELECT FIRST_VALUE(temperature) AS opened, LAST_VALUE(door) AS door, LAST_VALUE(site) AS site FROM $W $G",
        "no: Flink goes by arrival",
    ),
    (
        "Different values: exact up to 512, beyond that to 1.63 % (standard error)",
        "SELECT COUNT(DISTINCT site) AS sites FROM $W $G",
        "yes, up to 512 values",
    ),
    (
        "Percentiles to 1 % of the value, interpolated",
        "SELECT PERCENTILE(temperature, 0.5) AS median, PERCENTILE(temperature, 0.99) AS p99 FROM $W $G",
        "yes, to 1 %",
    ),
    (
        "Aggregates of expressions",
        "SELECT AVG(temperature * 1.8 + 32) AS fahrenheit, SUM(CASE WHEN door THEN 1 ELSE 0 END) AS open FROM $W $G",
        "yes",
    ),
    (
        "Aggregates of some rows",
        "SELECT COUNT(*) FILTER (WHERE door) AS open, MAX(rssi) FILTER (WHERE site <> 'lab') AS high FROM $W $G",
        "yes",
    ),
    (
        "Expressions over aggregates, groups and window",
        "SELECT UPPER(device) AS name, MAX(temperature) - MIN(temperature) AS span FROM $W $G",
        "yes",
    ),
    ("WHERE", "SELECT COUNT(*) AS n FROM $W WHERE temperature > 80 AND site <> 'lab' $G", "yes"),
    ("HAVING", "SELECT AVG(temperature) AS a FROM $W $G HAVING COUNT(*) > 10 AND MAX(rssi) < -60", "yes"),
    (
        "Other names",
        "SELECT t.device AS machine, COUNT(*) AS n FROM $W AS t GROUP BY t.device, window_start, window_end",
        "yes",
    ),
    (
        "Patterns: A, then directly B, less than a time later",
        "SELECT * FROM telemetry MATCH_RECOGNIZE ($M ONE ROW PER MATCH PATTERN (A B) $B)",
        "yes",
    ),
    (
        "A, then the first B, whatever lies between (X has no condition)",
        "SELECT device, at FROM telemetry MATCH_RECOGNIZE ($M PATTERN (A X*? B) $B)",
        "yes",
    ),
    (
        "Two to four variables; conditions that compare with the row of the first one",
        (
            "SELECT * FROM telemetry MATCH_RECOGNIZE ($M PATTERN (A X*? B C) WITHIN INTERVAL '1' HOUR "
            "DEFINE A AS temperature > 80, B AS B.temperature > LAST(A.temperature) + 5, C AS C.door)"
        ),
        "yes",
    ),
    (
        "Measures: columns of variables, also as FIRST and LAST, expressions, MATCH_ROWTIME()",
        (
            "SELECT * FROM telemetry MATCH_RECOGNIZE (PARTITION BY site, device ORDER BY ts MEASURES "
            "A.ts AS began, LAST(B.rssi) - FIRST(A.rssi) AS change, MATCH_ROWTIME() AS at PATTERN (A B) $B)"
        ),
        "yes",
    ),
    (
        "The next match begins after the last row, or with SKIP TO NEXT ROW after the first one",
        "SELECT * FROM telemetry MATCH_RECOGNIZE ($M AFTER MATCH SKIP TO NEXT ROW PATTERN (A X*? B) $B)",
        "yes",
    ),
    (
        "WHERE over matches, other names",
        (
            "SELECT m.device AS machine, m.at FROM telemetry MATCH_RECOGNIZE ($M PATTERN (A B) $B) AS m "
            "WHERE m.device <> 'test'"
        ),
        "yes",
    ),
    ("Names in backticks", "SELECT `device`, COUNT(*) AS `n` FROM $W $G", "yes"),
)

#: Scalar expressions that are no function of `functions.FUNCTIONS`: (form, example over the stream, portable).
_FORMS: Final = (
    ("`+ - * / %`", "temperature * 2 - rssi % 7", "yes; by zero NULL, where Flink fails"),
    ("`= <> < <= > >=`", "CASE WHEN temperature >= 80 THEN 1 END", "yes"),
    ("`AND OR NOT`", "CASE WHEN door AND NOT rssi < -80 THEN 1 END", "yes"),
    ("`IS [NOT] NULL`, `TRUE`, `FALSE`", "CASE WHEN door IS NOT TRUE THEN 1 END", "yes"),
    ("`[NOT] BETWEEN`", "CASE WHEN rssi BETWEEN -80 AND -60 THEN 1 END", "yes"),
    ("`[NOT] IN (...)`", "CASE WHEN site IN ('lab', 'roof') THEN 1 END", "yes"),
    ("`[NOT] LIKE 'pattern'`", "CASE WHEN site LIKE 'lab-%' THEN 1 END", "yes"),
    ("`CASE`", "CASE site WHEN 'lab' THEN 0 ELSE rssi END", "yes"),
    ("`COALESCE`", "COALESCE(temperature, rssi, 0)", "yes"),
    ("`NULLIF(x, y)`", "NULLIF(rssi, 0)", "yes"),
    ("`IF(c, x, y)`", "IF(door, 1, 0)", "yes"),
    ("`EXTRACT(HOUR FROM ts)`", "EXTRACT(HOUR FROM ts)", "yes, with Flink's time zone UTC"),
    (
        "`CAST(x AS DOUBLE)`, BIGINT, BOOLEAN, STRING",
        "CAST(rssi AS DOUBLE)",
        "yes; of a text that is no number NULL, where Flink fails",
    ),
    ("`TRY_CAST(s AS BIGINT)`", "TRY_CAST(site AS BIGINT)", "yes, of whole numbers"),
)
_ARGUMENTS: Final = {"x": "temperature", "y": "rssi", "s": "site", "t": "device"}

_SELECT: Final = "SELECT COUNT(*) AS n FROM "
#: (code of the refusal, example). `syntax` and `expression` are refusals of the parser and of expressions.
REFUSED: Final = (
    ("not-select", "INSERT INTO t VALUES (1)"),
    ("not-select", "SELECT 1 UNION SELECT 2"),
    ("with", "WITH t AS (SELECT 1) SELECT n FROM t"),
    ("distinct", "SELECT DISTINCT device, COUNT(*) AS n FROM $W $G"),
    ("order", _SELECT + "$W $G ORDER BY n"),
    ("order", _SELECT + "$W $G LIMIT 10"),
    ("join", _SELECT + "$W AS t JOIN places AS p ON p.site = t.site $G"),
    ("join", _SELECT + "$W, places $G"),
    ("clause", _SELECT + "$W TABLESAMPLE (5 PERCENT) $G"),
    ("clause", "SELECT COUNT(*) AS n INTO t FROM $W $G"),
    ("subquery", _SELECT + "(SELECT device FROM telemetry) $G"),
    ("no-from", "SELECT COUNT(*) AS n"),
    ("no-window", "SELECT device, COUNT(*) AS n FROM telemetry GROUP BY device"),
    ("no-window", _SELECT + "TUMBLE($T, INTERVAL '5' MINUTES) $G"),
    ("window-arguments", _SELECT + "TABLE(TUMBLE(telemetry, ts, INTERVAL '5' MINUTES)) $G"),
    ("window-arguments", _SELECT + "TABLE(HOP($T, INTERVAL '5' MINUTES)) $G"),
    ("window-arguments", _SELECT + "TABLE(CUMULATE($S, INTERVAL '1' HOUR, INTERVAL '1' DAY)) $G"),
    ("window-arguments", _SELECT + "TABLE(SESSION($S)) $G"),
    ("window-offset", _SELECT + "TABLE(TUMBLE($T, INTERVAL '5' MINUTES, INTERVAL '1' MINUTE)) $G"),
    (
        "descriptor",
        _SELECT + "TABLE(TUMBLE(TABLE telemetry, DESCRIPTOR(received_at), INTERVAL '5' MINUTES)) $G",
    ),
    ("interval", _SELECT + "TABLE(TUMBLE($T, INTERVAL '2' MONTH)) $G"),
    ("interval", _SELECT + "TABLE(TUMBLE($T, INTERVAL '5 MIN' MINUTE)) $G"),
    ("size", _SELECT + "TABLE(TUMBLE($T, INTERVAL '0' MINUTES)) $G"),
    ("size", _SELECT + "TABLE(SESSION($S, INTERVAL '0.0001' SECOND)) $G"),
    ("multiple", _SELECT + "TABLE(HOP($T, INTERVAL '2' MINUTES, INTERVAL '5' MINUTES)) $G"),
    ("multiple", _SELECT + "TABLE(CUMULATE($T, INTERVAL '1' SECOND, INTERVAL '1' DAY)) $G"),
    ("session-partition", _SELECT + "TABLE(SESSION($T, INTERVAL '5' MINUTES)) $G"),
    (
        "session-partition",
        _SELECT + "TABLE(SESSION($S, INTERVAL '5' MINUTES)) GROUP BY window_start, window_end",
    ),
    ("calendar-unit", _SELECT + "TABLE(TUMBLE($T, INTERVAL '2' DAYS, 'Europe/Paris')) $G"),
    ("calendar-zone", _SELECT + "TABLE(TUMBLE($T, INTERVAL '1' MONTH)) $G"),
    ("zone", _SELECT + "TABLE(TUMBLE($T, INTERVAL '1' DAY, 'Europe/Pariss')) $G"),
    ("table", _SELECT + "TABLE(TUMBLE(TABLE telemetri, DESCRIPTOR(ts), INTERVAL '5' MINUTES)) $G"),
    ("no-time", _SELECT + "TABLE(TUMBLE(TABLE places, DESCRIPTOR(ts), INTERVAL '5' MINUTES)) $G"),
    ("column", "SELECT AVG(temprature) AS a FROM $W $G"),
    ("column", _SELECT + "$W GROUP BY room, window_start, window_end"),
    ("qualified", "SELECT telemetry.device, COUNT(*) AS n FROM $W $G"),
    ("qualified", "SELECT telemetry.device, COUNT(*) AS n FROM $W AS t $G"),
    ("star", "SELECT * FROM $W $G"),
    ("not-grouped", "SELECT site, COUNT(*) AS n FROM $W $G"),
    ("not-grouped", "SELECT temperature - AVG(temperature) AS off FROM $W $G"),
    ("aggregate", "SELECT ARRAY_AGG(temperature) AS all_of_them FROM $W $G"),
    ("aggregate-argument", "SELECT COUNT(DISTINCT site, device) AS n FROM $W $G"),
    ("aggregate-argument", "SELECT PERCENTILE(temperature, 95) AS p FROM $W $G"),
    ("aggregate-nested", "SELECT MAX(AVG(temperature)) AS a FROM $W $G"),
    ("aggregate-type", "SELECT AVG(device) AS a FROM $W $G"),
    ("aggregate-type", "SELECT MAX(door) AS a FROM $W $G"),
    ("aggregate-distinct", "SELECT SUM(DISTINCT rssi) AS s FROM $W $G"),
    ("aggregate-modifier", "SELECT COUNT(*) OVER (ORDER BY ts) AS n FROM $W $G"),
    ("aggregate-modifier", "SELECT LAST_VALUE(rssi) IGNORE NULLS AS r FROM $W $G"),
    ("no-aggregate", "SELECT device FROM $W $G"),
    ("alias-missing", "SELECT AVG(temperature) FROM $W $G"),
    ("alias-missing", "SELECT MAX(rssi) - MIN(rssi) FROM $W $G"),
    ("alias", "SELECT COUNT(*) AS N FROM $W $G"),
    ("alias-reserved", "SELECT COUNT(*) AS ts FROM $W $G"),
    ("alias-twice", "SELECT AVG(rssi) AS a, SUM(rssi) AS a FROM $W $G"),
    ("alias-twice", "SELECT COUNT(*) AS device FROM $W $G"),
    ("no-group", _SELECT + "$W"),
    ("group-window", _SELECT + "$W GROUP BY device, window_end"),
    ("group-expression", _SELECT + "$W GROUP BY UPPER(device), window_start, window_end"),
    ("group-expression", _SELECT + "$W GROUP BY ROLLUP (device), window_start, window_end"),
    ("group-type", _SELECT + "$W GROUP BY temperature, window_start, window_end"),
    ("group-twice", _SELECT + "$W GROUP BY device, device, window_start, window_end"),
    ("match-table", "SELECT * FROM (SELECT device FROM telemetry) MATCH_RECOGNIZE ($M PATTERN (A B) $B)"),
    ("match-select", "SELECT device FROM telemetry MATCH_RECOGNIZE ($M PATTERN (A B) $B) GROUP BY device"),
    ("match-item", "SELECT UPPER(device) AS name FROM telemetry MATCH_RECOGNIZE ($M PATTERN (A B) $B)"),
    (
        "match-partition",
        "SELECT * FROM telemetry MATCH_RECOGNIZE (PARTITION BY UPPER(site) ORDER BY ts PATTERN (A B) $B)",
    ),
    ("match-order", "SELECT * FROM telemetry MATCH_RECOGNIZE (PARTITION BY device PATTERN (A B) $B)"),
    ("match-order", "SELECT * FROM telemetry MATCH_RECOGNIZE (ORDER BY received_at PATTERN (A B) $B)"),
    ("match-rows", "SELECT * FROM telemetry MATCH_RECOGNIZE ($M ALL ROWS PER MATCH PATTERN (A B) $B)"),
    (
        "match-after",
        "SELECT * FROM telemetry MATCH_RECOGNIZE ($M AFTER MATCH SKIP TO LAST B PATTERN (A B) $B)",
    ),
    ("match-pattern", "SELECT * FROM telemetry MATCH_RECOGNIZE ($M PATTERN (A | B) $B)"),
    ("match-quantifier", "SELECT * FROM telemetry MATCH_RECOGNIZE ($M PATTERN (A+ B) $B)"),
    ("match-quantifier", "SELECT * FROM telemetry MATCH_RECOGNIZE ($M PATTERN (A X{0,3} B) $B)"),
    ("match-twice", "SELECT * FROM telemetry MATCH_RECOGNIZE ($M PATTERN (A B A) $B)"),
    ("match-ends", "SELECT * FROM telemetry MATCH_RECOGNIZE ($M PATTERN (A B X*?) $B)"),
    ("match-length", "SELECT * FROM telemetry MATCH_RECOGNIZE ($M PATTERN (A B C D E) $B)"),
    ("match-within", "SELECT * FROM telemetry MATCH_RECOGNIZE ($M PATTERN (A B) DEFINE A AS A.door)"),
    (
        "match-variable",
        "SELECT * FROM telemetry MATCH_RECOGNIZE ($M PATTERN (A B) $B, C AS C.door)",
    ),
    (
        "match-reference",
        "SELECT * FROM telemetry MATCH_RECOGNIZE ($M PATTERN (A B C) $B, C AS C.rssi > B.rssi)",
    ),
    (
        "match-unqualified",
        "SELECT * FROM telemetry MATCH_RECOGNIZE (ORDER BY ts MEASURES rssi AS r PATTERN (A B) $B)",
    ),
    (
        "match-function",
        "SELECT * FROM telemetry MATCH_RECOGNIZE (ORDER BY ts MEASURES AVG(A.rssi) AS r PATTERN (A B) $B)",
    ),
    (
        "match-function",
        "SELECT * FROM telemetry MATCH_RECOGNIZE ($M PATTERN (A B C) $B, C AS C.rssi > PREV(C.rssi))",
    ),
    ("syntax", "SELECT device FRM telemetry"),
    ("syntax", _SELECT + "$W $G; SELECT 2"),
    ("syntax", "SELECT 'open"),
    ("syntax", _SELECT + "TABLE(TUMBLE($T, INTERVAL 5 MINUTES)) $G"),
    ("expression", _SELECT + "$W WHERE temprature > 5 $G"),
    ("expression", _SELECT + "$W WHERE temperature > 'hot' $G"),
    ("expression", "SELECT SQRT(device) AS root, COUNT(*) AS n FROM $W $G"),
    ("expression", "SELECT SOUNDEX(device) AS sound, COUNT(*) AS n FROM $W $G"),
    ("expression", "SELECT CAST(MAX(temperature) AS STRING) AS t FROM $W $G"),
    ("expression", _SELECT + "$W $G HAVING COUNT(*)"),
)


def expand(example: str) -> str:
    """The example's text with the page's abbreviations written out."""
    for short, long in SHORT.items():
        example = example.replace(short, long)
    return example


def tables() -> dict[str, str]:
    """The tables of docs/sql.md by the name of their mark, as Markdown."""
    features = [(feature, _code(example), portable) for feature, example, portable in FEATURES]
    forms = [(form, _code(example), portable) for form, example, portable in _FORMS]
    forms += [
        (f"`{function.form}`", _code(_example(function.form)), function.portable)
        for function in functions.FUNCTIONS.values()
    ]
    refused = [(code, _code(example), refusal(example)) for code, example in REFUSED]
    return {
        "features": _markdown(("Feature", "Example", "Portable"), features),
        "expressions": _markdown(("Expression", "Example", "Portable"), forms),
        "refusals": _markdown(("Code", "Example", "Message"), refused),
    }


def refusal(example: str) -> str:
    """What follows `query <name>, line L, column C: ` when the example is planned; empty where it is accepted."""
    try:
        plan(expand(example), "q", TABLES)
    except SqlError as error:
        return str(error).partition(": ")[2]
    return ""


def renew(page: str) -> str:
    """The page with its tables renewed."""
    for name, table in tables().items():
        old = re.compile(rf"(<!-- {name} -->\n)(\|.*\n)*")
        page = old.sub(lambda found, table=table: f"{found[1]}{table}\n", page)  # type: ignore[misc]
    return page


def _example(form: str) -> str:
    """The form over columns of the stream: `ROUND(x, 2)` as `ROUND(temperature, 2)`."""
    text = re.sub(r"\b[xyst]\b(?!')", lambda found: _ARGUMENTS[found[0]], form)
    return text.replace(", ...", "")


def _markdown(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    """Upright strokes would end the cell."""
    return text.replace("|", "\\|")


def _code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renew(path.read_text(encoding="utf-8")), encoding="utf-8")

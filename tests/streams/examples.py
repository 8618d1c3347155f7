"""The stream that the examples of docs/sql.md read, their abbreviations, and the texts that are refused."""

from __future__ import annotations

from headwater.records import Column, ColumnType, Schema

_T = ColumnType
TELEMETRY = Schema(
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
NO_TIME = Schema(17, 17, "places", (Column("site", _T.STRING), Column("rooms", _T.BIGINT)), "site")
TABLES = {"telemetry": TELEMETRY, "places": NO_TIME}

WINDOW = "TABLE(TUMBLE(TABLE telemetry, DESCRIPTOR(ts), INTERVAL '5' MINUTES))"
ARGUMENTS = "TABLE telemetry, DESCRIPTOR(ts)"
GROUP = "GROUP BY device, window_start, window_end"


def expand(example: str) -> str:
    """The example's text with `$W`, `$G` and `$T` written out."""
    return example.replace("$W", WINDOW).replace("$G", GROUP).replace("$T", ARGUMENTS)


#: (code of the refusal, text); the messages stand in docs/sql.md.
REFUSED = [
    ("not-select", "INSERT INTO t VALUES (1)"),
    ("not-select", "SELECT 1 UNION SELECT 2"),
    ("with", "WITH t AS (SELECT 1) SELECT n FROM t"),
    ("distinct", "SELECT DISTINCT device, COUNT(*) AS n FROM $W $G"),
    ("order", "SELECT COUNT(*) AS n FROM $W $G ORDER BY n"),
    ("order", "SELECT COUNT(*) AS n FROM $W $G LIMIT 10"),
    ("having", "SELECT COUNT(*) AS n FROM $W $G HAVING COUNT(*) > 1"),
    ("join", "SELECT COUNT(*) AS n FROM $W AS t JOIN places AS p ON p.site = t.site $G"),
    ("join", "SELECT COUNT(*) AS n FROM $W, places $G"),
    ("clause", "SELECT COUNT(*) AS n FROM $W TABLESAMPLE (5 PERCENT) $G"),
    ("clause", "SELECT COUNT(*) AS n INTO t FROM $W $G"),
    ("subquery", "SELECT COUNT(*) AS n FROM (SELECT device FROM telemetry) $G"),
    ("no-from", "SELECT COUNT(*) AS n"),
    ("no-window", "SELECT device, COUNT(*) AS n FROM telemetry GROUP BY device"),
    (
        "no-window",
        "SELECT COUNT(*) AS n FROM TUMBLE($T, INTERVAL '5' MINUTES) $G",
    ),
    (
        "window-kind",
        "SELECT COUNT(*) AS n FROM TABLE(HOP($T, INTERVAL '1' MINUTE, INTERVAL '5' MINUTES)) $G",
    ),
    (
        "window-kind",
        "SELECT COUNT(*) AS n FROM TABLE(CUMULATE($T, INTERVAL '1' MINUTE, INTERVAL '5' MINUTES)) $G",
    ),
    (
        "window-kind",
        "SELECT COUNT(*) AS n FROM TABLE(SESSION(TABLE places PARTITION BY site, DESCRIPTOR(ts), INTERVAL '1' DAY)) $G",
    ),
    ("window-arguments", "SELECT COUNT(*) AS n FROM TABLE(TUMBLE(telemetry, ts, INTERVAL '5' MINUTES)) $G"),
    (
        "window-offset",
        "SELECT COUNT(*) AS n FROM TABLE(TUMBLE($T, INTERVAL '5' MINUTES, INTERVAL '1' MINUTE)) $G",
    ),
    (
        "descriptor",
        "SELECT COUNT(*) AS n FROM TABLE(TUMBLE(TABLE telemetry, DESCRIPTOR(received_at), INTERVAL '5' MINUTES)) $G",
    ),
    (
        "interval",
        "SELECT COUNT(*) AS n FROM TABLE(TUMBLE($T, INTERVAL '1' MONTH)) $G",
    ),
    (
        "interval",
        "SELECT COUNT(*) AS n FROM TABLE(TUMBLE($T, INTERVAL '5 MIN' MINUTE)) $G",
    ),
    (
        "size",
        "SELECT COUNT(*) AS n FROM TABLE(TUMBLE($T, INTERVAL '0' MINUTES)) $G",
    ),
    (
        "size",
        "SELECT COUNT(*) AS n FROM TABLE(TUMBLE($T, INTERVAL '0.0001' SECOND)) $G",
    ),
    (
        "table",
        "SELECT COUNT(*) AS n FROM TABLE(TUMBLE(TABLE telemetri, DESCRIPTOR(ts), INTERVAL '5' MINUTES)) $G",
    ),
    (
        "no-time",
        "SELECT COUNT(*) AS n FROM TABLE(TUMBLE(TABLE places, DESCRIPTOR(ts), INTERVAL '5' MINUTES)) $G",
    ),
    ("column", "SELECT AVG(temprature) AS a FROM $W $G"),
    ("column", "SELECT COUNT(*) AS n FROM $W GROUP BY room, window_start, window_end"),
    ("qualified", "SELECT telemetry.device, COUNT(*) AS n FROM $W $G"),
    ("qualified", "SELECT telemetry.device, COUNT(*) AS n FROM $W AS t $G"),
    ("star", "SELECT * FROM $W $G"),
    ("not-grouped", "SELECT site, COUNT(*) AS n FROM $W $G"),
    ("expression", "SELECT UPPER(device) AS d, COUNT(*) AS n FROM $W $G"),
    ("expression", "SELECT AVG(temperature) * 2 AS a FROM $W $G"),
    ("aggregate", "SELECT STDDEV(temperature) AS s FROM $W $G"),
    ("aggregate-argument", "SELECT AVG(temperature + 1) AS a FROM $W $G"),
    ("aggregate-argument", "SELECT COUNT(1) AS n FROM $W $G"),
    ("aggregate-type", "SELECT AVG(device) AS a FROM $W $G"),
    ("aggregate-type", "SELECT MAX(door) AS a FROM $W $G"),
    ("aggregate-distinct", "SELECT COUNT(DISTINCT site) AS n FROM $W $G"),
    ("aggregate-modifier", "SELECT COUNT(*) FILTER (WHERE door) AS n FROM $W $G"),
    ("aggregate-modifier", "SELECT COUNT(*) OVER (ORDER BY ts) AS n FROM $W $G"),
    ("no-aggregate", "SELECT device FROM $W $G"),
    ("alias-missing", "SELECT AVG(temperature) FROM $W $G"),
    ("alias", "SELECT COUNT(*) AS N FROM $W $G"),
    ("alias-reserved", "SELECT COUNT(*) AS ts FROM $W $G"),
    ("alias-twice", "SELECT AVG(rssi) AS a, SUM(rssi) AS a FROM $W $G"),
    ("alias-twice", "SELECT COUNT(*) AS device FROM $W $G"),
    ("no-group", "SELECT COUNT(*) AS n FROM $W"),
    ("group-window", "SELECT COUNT(*) AS n FROM $W GROUP BY device, window_end"),
    ("group-expression", "SELECT COUNT(*) AS n FROM $W GROUP BY UPPER(device), window_start, window_end"),
    ("group-expression", "SELECT COUNT(*) AS n FROM $W GROUP BY ROLLUP (device), window_start, window_end"),
    ("group-type", "SELECT COUNT(*) AS n FROM $W GROUP BY temperature, window_start, window_end"),
    ("group-twice", "SELECT COUNT(*) AS n FROM $W GROUP BY device, device, window_start, window_end"),
    ("syntax", "SELECT device FRM telemetry"),
    ("syntax", "SELECT COUNT(*) AS n FROM $W $G; SELECT 2"),
    ("syntax", "SELECT 'open"),
    ("syntax", "SELECT a FROM telemetry MATCH_RECOGNIZE (PATTERN (a b))"),
    (
        "syntax",
        "SELECT COUNT(*) AS n FROM TABLE(TUMBLE($T, INTERVAL 5 MINUTES)) $G",
    ),
    ("condition", "SELECT COUNT(*) AS n FROM $W WHERE temprature > 5 $G"),
    ("condition", "SELECT COUNT(*) AS n FROM $W WHERE temperature > 'hot' $G"),
]

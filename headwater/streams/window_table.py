"""The window table of FROM: `TABLE(HOP(TABLE t, DESCRIPTOR(ts), INTERVAL ..., INTERVAL ...))` to a stream and a shape.

source: Apache Flink documentation, "Windowing table-valued functions" (names and order of arguments)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sqlglot import exp

from headwater.records import ColumnType, Schema
from headwater.streams import dialect
from headwater.streams.refusals import EXAMPLES, nearest, refuse, text
from headwater.streams.shapes import MAX_LENGTH_US, MAX_PANES, Shape, Unit

#: Arguments of each function in Flink's order; OFFSET may follow where there are fixed panes.
_ARGUMENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "TUMBLE": ("DATA", "TIMECOL", "SIZE"),
    "HOP": ("DATA", "TIMECOL", "SLIDE", "SIZE"),
    "CUMULATE": ("DATA", "TIMECOL", "STEP", "SIZE"),
    "SESSION": ("DATA", "TIMECOL", "GAP"),
}
_TAKES: Final[Mapping[str, str]] = {
    "TUMBLE": "TABLE, DESCRIPTOR and a size",
    "HOP": "TABLE, DESCRIPTOR, a slide and a size",
    "CUMULATE": "TABLE, DESCRIPTOR, a step and a size",
    "SESSION": "TABLE with PARTITION BY, DESCRIPTOR and a gap",
}
_FROM_PARTS: Final = {"sample": "TABLESAMPLE", "pivots": "PIVOT", "version": "FOR SYSTEM_TIME"}


@dataclass(frozen=True, slots=True)
class WindowTable:
    """What FROM says. partition: columns of PARTITION BY, of a session; node: for messages about them."""

    source: Schema
    shape: Shape
    alias: str | None
    partition: list[exp.Column]
    node: exp.Expr


def window_table(select: exp.Select, tables: Mapping[str, Schema]) -> WindowTable:
    """The window table that a query reads.

    raises: SqlError
    """
    any_table = next(iter(tables), "telemetry")
    clause = select.args.get("from_")
    table = clause.this if clause is not None else None
    if table is None:
        raise refuse("no-from", select, table=any_table)
    if isinstance(table, exp.Subquery):
        raise refuse("subquery", table)
    if table.args.get("joins"):
        raise refuse("join", table.args["joins"][0])
    beside = [name for name, value in table.args.items() if value and name not in ("this", "alias")]
    if not isinstance(table, exp.Table) or beside or table.alias_column_names:
        found = beside[0] if beside else "column names" if isinstance(table, exp.Table) else table.key
        raise refuse("clause", table, found=_FROM_PARTS.get(found, found.upper()) + " in FROM")
    window = table.this
    if isinstance(window, exp.Anonymous) and window.name.upper() == "TABLE" and len(window.expressions) == 1:
        window = window.expressions[0]
        if isinstance(window, dialect.WindowFunction):
            return _window(window, table.alias or None, tables)
    inner = table.find(dialect.TableArgument)
    name = inner.this.name if inner else table.name or any_table
    raise refuse("no-window", table, found=text(table), table=name)


def _window(window: dialect.WindowFunction, alias: str | None, tables: Mapping[str, Schema]) -> WindowTable:
    kind = window.this
    arguments = _by_name(window)
    data, descriptor = arguments.get("DATA"), arguments.get("TIMECOL")
    zone = arguments.pop("TIME_ZONE", None) if kind == "TUMBLE" else None
    if "OFFSET" in arguments and isinstance(arguments["OFFSET"], dialect.DayTimeInterval):
        raise refuse("window-offset", arguments["OFFSET"])
    lengths = [arguments.get(name) for name in _ARGUMENTS[kind][2:]]
    if (
        set(arguments) != set(_ARGUMENTS[kind])
        or not isinstance(data, dialect.TableArgument)
        or (data.args.get("partition") and kind != "SESSION")
        or not isinstance(descriptor, dialect.Descriptor)
        or not all(isinstance(length, dialect.DayTimeInterval) for length in lengths)
        or not (zone is None or (isinstance(zone, exp.Literal) and zone.is_string))
    ):
        name = data.this.name if isinstance(data, dialect.TableArgument) else "telemetry"
        key = tables[name].key if name in tables else None
        example = EXAMPLES[kind].format(table=name, key=key or "device")
        raise refuse("window-arguments", window, kind=kind, takes=_TAKES[kind], example=example)
    source = _source(data, descriptor, tables)
    intervals = [length for length in lengths if isinstance(length, dialect.DayTimeInterval)]
    shape = _calendar(intervals[0], zone) if zone is not None else _shape(kind, intervals, source)
    partition = data.args.get("partition") or []
    if len(partition) == 1 and isinstance(partition[0], exp.Tuple | exp.Paren):
        partition = partition[0].expressions or [partition[0].this]
    return WindowTable(source, shape, alias, partition, data)


def _source(
    data: dialect.TableArgument, descriptor: dialect.Descriptor, tables: Mapping[str, Schema]
) -> Schema:
    name = data.this.name
    if name not in tables:
        raise refuse("table", data.this, found=name, nearest=nearest(name, tables))
    ts = tables[name].column("ts")
    if ts is None or ts.type is not ColumnType.TIMESTAMP:
        raise refuse("no-time", data.this, found=name)
    columns = [column.name for column in descriptor.expressions]
    if columns != ["ts"]:
        raise refuse("descriptor", descriptor, found=", ".join(columns), table=name)
    return tables[name]


def _shape(kind: str, intervals: list[dialect.DayTimeInterval], source: Schema) -> Shape:
    what = {"SESSION": "a gap"}.get(kind, "a window")
    size_us = _length_us(intervals[-1], what, source)
    if kind == "TUMBLE":
        return Shape.tumble(size_us)
    if kind == "SESSION":
        return Shape("session", size_us, size_us)
    what = "slide" if kind == "HOP" else "step"
    pane_us = _length_us(intervals[0], f"a {what}", source)
    if size_us % pane_us or size_us // pane_us > MAX_PANES:
        found, size = dialect.shown(intervals[0]), dialect.shown(intervals[1])
        raise refuse("multiple", intervals[0], what=what, found=found, size=size)
    return Shape("hop" if kind == "HOP" else "cumulate", size_us, pane_us)


def _length_us(interval: dialect.DayTimeInterval, what: str, source: Schema) -> int:
    found = dialect.interval_us(interval)
    if found is None:
        code = "calendar-zone" if _unit(interval) is not None else "interval"
        raise refuse(code, interval, found=dialect.shown(interval), table=source.name)
    if found % 1000 or not 1000 <= found <= MAX_LENGTH_US:
        raise refuse("size", interval, what=what, found=dialect.shown(interval))
    return found


def _calendar(interval: dialect.DayTimeInterval, zone: exp.Literal) -> Shape:
    unit = _unit(interval)
    if unit is None:
        raise refuse("calendar-unit", interval, found=dialect.shown(interval))
    try:
        ZoneInfo(zone.this)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a folder of the database
        raise refuse("zone", zone, found=zone.this) from None
    return Shape("calendar", unit=unit, zone=zone.this)


def _unit(interval: dialect.DayTimeInterval) -> Unit | None:
    """The calendar unit of which the interval is one."""
    unit = interval.args["first"].lower().removesuffix("s")
    single = interval.args["this"].strip() == "1" and not interval.args.get("last")
    return next((one for one in get_args(Unit) if single and one == unit), None)


def _by_name(window: dialect.WindowFunction) -> dict[str, exp.Expr]:
    """Arguments by their Flink names; unnamed ones take the names in order, and a text is a time zone."""
    order = _ARGUMENTS[window.this]
    arguments: dict[str, exp.Expr] = {}
    for at, node in enumerate(window.expressions):
        if isinstance(node, dialect.NamedArgument):
            arguments[node.this] = node.expression
        elif at < len(order):
            arguments[order[at]] = node
        else:
            last = "TIME_ZONE" if isinstance(node, exp.Literal) and node.is_string else "OFFSET"
            arguments[last if at == len(order) else f"argument {at + 1}"] = node
    return arguments

"""A checked query: what it reads, how it groups, what it computes, what its rows look like. Made by `sql.plan`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from headwater.expressions import Condition, Expression
from headwater.records import Column, ColumnType, Schema
from headwater.streams.shapes import Shape

if TYPE_CHECKING:
    from headwater.streams.patterns import Pattern

#: Columns of the window itself. `window_time` is the window's last millisecond, as in Flink.
WINDOW_COLUMNS: Final = ("window_start", "window_end", "window_time")
#: Event time of a result row, and how often its window was amended. Every result has them.
RESULT_COLUMNS: Final = ("ts", "revision")
#: Names no result column may have: those of every result, and what stores add to a table.
RESERVED: Final = (*RESULT_COLUMNS, "received_at", "hour", "_key", "_partition", "_offset")
#: Types of columns to group or partition by.
GROUP_TYPES: Final = (ColumnType.STRING, ColumnType.BIGINT, ColumnType.BOOLEAN, ColumnType.TIMESTAMP)


@dataclass(frozen=True, slots=True)
class Group:
    """A group column: its name in the source and in the result."""

    column: str
    alias: str
    type: ColumnType


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One aggregate.

    function:  of the kernel, such as count_star, avg, stddev_samp, count_distinct, percentile
    column:    name of its input: a column of the source, or the text of an expression; None for count_star
    alias:     its column in the result; of one that only expressions use a name no column can have
    type:      of the result. As in Flink, AVG and SUM of a bigint are bigint (AVG truncates towards zero)
    parameter: of percentile: the share in millionths
    """

    function: str
    column: str | None
    alias: str
    type: ColumnType
    parameter: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked query.

    computed: inputs of aggregates that are no plain column: text -> expression over the source
    shown:    columns computed from groups, window and aggregates: result column -> expression
    having:   condition over the same; rows for which it is not true are left out
    columns:  of the result, in order: those of SELECT, then group columns and window bounds it leaves out (they name
              the row), then `ts` (last millisecond of the window) and `revision`
    windows:  result column -> window_start | window_end | window_time
    key:      result column whose hash partitions the result: the group column that is the source's key, else the
              first string group column, else None

    pattern:  of MATCH_RECOGNIZE: a result row is a match, its `ts` that of the last row. Then `groups` are the columns
              of PARTITION BY, `having` is WHERE over what the match gives, under `column_of("", name)`, and there is
              none of the rest

    Expressions over a result name groups by their source column, window columns by theirs, aggregates by their alias.
    """

    name: str
    sql: str
    source: str
    shape: Shape
    groups: tuple[Group, ...]
    aggregates: tuple[Aggregate, ...]
    where: Condition | None
    where_sql: str | None
    windows: Mapping[str, str]
    columns: tuple[Column, ...]
    key: str | None
    computed: Mapping[str, Expression] = field(default_factory=dict)
    shown: Mapping[str, Expression] = field(default_factory=dict)
    having: Condition | None = None
    pattern: Pattern | None = None

    @property
    def latest_by(self) -> tuple[str, ...]:
        """Result columns that name a window of a key: `latest_by` of its table; a match has no revisions."""
        if self.pattern is not None:
            return ()
        bounds = [name for name, what in self.windows.items() if what != "window_time"]
        return (*(group.alias for group in self.groups), *bounds)

    @property
    def final(self) -> str | None:
        """Why late rows cannot amend a result, None where they can: a result that is gone could not be taken back."""
        if self.pattern is not None:
            return "a late row would change which rows match, and matches that are out"
        if self.shape.kind == "session":
            return "a late row would change the bounds of a SESSION window, which name its row"
        return None if self.having is None else "a late row could make HAVING untrue for a row that is out"

    @property
    def unsteady(self) -> str | None:
        """Why a window cannot show results before it closes, None where it can: a row that is out is only replaced."""
        if self.pattern is not None:
            return "a match has no result before it is complete"
        if self.shape.kind == "session":
            return "a SESSION window's bounds, which name its row, change until it closes"
        return None if self.having is None else "HAVING could become untrue for a row that is out"

    def signature(self, source: Schema) -> str:
        """Names the meaning of the engine's state: equal signatures can go on from each other's checkpoint."""
        types = {column.name: column.type.value for column in source.columns}
        meaning: dict[str, Any] = {
            "source": [source.stream, source.key],
            **self.shape.meaning,
            "groups": [[group.column, group.alias, group.type.value] for group in self.groups],
            "aggregates": [
                [
                    a.function,
                    a.column,
                    a.alias,
                    types.get(a.column or ""),
                    *([a.parameter] if a.parameter else []),
                ]
                for a in self.aggregates
            ],
            "where": self.where_sql,
            "columns": [[column.name, column.type.value] for column in self.columns],
        }
        # Only where there are any, so that the state of queries from before them goes on.
        if self.shown:
            meaning["shown"] = {alias: expression.sql for alias, expression in self.shown.items()}
        if self.having is not None:
            meaning["having"] = self.having.sql
        if self.pattern is not None:
            meaning["pattern"] = self.pattern.meaning
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:16]


def result_key(source: Schema, groups: tuple[Group, ...]) -> str | None:
    """The result column whose hash partitions the result."""
    for group in groups:
        if group.column == source.key:
            return group.alias
    return next((group.alias for group in groups if group.type is ColumnType.STRING), None)

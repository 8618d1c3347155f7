"""What every stream engine gives: the golden cases, and a public data set against pandas.

An engine is a function from (case, rows in commits) to result rows; each new kind adds one here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from headwater.declarations import parse_duration_us
from headwater.records import Column, ColumnType, Schema
from headwater.streams.sql import Plan, plan
from tests.streams import oracle
from tests.streams.harness import Harness, Late, windowing

GOLDEN = Path(__file__).parents[1] / "golden" / "streams"
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Case:
    """A golden case, read."""

    name: str
    portable: bool
    lateness_us: int
    late: Late
    early_us: int | None
    source: Schema
    sql: str
    rows: list[dict[str, Any]]
    expect: list[dict[str, Any]]

    @property
    def plan(self) -> Plan:
        return plan(self.sql, "q", {self.source.name: self.source})


def read(path: Path) -> Case:
    text = tomllib.loads(path.read_text(encoding="utf-8"))
    columns = tuple(Column(name, ColumnType(type_)) for name, type_ in text["columns"].items())
    source = Schema(16, 16, "readings", columns, text["key"])
    found = plan(text["sql"], "q", {source.name: source})
    lateness_us = parse_duration_us(text["lateness"])
    early_us = parse_duration_us(text["early"]) if "early" in text else None
    assert isinstance(lateness_us, int)
    assert early_us is None or isinstance(early_us, int)
    return Case(
        path.stem,
        text["portable"],
        lateness_us,
        text["late"],
        early_us,
        source,
        text["sql"],
        _table(text["input"], {column.name: column.type for column in columns}),
        _table(text["expect"], {column.name: column.type for column in found.columns}),
    )


def _table(text: str, types: Mapping[str, ColumnType]) -> list[dict[str, Any]]:
    head, *lines = text.strip().splitlines()
    names = [name.strip() for name in head.split("|")]
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [{name: _value(cell, types[name]) for name, cell in zip(names, row, strict=True)} for row in rows]


def _value(cell: str, type_: ColumnType) -> Any:
    if cell == "NULL":
        return None
    if cell.startswith("~"):
        return oracle.Near(float(cell[1:]), abs(float(cell[1:])) * 0.0101)
    if type_ is ColumnType.TIMESTAMP:
        since = datetime.fromisoformat(cell) - datetime.fromisoformat("1970-01-01T00:00:00Z")
        return since.days * 86_400_000_000 + since.seconds * 1_000_000 + since.microseconds
    if type_ is ColumnType.BOOLEAN:
        return {"true": True, "false": False}[cell]
    return {ColumnType.DOUBLE: float, ColumnType.BIGINT: int}.get(type_, str)(cell)


def embedded(directory: Path, case: Case, commits: Sequence[Rows]) -> list[dict[str, Any]]:
    """Latest result rows of the embedded engine, of a case with early results all, with a restart after each commit."""
    harness = Harness(directory, case.source, partitions=1)
    try:
        terms = (case.lateness_us, case.late, case.early_us)
        found = harness.add("q", case.sql, *terms)
        for rows in commits:
            harness.append("readings", rows)
            harness.settle()
            harness.restart()
            harness.add("q", case.sql, *terms)
        if found.pattern is not None or case.early_us is not None:  # a match has no revisions
            return harness.rows("q")
        latest: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row in harness.rows("q"):
            latest[tuple(row[name] for name in found.latest_by)] = row
        return list(latest.values())
    finally:
        harness.close()


Engine = Callable[[Path, Case, Sequence[Rows]], list[dict[str, Any]]]
ENGINES: dict[str, Engine] = {"embedded": embedded}
CASES = {path.stem: read(path) for path in sorted(GOLDEN.glob("*.toml"))}


def _same(found: Any, expected: Any) -> bool:
    """A value of an engine or of the reference, which knows the middle of an estimate, is the golden one."""
    return oracle.same(found.value if isinstance(found, oracle.Near) else found, expected)


def same_rows(found: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]) -> bool:
    """The expected columns of both are equal as sets of rows, doubles within the oracle's tolerance."""
    left = list(found)
    for row in expected:
        match = next((r for r in left if all(_same(r[k], v) for k, v in row.items())), None)
        if match is None:
            return False
        left.remove(match)
    return not left


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cut", ["one commit", "a commit a row"])
def test_golden(tmp_path: Path, engine: str, name: str, cut: str) -> None:
    case = CASES[name]
    commits = [case.rows] if cut == "one commit" else [[row] for row in case.rows]
    found = ENGINES[engine](tmp_path, case, commits)
    assert same_rows(found, case.expect), found


#: Cases with conditions and expressions, which the reference does not compute. tests/streams/test_matches.py compares
#: patterns with a reference of their own.
EXPRESSIONS = {
    name
    for name, case in CASES.items()
    if case.plan.pattern or case.plan.where or case.plan.having or case.plan.shown or case.plan.computed
}


@pytest.mark.parametrize("name", sorted(CASES.keys() - EXPRESSIONS))
def test_the_reference_gives_the_golden_results(name: str) -> None:
    case = CASES[name]
    found = case.plan
    empty = dict.fromkeys(column.name for column in case.source.columns)
    expected = oracle.run(
        [(0, at, empty | row) for at, row in enumerate(case.rows)],
        [],
        1,
        [group.column for group in found.groups],
        [(a.function, a.column, a.parameter) for a in found.aggregates],
        windowing(found),
        case.lateness_us,
        12 if case.late == "amend" and found.final is None else 0,
        early_us=case.early_us,
    )
    wanted = case.expect
    rows = []
    results = [(key, values, {}) for key, values in expected.windows.items()]
    if case.early_us is not None:
        # It knows the end of each window alone, and what came before the end.
        results = [(key, values, {"revision": 0}) for key, values, _ in results]
        results += [(key, values, {"revision": revision}) for key, revision, values in expected.early]
        ends = {tuple(row[name] for name in found.latest_by): row for row in wanted if row["revision"] >= 0}
        wanted = [row for row in wanted if row["revision"] < 0]
        wanted += [row | {"revision": 0} for row in ends.values()]
    for key, values, revision in results:
        start, end = key[-2:] if found.shape.kind != "tumble" else (key[-1], key[-1] + found.shape.size_us)
        bounds = {"window_start": start, "window_end": end, "window_time": end - 1000}
        row = {alias: bounds[what] for alias, what in found.windows.items()}
        row |= {group.alias: value for group, value in zip(found.groups, key, strict=False)}
        row |= {aggregate.alias: value for aggregate, value in zip(found.aggregates, values, strict=True)}
        rows.append(row | revision)
    assert same_rows(rows, wanted), rows


def test_the_set_covers_portable_and_other_cases() -> None:
    assert len(CASES) >= 10
    assert {case.portable for case in CASES.values()} == {True, False}
    assert all(case.late == "drop" for case in CASES.values() if case.portable)

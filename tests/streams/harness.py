"""A real log, a real engine and a clock that only the test moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from headwater.config import EngineSettings, LogSettings
from headwater.log.embedded import EmbeddedLog
from headwater.records import OWN_SCHEMAS, STEPS, Schema
from headwater.streams.embedded import EmbeddedEngine
from headwater.streams.sql import Plan, plan
from headwater.streams.steps import Step, steps_of
from tests.streams import oracle

Late = Literal["amend", "drop"]


def windowing(found: Plan) -> oracle.Windowing:
    """The plan's windows as the oracle has them."""
    shape = found.shape
    return oracle.Windowing(shape.kind, shape.size_us, shape.pane_us, shape.unit, shape.zone)


class Inline(Executor):
    """Does a task at once, so that a test that ends the engine at some line ends what it writes, too."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Harness:
    """Streams of `schemas` in a log in `directory`; `clock` stands at `now_us`."""

    def __init__(
        self, directory: Path, *schemas: Schema, partitions: int = 4, settings: EngineSettings | None = None
    ) -> None:
        self.directory = directory
        self.now_us = 1_700_000_000_000_000
        self.settings = settings or EngineSettings()
        self.schemas = {schema.name: schema for schema in schemas}
        self.results: dict[str, Schema] = {}
        self.log = EmbeddedLog(
            directory / "log",
            LogSettings(partitions=partitions, segment_bytes=1 << 20, commit_interval_ms=0),
            [*OWN_SCHEMAS, *schemas],
        )
        self.engine = self.restart()

    def restart(self) -> EmbeddedEngine:
        """A new engine on the same directory; whatever the old one had in memory is gone. Queries are to be added."""
        self.engine = EmbeddedEngine(self.log, self.directory, self.settings, lambda: self.now_us, Inline())
        return self.engine

    def add(
        self, name: str, sql: str, lateness_us: int = 0, late: Late = "amend", early_us: int | None = None
    ) -> Plan:
        """Plans a query and adds it to the engine."""
        found = plan(sql, name, self.schemas | self.results)
        result = self.results.get(name)
        if result is None or result.columns != found.columns:
            number = 100 + len(self.results)
            result = Schema(number, number, name, found.columns, found.key)
            self.log.register(result)
            self.results[name] = result
        source = (self.schemas | self.results)[found.source]
        self.engine.add(found, source, result, lateness_us, late, early_us)
        return found

    def append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows by column name in one commit; missing columns are NULL, `ts` is microseconds."""
        schema = self.schemas[name]
        columns = [
            pa.array([row.get(field.name) for row in rows], pa.int64()).cast(field.type)
            if pa.types.is_timestamp(field.type)
            else pa.array([row.get(field.name) for row in rows], field.type)
            for field in schema.arrow
        ]
        self.log.append([(schema, pa.record_batch(columns, schema=schema.arrow))])

    def settle(self, idle: bool = False) -> None:
        """Steps until nothing is left to do, amendments written; with `idle`, until silent partitions are marked."""
        self.now_us += 1_000_000
        while self.engine.step():
            pass
        if idle:
            self.now_us += self.settings.idle_timeout
            while self.engine.step():
                pass

    def rows(self, name: str) -> list[dict[str, Any]]:
        """All rows of a stream in log order; timestamps as microseconds."""
        schema = (self.schemas | self.results)[name]
        reader = self.log.reader(schema.stream, ())
        found = []
        while (batch := reader.read(10_000)) is not None:
            columns = {
                field.name: (
                    column.cast(pa.int64()) if pa.types.is_timestamp(field.type) else column
                ).to_pylist()
                for field, column in zip(batch.schema, batch.columns, strict=True)
            }
            found += [
                dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
            ]
        return found

    def latest(self, found: Plan) -> dict[tuple[Any, ...], list[Any]]:
        """Aggregates of the highest revision by group values and window start; checks that none is lost or doubled.
        Windows that are not closed are not in it."""
        revisions: dict[tuple[Any, ...], list[int]] = {}
        latest: dict[tuple[Any, ...], list[Any]] = {}
        for row in self.rows(found.name):
            key = self._key(found, row)
            assert row["ts"] == row["window_end"] - 1000
            if row["revision"] < 0:
                assert key not in revisions, f"{key}: an early result after the final one"
                continue
            revisions.setdefault(key, []).append(row["revision"])
            if row["revision"] == max(revisions[key]):
                latest[key] = [row[aggregate.alias] for aggregate in found.aggregates]
        for key, numbers in revisions.items():
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), (
                f"{key}: revisions {numbers}"
            )
        return latest

    def early(self, found: Plan) -> list[tuple[Any, ...]]:
        """Results of windows before they closed: name of the window, revision, aggregates; in log order."""
        return [
            (self._key(found, row), row["revision"], [row[each.alias] for each in found.aggregates])
            for row in self.rows(found.name)
            if row["revision"] < 0
        ]

    @staticmethod
    def _key(found: Plan, row: Mapping[str, Any]) -> tuple[Any, ...]:
        bounds = (row["window_start"], row["window_end"])
        return (*(row[group.alias] for group in found.groups), *windowing(found).name(bounds))

    def steps(self, query: str) -> list[Step]:
        """Recorded steps of a query."""
        reader = self.log.reader(STEPS, ())
        steps: list[Step] = []
        while (batch := reader.read(10_000)) is not None:
            steps += steps_of(batch, query)
        return steps

    def check(
        self,
        found: Plan,
        lateness_us: int = 0,
        late: Late = "amend",
        where: Callable[[Mapping[str, Any]], bool] | None = None,
        early_us: int | None = None,
    ) -> oracle.Expected:
        """The result stream holds what the oracle expects of the log's rows and the recorded idle marks."""
        steps = self.steps(found.name)
        assert [step.number for step in steps] == list(range(1, len(steps) + 1))
        assert sum(step.rows for step in steps) == len(self.rows(found.name))
        expected = oracle.run(
            [(row["_partition"], row["_offset"], row) for row in self.rows(found.source)],
            [(step.to, step.idle) for step in steps],
            len(self.log.end(STEPS)),
            [group.column for group in found.groups],
            [(a.function, a.column, a.parameter) for a in found.aggregates],
            windowing(found),
            lateness_us,
            self.settings.amend_windows if late == "amend" and found.final is None else 0,
            where,
            early_us,
        )
        results = self.latest(found)
        assert results.keys() == expected.windows.keys()
        for key, values in expected.windows.items():
            for one, other in zip(results[key], values, strict=True):
                assert oracle.same(one, other), f"{key}: {results[key]} is not {values}"
        early = sorted(self.early(found), key=repr)
        wanted = sorted(expected.early, key=repr)
        assert [one[:2] for one in early] == [one[:2] for one in wanted]
        for one, other in zip(early, wanted, strict=True):
            assert all(map(oracle.same, one[2], other[2])), f"{one} is not {other}"
        metrics = self.engine.metrics()[found.name]
        assert metrics["early"] == len(early)
        assert (metrics["dropped"], metrics["late"]) == (expected.dropped, expected.late)
        assert metrics["watermark_us"] == expected.watermark, f"{metrics} is not {expected}"
        assert metrics["windows_closed"] == len(results)
        return expected

    def close(self) -> None:
        self.log.close()

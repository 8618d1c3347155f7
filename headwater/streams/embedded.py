"""The embedded engine: continuous queries as vectorised steps over the log, in this process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from headwater.config import EngineSettings
from headwater.errors import HeadwaterError
from headwater.log.embedded import EmbeddedLog
from headwater.records import Schema
from headwater.streams.base import QueryMetrics
from headwater.streams.checkpoint import previous
from headwater.streams.plan import Plan
from headwater.streams.query import Query, Task


class EmbeddedEngine:
    """`streams.base.Engine` with its state in `directory`/engine.

    clock:    microseconds UTC; decides when a partition is idle and when a checkpoint is due
    executor: writes checkpoints while the queries go on; None: a thread of the engine's own
    """

    def __init__(
        self,
        log: EmbeddedLog,
        directory: Path,
        settings: EngineSettings,
        clock: Callable[[], int],
        executor: Executor | None = None,
    ) -> None:
        self._log = log
        self._directory = directory / "engine"
        self._settings = settings
        self._clock = clock
        self._executor = executor or ThreadPoolExecutor(1, "checkpoints")
        self._queries: dict[str, Query] = {}

    def add(
        self,
        plan: Plan,
        source: Schema,
        result: Schema,
        lateness_us: int,
        late: Literal["amend", "drop"],
        early_us: int | None = None,
    ) -> None:
        task = Task(plan, source, result, lateness_us, late, early_us)
        path = self._directory / f"{plan.name}.checkpoint"
        query = Query(self._log, task, self._settings, path, self._clock, self._executor)
        # Another dictionary each time: others look at it meanwhile.
        self._queries = {**self._queries, plan.name: query}

    def remove(self, name: str) -> None:
        query = self._queries.get(name)
        if query is not None:
            self._queries = {each: other for each, other in self._queries.items() if each != name}
            try:
                query.checkpoint()
            finally:
                query.release()

    def forget(self, name: str) -> None:
        path = self._directory / f"{name}.checkpoint"
        for each in (path, previous(path)):
            each.unlink(missing_ok=True)

    def step(self) -> bool:
        """One step of every query. One that fails does not keep the others from theirs."""
        busy = False
        failure: HeadwaterError | None = None
        for query in self._queries.values():
            try:
                busy = query.step() or busy
                busy = query.save() or busy
            except HeadwaterError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return busy

    def checkpoint(self) -> None:
        for query in self._queries.values():
            query.checkpoint()

    def metrics(self) -> dict[str, QueryMetrics]:
        return {name: query.metrics() for name, query in self._queries.items()}

    def close(self) -> None:
        self.checkpoint()
        self._queries = {}
        self._executor.shutdown()

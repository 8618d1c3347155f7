"""One running query: rows of the log through its windows, results back to the log, every step recorded.

Exactly once: result rows and the record of the step that made them are one commit. What was read since the last record
left nothing behind but memory. A restart loads the checkpoint, replays the recorded steps without writing (recovery.py)
and goes on.

A step: rows, and the windows that they close, in slices over several steps where there are many; when nothing is left
to read, idle marks; then new revisions of amended windows.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import structlog

from headwater.config import EngineSettings
from headwater.errors import DataDirectoryError, LogError, LogFullError, QueryLimitError, TooLargeError
from headwater.log.embedded import EmbeddedLog, EmbeddedReader
from headwater.records import STEPS, STEPS_SCHEMA, Offsets, Schema
from headwater.streams import recovery
from headwater.streams.base import QueryMetrics
from headwater.streams.batches import Rows, results
from headwater.streams.checkpoint import Header, Writer
from headwater.streams.plan import Plan
from headwater.streams.steps import Step
from headwater.streams.windows import Terms, Windows

_log = structlog.get_logger(__name__)

#: Most rows read by one step, and most result rows written by one: a step stays short whatever the number of keys.
READ_ROWS: Final = 100_000
SLICE_ROWS: Final = 100_000
#: Least time between two writings of amended windows, so that a burst of late rows is one revision.
AMEND_INTERVAL_US: Final = 200_000


@dataclass(frozen=True, slots=True)
class Task:
    """What to run: the plan over `source` into `result`."""

    plan: Plan
    source: Schema
    result: Schema
    lateness_us: int
    late: Literal["amend", "drop"]
    early_us: int | None = None

    def terms(self, settings: EngineSettings) -> Terms:
        """What its windows go by."""
        amends = self.late == "amend" and self.plan.final is None
        return Terms(self.lateness_us, settings.amend_windows if amends else 0, self.early_us)


class Query:
    """A running query. path: of its checkpoint; clock: microseconds UTC; executor: writes checkpoints.

    raises: DataDirectoryError when its stored state cannot be read
    """

    _windows: Windows
    _reader: EmbeddedReader
    #: Rows read and not taken yet.
    _rows: Rows | None
    #: Number and end of the last recorded step, and how often the query's text changed.
    _number: int
    _recorded: list[int]
    _generation: int
    #: Clock when a partition last had something to read, and when amended windows and checkpoint were last written.
    _seen_us: npt.NDArray[np.int64]
    _amended_us: int
    _checkpointed_us: int
    _checkpointed: tuple[list[int], int]
    #: Offsets of source and steps that the newest checkpoint needs.
    _needed: tuple[Offsets, Offsets]
    _writer: Writer
    #: A checkpoint on its way to the disk, and what it needs.
    _writing: tuple[Future[int], tuple[Offsets, Offsets]] | None
    #: A step whose append was refused: nothing else happens before it is written.
    _unwritten: tuple[Step, pa.RecordBatch | None] | None
    #: Something failed half way: memory is not trusted any more, the next step begins with a recovery.
    _doubtful: bool

    def __init__(
        self,
        log: EmbeddedLog,
        task: Task,
        settings: EngineSettings,
        path: Path,
        clock: Callable[[], int],
        executor: Executor,
    ) -> None:
        self._log = log
        self._task = task
        self._settings = settings
        self._path = path
        self._clock = clock
        self._signature = task.plan.signature(task.source)
        self._name = task.plan.name
        self._number = 0
        self._executor = executor
        self._writing = None
        #: Fewer where a step of SLICE_ROWS does not fit into a segment of the log.
        self._slice_rows = SLICE_ROWS
        #: Of the newest checkpoint: bytes, how long the query stood still for it, and how long it took in all.
        self._checkpoint_bytes = self._pause_us = self._written_us = 0
        self._recover()

    def step(self) -> bool:
        """Reads at most READ_ROWS, writes at most SLICE_ROWS; says whether it did something.

        raises: LogFullError (the step is kept and written by a later call), LogError, QueryLimitError, TooLargeError
            (a single row does not fit into the log)
        """
        if self._doubtful:
            self._recover()
        try:
            if self._unwritten is not None:
                self._write(*self._unwritten)
                return True
            self._adopt_settings()
            return self._advance()
        except LogFullError:
            raise  # nothing was stored: the same step is written again
        except TooLargeError:
            # Nothing was stored, but the windows are closed: they are taken from the log again, in smaller steps.
            self._doubtful = True
            rows = self._unwritten[0].rows if self._unwritten is not None else 0
            if rows <= 1:
                raise
            self._slice_rows = rows // 2
            _log.info("query writes smaller steps", query=self._name, rows=self._slice_rows)
            return True
        except Exception:
            # Also an append may have failed after the disk had taken it: only the log can tell.
            self._doubtful = True
            raise

    def save(self) -> bool:
        """Takes note of a checkpoint that has been written, begins one that is due; says whether it did something.

        raises: DataDirectoryError when the disk refuses: the next one is tried when it is due
        """
        written = self._settle(wait=False)
        due = self._clock() - self._checkpointed_us >= self._settings.checkpoint_interval
        news = self._checkpointed != (self._windows.offsets, self._number)
        return (due and news and self._writing is None and self._begin_checkpoint()) or written

    def checkpoint(self) -> bool:
        """Makes the state durable, unless the query is in the middle of closing windows; says whether it did.

        raises: DataDirectoryError when the disk refuses
        """
        self._settle(wait=True)
        return self._begin_checkpoint() and self._settle(wait=True)

    def metrics(self) -> QueryMetrics:
        """Counters and position."""
        counters = self._windows.counters
        return QueryMetrics(
            rows=counters["rows"],
            filtered=counters["filtered"],
            late=counters["late"],
            dropped=counters["dropped"],
            amendments_skipped=counters["amendments_skipped"],
            windows=counters["windows_closed"] + counters["amendments"] + counters["early"],
            windows_closed=counters["windows_closed"],
            amendments=counters["amendments"],
            early=counters["early"],
            watermark_us=self._windows.position()[1],
            lag_rows=sum(self._log.end(self._task.source.stream)) - sum(self._windows.offsets),
            steps=self._number,
            state_bytes=self._windows.state_bytes(),
            checkpoint_bytes=self._checkpoint_bytes,
            checkpoint_us=self._written_us,
            checkpoint_pause_us=self._pause_us,
        )

    @property
    def _between_steps(self) -> bool:
        """Whether the state is one that a replay comes by: nothing is half done."""
        halfway = self._windows.closing or self._rows is not None or self._unwritten is not None
        return not (halfway or self._doubtful)

    def _begin_checkpoint(self) -> bool:
        """Takes the state as it is and hands it to the writer; the query can go on at once."""
        if not self._between_steps:
            return False
        windows = self._windows
        began_us = self._clock()
        highest, watermark = windows.position()
        steps_at = self._log.end(STEPS)
        header = Header(
            query=self._name,
            signature=self._signature,
            generation=self._generation,
            step=self._number,
            steps_at=list(steps_at),
            stream=self._task.source.stream,
            offsets=list(windows.offsets),
            highest=highest,
            idle=windows.marks.idle.tolist(),
            watermark=watermark,
            amended=windows.amended,
            floor_us=windows.floor_us,
            lateness_us=windows.terms.lateness_us,
            held_windows=windows.terms.held_windows,
            counters=dict(windows.counters),
            early_us=windows.terms.early_us,
        )
        whole = self._writer.next_is_whole
        writing = self._writer.write(header, *windows.freeze(whole), whole)
        self._writing = (writing, (tuple(windows.offsets), steps_at))
        self._checkpointed_us = self._clock()
        self._pause_us = self._checkpointed_us - began_us
        writing.add_done_callback(lambda _: self._note_written(began_us))
        self._checkpointed = (list(windows.offsets), self._number)
        return True

    def release(self) -> None:
        """The log needs to keep nothing for it."""
        for stream in (self._task.source.stream, STEPS):
            self._log.release(f"engine/{self._name}", stream)

    def _note_written(self, began_us: int) -> None:
        """Runs where the checkpoint was written."""
        self._written_us = self._clock() - began_us

    def _settle(self, wait: bool) -> bool:
        """Takes note of a checkpoint that has been written; says whether there was one."""
        if self._writing is None or not (wait or self._writing[0].done()):
            return False
        (writing, needed), self._writing = self._writing, None
        try:
            self._checkpoint_bytes = writing.result()
        except DataDirectoryError:
            self._checkpointed = ([], 0)
            raise
        # Should the new one turn out damaged, the one before it counts: hold what that one needs.
        self._hold(self._needed)
        self._needed = needed
        return True

    def _advance(self) -> bool:
        now, windows = self._clock(), self._windows
        written: list[pa.RecordBatch] = []
        if self._rows is None and not windows.closing:
            batch = self._reader.read(READ_ROWS)
            if batch is not None:
                self._rows = windows.prepare(batch)
                self._seen_us[np.flatnonzero(np.bincount(self._rows.partition))] = now
        busy = self._rows is not None or windows.closing
        left, marked = self._slice_rows, False
        try:
            left = self._run(left, written)
        except QueryLimitError:
            # Silent partitions keep the windows open: they are waited for only while there is room.
            if not written:
                marked = self._mark_idle(now, 0)
                if not marked:
                    raise
        if self._rows is None and not windows.closing:
            marked = self._mark_idle(now, self._settings.idle_timeout)
        if windows.amended and not windows.closing and now - self._amended_us >= AMEND_INTERVAL_US:
            windows.closing = True
        if windows.closing:
            windows.close(left, written)
        if written and not windows.closing:
            self._amended_us = now
        if written or marked:
            self._record(now, written)
        return busy or marked or bool(written)

    def _run(self, budget: int, written: list[pa.RecordBatch]) -> int:
        """Takes rows and closes windows until there are none or `budget` result rows are out; returns what is left."""
        while True:
            if self._windows.closing:
                budget -= self._windows.close(budget, written)
                if self._windows.closing:
                    return 0
            if self._rows is None:
                return budget
            self._windows.take(self._rows)
            if self._rows.start == len(self._rows):
                self._rows = None

    def _mark_idle(self, now: int, timeout_us: int) -> bool:
        """Marks partitions that had nothing to read for so long; says whether there are new ones."""
        marks = self._windows.marks
        if marks.idle.all():
            return False
        unread = np.asarray(self._log.end(self._task.source.stream)) > np.asarray(self._windows.offsets)
        self._seen_us[unread] = now
        silent = ~marks.idle & ~unread & (now - self._seen_us >= timeout_us)
        if not silent.any():
            return False
        self._windows.set_idle((marks.idle | silent).tolist())
        return True

    def _record(self, now: int, written: list[pa.RecordBatch]) -> None:
        windows = self._windows
        highest, watermark = windows.position()
        step = Step(
            query=self._name,
            number=self._number + 1,
            signature=self._signature,
            generation=self._generation,
            start=self._recorded,
            to=list(windows.offsets),
            highest=highest,
            idle=windows.marks.idle.tolist(),
            tick_us=now,
            watermark=watermark,
            rows=sum(closed.num_rows for closed in written),
            closing=windows.closing,
        )
        rows = None
        if written:
            closed = pa.concat_batches(written)
            interner = windows.intake.interner
            rows = results(self._task.plan, closed, self._log.native.keys, interner, self._generation)
        self._unwritten = (step, rows)
        self._write(step, rows)

    def _write(self, step: Step, rows: pa.RecordBatch | None) -> None:
        """One commit: the record and its rows."""
        parts = [(STEPS_SCHEMA, step.batch())]
        if rows is not None and rows.num_rows:
            parts.append((self._task.result, rows))
        self._log.append(parts)
        self._unwritten = None
        self._number, self._recorded = step.number, step.to

    def _adopt_settings(self) -> None:
        """Changed settings of windows count from a checkpoint on, so that a replay knows where."""
        terms = self._task.terms(self._settings)
        # In the middle of closing windows: once they are out.
        if self._windows.terms != terms and self._between_steps:
            self._windows.terms = terms
            self.checkpoint()

    def _recover(self) -> None:
        """Takes over stored state, or begins: the memory of before is gone."""
        with suppress(DataDirectoryError):
            self._settle(wait=True)
        self._writer = Writer(self._path, self._executor)
        found = recovery.recover(self._log, self._task, self._settings, self._path)
        if found.number < self._number:
            # With log.durability = "async" an append returns before its rows can be read.
            raise LogError(
                f"query {self._name}: step {self._number} is written but not readable yet; try again"
            )
        now = self._clock()
        self._windows = found.windows
        self._number = found.number
        self._generation = found.generation
        self._recorded = list(found.windows.offsets)
        self._rows = None
        self._unwritten = None
        self._doubtful = False
        self._seen_us = np.full(len(self._recorded), now, dtype=np.int64)
        self._amended_us = self._checkpointed_us = now
        self._checkpointed = ([], 0)
        self._needed = found.needed
        self._reader = self._log.reader(
            self._task.source.stream, tuple(self._recorded), found.windows.intake.columns
        )
        self._hold(self._needed)
        if found.new:
            self.checkpoint()

    def _hold(self, at: tuple[Offsets, Offsets]) -> None:
        """Keeps in the log what a replay from there needs."""
        self._log.hold(f"engine/{self._name}", self._task.source.stream, at[0])
        self._log.hold(f"engine/{self._name}", STEPS, at[1])

"""From checkpoint and recorded steps to the state a query had: nothing is written, every step is compared.

Three ways to begin: a new query with the oldest row of the log; a known one where it stood; one whose text changed, or
whose rows are gone, anew under the next generation: where it stood, or at the end of another source.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import structlog

from headwater.config import EngineSettings
from headwater.errors import DataDirectoryError
from headwater.log.embedded import EmbeddedLog, EmbeddedReader
from headwater.records import STEPS, Offsets
from headwater.streams.checkpoint import Header, Stored, previous, read_checkpoint
from headwater.streams.steps import Step, steps_of
from headwater.streams.windows import ALL, Terms, Windows

if TYPE_CHECKING:
    from headwater.streams.query import Task

_READ_ROWS = 100_000

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Recovered:
    """State to go on from.

    number, generation: of the last step; needed: offsets of source and steps that the checkpoint on disk needs
    new: there is no checkpoint of this state yet
    """

    windows: Windows
    number: int
    generation: int
    needed: tuple[Offsets, Offsets]
    new: bool


def recover(log: EmbeddedLog, task: Task, settings: EngineSettings, path: Path) -> Recovered:
    """The state of a query as its checkpoint at `path` and the log tell it.

    raises: DataDirectoryError when they contradict each other or cannot be read; LogCorruptError
    """
    found = read_checkpoint(path)
    header = None if found is None else found.header
    steps = _steps_after(log, task.plan.name, header)
    if found is None and not steps:
        return _begin(log, task, settings, log.start(task.source.stream), 0, 0, None)
    reason = _misfit(log, task, header, steps)
    if (
        found is not None
        and found.problem is not None
        and reason is not None
        and reason == _gone(log, header)
    ):
        raise DataDirectoryError(
            f"{found.problem}; the checkpoint before it, of step {found.header.step}, is no use: {reason}. Move "
            f"{path} and {previous(path)} away to start the query anew at the log's end"
        )
    if found is None or reason is not None:
        return _begin_anew(log, task, settings, header, steps, reason)
    return _resume(log, task, settings, path, found, steps)


def _begin(
    log: EmbeddedLog,
    task: Task,
    settings: EngineSettings,
    offsets: Offsets,
    number: int,
    generation: int,
    floor_us: int | None,
) -> Recovered:
    windows = Windows(task.plan, task.source, settings, offsets, task.terms(settings), floor_us)
    return Recovered(windows, number, generation, (offsets, log.end(STEPS)), True)


def _begin_anew(
    log: EmbeddedLog,
    task: Task,
    settings: EngineSettings,
    header: Header | None,
    steps: list[Step],
    reason: str | None,
) -> Recovered:
    """A new generation from where the old one stood; rows of windows that it closed are left out."""
    last = steps[-1] if steps else header
    assert last is not None
    number = max(step.number for step in steps) if steps else header.step if header else 0
    same = header is None or header.stream == task.source.stream
    floor_us = last.watermark if same else None
    start, end = log.start(task.source.stream), log.end(task.source.stream)
    stood = end if header is None or not same else last.to if isinstance(last, Step) else header.offsets
    offsets = tuple(min(max(at, low), high) for at, low, high in zip(stood, start, end, strict=True))
    _log.warning(
        "query changed: it begins anew where it stood, and open windows of its old state are not finished",
        query=task.plan.name,
        reason=reason or "its checkpoint is gone",
        generation=last.generation + 1,
        offsets=list(offsets),
    )
    return _begin(log, task, settings, offsets, number, last.generation + 1, floor_us)


def _resume(
    log: EmbeddedLog,
    task: Task,
    settings: EngineSettings,
    path: Path,
    found: Stored,
    steps: list[Step],
) -> Recovered:
    header = found.header
    try:
        windows = Windows(
            task.plan,
            task.source,
            settings,
            header.offsets,
            Terms(header.lateness_us, header.held_windows, header.early_us),
            header.floor_us,
            found.states(),
        )
    except (ValueError, OSError) as error:
        raise DataDirectoryError(
            f"reading checkpoint {path}: {error}. Start the version of Headwater that wrote it, or move it and "
            f"{previous(path)} away to start the query anew at the log's end"
        ) from error
    windows.restore(header.highest, header.idle, header.watermark, header.amended)
    windows.counters |= header.counters
    if steps:
        reader = log.reader(task.source.stream, tuple(header.offsets), windows.intake.columns)
        _replay(windows, reader, steps, path)
        _log.info("query replayed", query=task.plan.name, steps=len(steps), rows=windows.counters["rows"])
    number = steps[-1].number if steps else header.step
    return Recovered(
        windows, number, header.generation, (tuple(header.offsets), tuple(header.steps_at)), False
    )


def _misfit(log: EmbeddedLog, task: Task, header: Header | None, steps: list[Step]) -> str | None:
    """Why stored state cannot go on; None where it can."""
    if header is None:
        return None
    if header.signature != task.plan.signature(task.source):
        return "its SQL changed"
    if any(step.generation != header.generation for step in steps):
        return "its SQL changed after the newest checkpoint that is valid"
    return _gone(log, header)


def _gone(log: EmbeddedLog, header: Header | None) -> str | None:
    """Which rows that a replay from there needs the log has no longer; None where it has all."""
    if header is None:
        return None
    for stream, offsets in ((header.stream, header.offsets), (STEPS, header.steps_at)):
        if any(first > wanted for first, wanted in zip(log.start(stream), offsets, strict=False)):
            return f"rows of stream {stream} that it had not read are gone from the log"
    return None


def _steps_after(log: EmbeddedLog, query: str, header: Header | None) -> list[Step]:
    """Recorded steps that the checkpoint does not contain, oldest first."""
    kept = log.start(STEPS)
    at = kept if header is None else tuple(map(max, kept, header.steps_at))
    after = 0 if header is None else header.step
    reader = log.reader(STEPS, at)
    steps: list[Step] = []
    while (batch := reader.read(_READ_ROWS)) is not None:
        steps += [step for step in steps_of(batch, query) if step.number > after]
    return steps


def _replay(windows: Windows, reader: EmbeddedReader, steps: list[Step], path: Path) -> None:
    """Does recorded steps again. In each, windows closed before its end were written whole; only the last may go on."""
    waiting: pa.RecordBatch | None = None
    for step in steps:
        left = step.rows
        while windows.offsets != step.to:
            batch = waiting if waiting is not None else reader.read(_READ_ROWS)
            own, waiting = _split(batch, step.to)
            if own is None:
                raise _diverged(path, step, "ends at", step.to, windows.offsets)
            rows = windows.prepare(own)
            while rows.start < len(rows):
                # Sessions leave in one order wherever they are asked for; only so many were, and only at the end.
                if windows.closing and not windows.sessions:
                    left -= windows.close(ALL)
                windows.take(rows)
        if windows.marks.idle.tolist() != step.idle:
            if windows.closing and not windows.sessions:
                left -= windows.close(ALL)
            windows.set_idle(step.idle)
        if windows.closing or left:
            windows.closing = True
            left -= windows.close(left if step.closing else ALL)
        windows.closing = step.closing
        if left:
            raise _diverged(path, step, "wrote rows", step.rows, step.rows - left)
        if windows.position() != (step.highest, step.watermark):
            raise _diverged(path, step, "stood at", (step.highest, step.watermark), windows.position())


def _split(
    batch: pa.RecordBatch | None, to: list[int]
) -> tuple[pa.RecordBatch | None, pa.RecordBatch | None]:
    """Rows of the batch below these offsets, and the rest."""
    if batch is None:
        return None, None
    partition = batch.column("_partition").to_numpy()
    inside = batch.column("_offset").to_numpy() < np.asarray(to, dtype=np.uint64)[partition]
    count = batch.num_rows if inside.all() else int(inside.argmin())
    own = batch.slice(0, count) if count else None
    return own, batch.slice(count) if count < batch.num_rows else None


def _diverged(path: Path, step: Step, what: str, recorded: object, found: object) -> DataDirectoryError:
    return DataDirectoryError(
        f"replaying step {step.number} of query {step.query}: it {what} {recorded}, the replay gives {found}; "
        f"the log, or the checkpoint {path}, is not the one that wrote it"
    )

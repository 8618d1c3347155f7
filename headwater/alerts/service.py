"""The alarm service: reads streams behind its own offsets and judges every alarm once per row.

One reader per stream serves all its alarms. What a batch changes (transitions, open instances, alarms, notifications)
is committed in one transaction with the offsets; batches that change nothing move the committed offsets at most once
a second, because judging their rows again after a crash changes nothing again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import pyarrow as pa
import sqlalchemy as sa
import structlog

from headwater.alerts import history
from headwater.alerts.conditions import Alarm, compile_alarm
from headwater.alerts.history import Position, alarms
from headwater.alerts.machine import State
from headwater.alerts.tracker import Judgement, Tracker
from headwater.database import OFFSETS, Database, load_offsets, save_offsets
from headwater.declarations import AlarmSettings
from headwater.errors import LogError
from headwater.expressions import Frame
from headwater.log.base import Log, Reader
from headwater.records import READER_COLUMNS, Offsets, Schema

__all__ = ["AlarmService", "alarms"]

#: Reader under which a stream's common offsets are committed; an alarm's own start is under `alarms/<name>`.
READER: Final = "alarms"

#: Rows judged before other streams have their turn.
BATCH_ROWS: Final = 65_536

_COMMIT_INTERVAL_US: Final = 1_000_000
_PURGE_INTERVAL_US: Final = 3_600_000_000

_logger = structlog.get_logger(__name__)


class AlarmService:
    """All alarms of the configuration; driven by one thread that calls `step`.

    schemas: by name of stream or query
    clock:   microseconds UTC
    raises:  ConfigError for an alarm that cannot be compiled, LogError

    At start an alarm that was not configured before begins at the log's end, and that place is committed. One
    whose condition, `for` or severity changed keeps its instances: they are judged by the new definition from the
    next row on. Instances of an alarm that was removed, or whose key columns changed, stay visible as they are; an
    alarm that comes back later finds its instances again, and begins at the log's end.
    """

    def __init__(
        self,
        log: Log,
        database: Database,
        alarms: Mapping[str, AlarmSettings],
        schemas: Mapping[str, Schema],
        clock: Callable[[], int],
    ) -> None:
        compiled = [compile_alarm(name, settings, schemas) for name, settings in alarms.items()]
        self._database = database
        self._clock = clock
        self._purged_us = 0
        by_stream: dict[int, list[Alarm]] = {}
        for alarm in compiled:
            by_stream.setdefault(alarm.schema.stream, []).append(alarm)
        with database.begin() as connection:
            _forget_others(connection, compiled)
            self._streams = [
                _StreamAlarms(log, database, connection, watching, clock) for watching in by_stream.values()
            ]

    @staticmethod
    def check(alarms: Mapping[str, AlarmSettings], schemas: Mapping[str, Schema]) -> None:
        """Compiles every alarm and forgets it. raises: ConfigError"""
        for name, settings in alarms.items():
            compile_alarm(name, settings, schemas)

    def step(self) -> bool:
        """Judges what is there, at most BATCH_ROWS rows of each stream; True where there was something.

        raises: LogError, and what the database raises. Nothing is half done then: the next step reads the same rows.
        """
        worked = [stream.step() for stream in self._streams]
        now_us = self._clock()
        if now_us - self._purged_us >= _PURGE_INTERVAL_US:
            with self._database.begin() as connection:
                history.purge(connection, now_us - history.HISTORY_US)
            self._purged_us = now_us
        return any(worked)

    def position(self) -> dict[int, Offsets]:
        """By stream: every row below these offsets is judged and what it changed is committed."""
        return {stream.id: stream.position for stream in self._streams}

    def close(self) -> None:
        """Commits the offsets; the service is of no use afterwards."""
        for stream in self._streams:
            stream.commit_position()


class _StreamAlarms:
    """The alarms of one stream."""

    def __init__(
        self,
        log: Log,
        database: Database,
        connection: sa.Connection,
        alarms: Sequence[Alarm],
        clock: Callable[[], int],
    ) -> None:
        self._log = log
        self._database = database
        self._clock = clock
        self._schema = alarms[0].schema
        self.id = self._schema.stream
        end = log.end(self.id)
        starts = [_start(connection, alarm, end) for alarm in alarms]
        self.trackers = [
            Tracker(alarm, history.open_instances(connection, alarm.name), start)
            for alarm, start in zip(alarms, starts, strict=True)
        ]
        committed = load_offsets(connection, READER, self.id) or end
        self.position = self._kept(committed)
        save_offsets(connection, READER, self.id, self.position)
        self._committed = self.position
        self._committed_us = clock()
        log.hold(READER, self.id, self.position)
        wanted = frozenset[str]().union(*(alarm.columns for alarm in alarms))
        self._columns = [column.name for column in self._schema.columns if column.name in wanted]
        self._reader: Reader | None = None

    def step(self) -> bool:
        if self._reader is None:
            self._reader = self._log.reader(self.id, self.position, self._columns)
        reader, self._reader = self._reader, None  # a step that fails begins again from `position`
        batch = reader.read(BATCH_ROWS)
        if batch is not None:
            self._judge(batch, reader.offsets())
        elif self._clock() - self._committed_us >= _COMMIT_INTERVAL_US:
            self.commit_position()
        self._reader = reader
        return batch is not None

    def commit_position(self) -> None:
        """Commits how far reading has come, where that is not committed."""
        if self.position != self._committed:
            with self._database.begin() as connection:
                save_offsets(connection, READER, self.id, self.position)
            self._have_committed()

    def _judge(self, batch: pa.RecordBatch, after: Offsets) -> None:
        frame = Frame(batch)
        judged = [(tracker, tracker.judge(frame)) for tracker in self.trackers]
        changed = any(judgement.transitions for _, judgement in judged)
        due = self._clock() - self._committed_us >= _COMMIT_INTERVAL_US
        if changed:
            readings = self._readings(judged, batch.num_rows)
            now_us = self._clock()
            with self._database.begin() as connection:
                for tracker, judgement in judged:
                    if judgement.transitions:
                        history.save(connection, tracker.alarm, judgement.transitions, readings, now_us)
                save_offsets(connection, READER, self.id, after)
        for tracker, judgement in judged:
            tracker.keep(judgement, after)
        self.position = after
        if changed:
            self._have_committed()
        elif due:
            self.commit_position()

    def _have_committed(self) -> None:
        self._committed = self.position
        self._committed_us = self._clock()
        self._log.hold(READER, self.id, self.position)

    def _readings(
        self, judged: Sequence[tuple[Tracker, Judgement]], rows: int
    ) -> dict[Position, dict[str, Any]]:
        """The whole rows that fire. Only the columns of conditions were read, so these are read once more."""
        wanted = {
            (one.partition, one.offset)
            for _, judgement in judged
            for one in judgement.transitions
            if one.state is State.FIRING
        }
        found: dict[Position, dict[str, Any]] = {}
        again = self._log.reader(self.id, self.position) if wanted else None
        while again is not None and len(found) < len(wanted):
            batch = again.read(rows)
            if batch is None:
                raise LogError(
                    f"reading stream {self._schema.name!r} again: rows {wanted - found.keys()} are gone"
                )
            positions = zip(
                batch.column("_partition").to_pylist(), batch.column("_offset").to_pylist(), strict=True
            )
            at = [row for row, position in enumerate(positions) if position in wanted]
            for reading in batch.take(pa.array(at, pa.int64())).to_pylist():
                found[reading["_partition"], reading["_offset"]] = _for_json(reading)
        return found

    def _kept(self, offsets: Offsets) -> Offsets:
        """The offsets, where the log still holds them."""
        start = self._log.start(self.id)
        kept = tuple(max(offset, first) for offset, first in zip(offsets, start, strict=True))
        if kept != offsets:
            _logger.error(
                "alarms missed rows that the log no longer holds",
                stream=self._schema.name,
                committed=offsets,
                kept=start,
            )
        return kept


def _start(connection: sa.Connection, alarm: Alarm, end: Offsets) -> Offsets:
    """Where the alarm began; a new one begins at the end, committed so that a crash does not move it."""
    start = load_offsets(connection, f"{READER}/{alarm.name}", alarm.schema.stream)
    if not start:
        start = end
        save_offsets(connection, f"{READER}/{alarm.name}", alarm.schema.stream, start)
    return start


def _forget_others(connection: sa.Connection, alarms: Sequence[Alarm]) -> None:
    """Drops the offsets of alarms and streams that are no longer watched: one that comes back is new."""
    kept = {(f"{READER}/{alarm.name}", alarm.schema.stream) for alarm in alarms}
    kept |= {(READER, alarm.schema.stream) for alarm in alarms}
    mine = sa.select(OFFSETS.c.reader, OFFSETS.c.stream).where(
        (OFFSETS.c.reader == READER) | OFFSETS.c.reader.startswith(f"{READER}/", autoescape=True)
    )
    for reader, stream in {(row.reader, row.stream) for row in connection.execute(mine)} - kept:
        connection.execute(sa.delete(OFFSETS).where(OFFSETS.c.reader == reader, OFFSETS.c.stream == stream))


def _for_json(reading: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON has it: times in ISO 8601, without the reader's own columns."""
    return {
        name: value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value
        for name, value in reading.items()
        if name not in READER_COLUMNS
    }

"""The alarm service: reads streams behind its own offsets and judges every alarm once per row.

One reader per stream serves all its alarms. What a batch changes (transitions, alarms, memories, clocks,
notifications) is committed in one transaction with the offsets. Batches that enter no state are committed at most
once a second: judged again from what was committed before, they come to the same.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import orjson
import pyarrow as pa
import sqlalchemy as sa
import structlog

from headwater.alarm_settings import AlarmSettings
from headwater.alerts import history
from headwater.alerts.conditions import Alarm, compile_alarm
from headwater.alerts.ending import resolve_gone
from headwater.alerts.history import Position
from headwater.alerts.listing import alarms
from headwater.alerts.recovery import forget, restored, save
from headwater.alerts.routing import Router
from headwater.alerts.times import iso
from headwater.alerts.tracker import FOREVER, Tracker, Transition
from headwater.database import OFFSETS, Database, load_offsets, save_offsets
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
#: How long clocks may stand still in the database, which bounds the waiting that a restart forgets.
_CLOCK_INTERVAL_US: Final = 5_000_000
#: Rows after which what is remembered of them is committed in any case: bounds what one commit writes.
_COMMIT_ROWS: Final = 1 << 20
_PURGE_INTERVAL_US: Final = 3_600_000_000

_logger = structlog.get_logger(__name__)


class AlarmService:
    """All alarms of the configuration; driven by one thread that calls `step`.

    schemas: by name of stream or query
    clock:   microseconds UTC
    router:  who is told beside the targets that an alarm names
    ended:   instances that no alarm can go on with are resolved, except those of `paused` alarms; else they stay
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
        router: Router = history.NO_ROUTES,
        ended: bool = False,
        paused: Collection[str] = (),
    ) -> None:
        self._log = log
        self._database = database
        self._clock = clock
        self._purged_us = 0
        self._ended = ended
        self._begun = False
        self._alarms: dict[str, tuple[AlarmSettings, Alarm]] = {}
        self._streams: list[_StreamAlarms] = []
        self.change(alarms, schemas, router, paused=paused)

    def change(
        self,
        alarms: Mapping[str, AlarmSettings],
        schemas: Mapping[str, Schema],
        router: Router,
        paused: Collection[str] = (),
    ) -> None:
        """Judges these alarms from now on, between two steps. Streams none of whose alarms change go on as they are.

        raises: as the constructor; then all is as it was
        """
        compiled: dict[str, tuple[AlarmSettings, Alarm]] = {}
        for name, settings in alarms.items():
            known = self._alarms.get(name)
            if known is None or known[0] != settings or known[1].schema.stream != schemas[settings.on].stream:
                known = settings, compile_alarm(name, settings, schemas)
            compiled[name] = known
        by_stream: dict[int, list[Alarm]] = {}
        for _, alarm in compiled.values():
            by_stream.setdefault(alarm.schema.stream, []).append(alarm)
        going_on = [each for each in self._streams if each.watches(by_stream.get(each.id, []))]
        ending = [each for each in self._streams if each not in going_on]
        for stream in ending:
            stream.close()
        fresh = by_stream.keys() - {each.id for each in going_on}
        with self._database.begin() as connection:
            _forget_others(connection, [alarm for _, alarm in compiled.values()])
            if self._ended:
                keys = {name: alarm.key for name, (_, alarm) in compiled.items()}
                changed = {
                    name
                    for name in {*self._alarms, *compiled}
                    if name not in compiled or compiled[name] is not self._alarms.get(name)
                }
                # At the start anything may have been left behind.
                which = changed if self._begun else None
                resolve_gone(connection, keys, paused, self._clock(), router, which)
            begun = [
                _StreamAlarms(self._log, self._database, connection, by_stream[id_], self._clock, router)
                for id_ in by_stream
                if id_ in fresh
            ]
        for stream in going_on:
            stream.router = router
        for stream in ending:
            if stream.id not in by_stream:
                self._log.release(READER, stream.id)
        self._alarms, self._streams, self._begun = compiled, going_on + begun, True

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

    def refused(self) -> dict[str, int]:
        """By alarm: keys, or raises of keys, since the start, that found `max_keys` keys remembered already."""
        return {name: count for stream in self._streams for name, count in stream.refused.items()}

    def close(self) -> None:
        """Commits the offsets; the service is of no use afterwards."""
        for stream in self._streams:
            stream.close()


class _StreamAlarms:
    """The alarms of one stream."""

    def __init__(
        self,
        log: Log,
        database: Database,
        connection: sa.Connection,
        alarms: Sequence[Alarm],
        clock: Callable[[], int],
        router: Router,
    ) -> None:
        self.router = router
        self._log = log
        self._database = database
        self._clock = clock
        self._alarms = alarms
        self._reader: Reader | None = None
        self._whole = True
        self._schema = alarms[0].schema
        self.id = self._schema.stream
        wanted = frozenset[str]().union(*(alarm.columns for alarm in alarms))
        self._columns = [column.name for column in self._schema.columns if column.name in wanted]
        self._load(connection)

    def step(self) -> bool:
        """Judges at most BATCH_ROWS rows, or, where there are none, what time has done.

        After a commit that failed everything is taken from the last one that did not, and its rows are read again.
        """
        if not self._whole:
            with self._database.begin() as connection:
                self._load(connection)
        self._whole = False
        if self._reader is None:
            self._reader = self._log.reader(self.id, self.position, self._columns)
        batch = self._reader.read(BATCH_ROWS)
        if batch is not None:
            self._judge(batch, self._reader.offsets())
            if self._clock() - self._moved_us >= _CLOCK_INTERVAL_US:
                self._tick()
        elif not self._tick() and self._is_due():
            self.commit()
        self._whole = True
        return batch is not None

    def watches(self, alarms: Sequence[Alarm]) -> bool:
        """Whether its alarms are exactly these."""
        return len(alarms) == len(self._alarms) and all(map(operator.is_, alarms, self._alarms))

    def commit(self) -> None:
        """Commits how far reading has come and what is remembered, where that is not committed."""
        if self.position != self._committed:
            self._commit([], self.position)

    def close(self) -> None:
        if self._whole:
            self.commit()

    @property
    def refused(self) -> dict[str, int]:
        """By alarm: see `Tracker.refused`."""
        return {tracker.alarm.name: tracker.refused for tracker in self._trackers}

    def _load(self, connection: sa.Connection) -> None:
        """Everything as it was last committed; new alarms begin at the log's end."""
        end = self._log.end(self.id)
        now_us = self._clock()
        self._trackers = [
            restored(connection, alarm, _start(connection, alarm, end), now_us) for alarm in self._alarms
        ]
        committed = load_offsets(connection, READER, self.id) or end
        self.position = self._kept(committed)
        save_offsets(connection, READER, self.id, self.position)
        self._committed = self.position
        self._committed_us = self._moved_us = now_us
        self._unwritten = 0
        self._log.hold(READER, self.id, self.position)
        self._reader = None
        self._whole = True
        #: What has not fitted into `max_keys` and was said.
        self._said: dict[str, int] = {}

    def _judge(self, batch: pa.RecordBatch, after: Offsets) -> None:
        frame = Frame(batch)
        clocks = [tracker.clock_us for tracker in self._trackers]
        judged = [(tracker, tracker.judge(frame)) for tracker in self._trackers]
        if clocks != [tracker.clock_us for tracker in self._trackers]:
            self._moved_us = self._clock()
        self._unwritten += batch.num_rows
        if any(transitions for _, transitions in judged) or self._is_due():
            self._commit(judged, after, batch.num_rows)
        self.position = after
        self._say_refused()

    def _tick(self) -> bool:
        """Lets clocks go on by the wall clock while no row moves them; True where that changed something."""
        since_us = self._clock() - self._moved_us
        waiting = [one for one in self._trackers if one.clock_us and one.deadline_us < FOREVER]
        due = any(one.deadline_us <= one.clock_us + since_us for one in waiting)
        # From time to time also without effect, so that a restart does not begin the wait anew.
        if not due and not (waiting and since_us >= _CLOCK_INTERVAL_US):
            return False
        # The clocks of all go on together, or the next tick would count the time again.
        timed = [one for one in self._trackers if one.alarm.rules.timed and one.clock_us]
        judged = [(one, one.tick(one.clock_us + since_us)) for one in timed]
        self._moved_us += since_us
        self._commit(judged, self.position)
        return True

    def _is_due(self) -> bool:
        return self._clock() - self._committed_us >= _COMMIT_INTERVAL_US or self._unwritten >= _COMMIT_ROWS

    def _commit(
        self, judged: Sequence[tuple[Tracker, list[Transition]]], after: Offsets, rows: int = 0
    ) -> None:
        readings = self._readings([one for _, found in judged for one in found], rows)
        now_us = self._clock()
        with self._database.begin() as connection:
            for tracker, transitions in judged:
                told = [_with_key(one) for one in transitions]
                history.save(connection, tracker.alarm, told, readings, now_us, self.router)
            for tracker in self._trackers:
                save(connection, tracker, now_us)
            save_offsets(connection, READER, self.id, after)
        for tracker in self._trackers:
            tracker.saved(after)
        self._committed, self._committed_us, self._unwritten = after, now_us, 0
        self._log.hold(READER, self.id, after)

    def _readings(self, transitions: Sequence[Transition], rows: int) -> dict[Position, dict[str, Any]]:
        """The whole rows that fire. Only the columns of conditions were read, so these are read once more."""
        wanted = {(one.partition, one.offset) for one in transitions if one.fresh and one.reading is None}
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

    def _say_refused(self) -> None:
        for tracker in self._trackers:
            name, refused = tracker.alarm.name, tracker.refused
            if refused and name not in self._said:
                self._said[name] = refused
                _logger.error(
                    "an alarm remembers max_keys keys and does not watch further ones",
                    alarm=name,
                    max_keys=tracker.alarm.max_keys,
                )

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
        forget(connection, alarm=alarm.name)
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
    forget(connection, kept={alarm.name for alarm in alarms})


def _with_key(one: Transition) -> Transition:
    """A reading that is no row of the log names the key, and writes its times as the API does."""
    if one.reading is None:
        return one
    times = {name: iso(at_us) for name, at_us in one.reading.items()}
    return replace(one, reading={**orjson.loads(one.key), **times})


def _for_json(reading: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON has it: times in ISO 8601, without the reader's own columns."""
    return {
        name: value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value
        for name, value in reading.items()
        if name not in READER_COLUMNS
    }

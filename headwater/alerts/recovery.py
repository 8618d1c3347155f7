"""What a tracker remembers, in the database: written with each commit, read at the start."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import sqlalchemy as sa

from headwater.alerts import history
from headwater.alerts.conditions import Alarm
from headwater.alerts.machine import delayed
from headwater.alerts.rows import KeyRows
from headwater.alerts.tracker import Tracker
from headwater.database import ALARM_CLOCKS, ALARM_ROWS
from headwater.records import Offsets

#: Records of one alarm before they are written as one.
MAX_RECORDS: Final = 600

#: A standstill that is longer counts as time in which nothing could be seen. Ours; a quick restart is none.
STANDSTILL_US: Final = 10_000_000


def restored(connection: sa.Connection, alarm: Alarm, start: Offsets, now_us: int) -> Tracker:
    """The tracker as it was last committed.

    Time in which no Headwater ran is taken out: every key that was seen then counts as seen so much later, since no
    device could be heard. Otherwise each longer stop would begin with an alarm about every device's silence.

    now_us: wall clock
    raises: DataDirectoryError when a record is damaged
    """
    clock = connection.execute(sa.select(ALARM_CLOCKS).where(ALARM_CLOCKS.c.alarm == alarm.name)).first()
    rows = None
    if alarm.remembers_rows:
        mine = sa.select(ALARM_ROWS.c.record).where(ALARM_ROWS.c.alarm == alarm.name)
        records = connection.scalars(mine.order_by(ALARM_ROWS.c.sequence)).all()
        rows = KeyRows.restored(alarm.name, records)
        if not rows.fits(alarm.key):
            rows = KeyRows()
            connection.execute(sa.delete(ALARM_ROWS).where(ALARM_ROWS.c.alarm == alarm.name))
    memories = history.memories(connection, alarm)
    clock_us = clock.clock_us if clock is not None else 0
    stood_us = now_us - clock.wall_us if clock is not None else 0
    if clock_us and stood_us > STANDSTILL_US:
        clock_us += stood_us
        if rows is not None:
            rows.delay(stood_us)
        later = {key: delayed(memory, stood_us) for key, memory in memories.items()}
        history.save_memories(connection, alarm, {k: m for k, m in later.items() if m != memories[k]})
        memories = later
    tracker = Tracker(alarm, memories, start, clock_us, rows)
    if rows is not None and len(rows):
        _write_whole(connection, alarm.name, rows)
    save_clock(connection, tracker, now_us)
    return tracker


def save(connection: sa.Connection, tracker: Tracker, now_us: int) -> None:
    """Writes what has changed since the last commit."""
    history.save_memories(connection, tracker.alarm, tracker.unsaved())
    save_clock(connection, tracker, now_us)
    record = tracker.rows.record() if tracker.rows is not None else None
    if record is None or tracker.rows is None:
        return
    mine = ALARM_ROWS.c.alarm == tracker.alarm.name
    last = connection.scalar(sa.select(sa.func.max(ALARM_ROWS.c.sequence)).where(mine)) or 0
    if last >= MAX_RECORDS:
        _write_whole(connection, tracker.alarm.name, tracker.rows)
    else:
        row = {"alarm": tracker.alarm.name, "sequence": last + 1, "record": record}
        connection.execute(sa.insert(ALARM_ROWS), [row])


def save_clock(connection: sa.Connection, tracker: Tracker, now_us: int) -> None:
    """Writes the clock of an alarm that time can change."""
    if not tracker.alarm.rules.timed:
        return
    name = tracker.alarm.name
    connection.execute(sa.delete(ALARM_CLOCKS).where(ALARM_CLOCKS.c.alarm == name))
    row = {"alarm": name, "clock_us": tracker.clock_us, "wall_us": now_us}
    connection.execute(sa.insert(ALARM_CLOCKS), [row])


def forget(connection: sa.Connection, alarm: str | None = None, kept: Collection[str] | None = None) -> None:
    """Drops rows and clock of one alarm, or of all but those kept: an alarm that comes back begins anew."""
    for table in (ALARM_ROWS, ALARM_CLOCKS):
        which = table.c.alarm == alarm if kept is None else table.c.alarm.not_in(list(kept))
        connection.execute(sa.delete(table).where(which))


def _write_whole(connection: sa.Connection, alarm: str, rows: KeyRows) -> None:
    connection.execute(sa.delete(ALARM_ROWS).where(ALARM_ROWS.c.alarm == alarm))
    connection.execute(sa.insert(ALARM_ROWS), [{"alarm": alarm, "sequence": 1, "record": rows.whole()}])

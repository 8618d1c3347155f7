"""What one alarm remembers of its keys, and which rows of a batch can change it.

Most rows change nothing: they are told apart by numpy, and the state machine runs only over rows of keys that some row
of the batch moves. A tracker changes as it judges; when what it found cannot be committed, it is made anew from what
was committed before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import and_, or_
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headwater.alerts.conditions import RATE, Alarm
from headwater.alerts.keys import Keys, Rows
from headwater.alerts.machine import (
    NOTHING,
    Entered,
    Mark,
    Memory,
    Phase,
    Row,
    State,
    advance,
    deadline,
    expire,
)
from headwater.alerts.rows import KeyRows, Seen, Values, rates
from headwater.expressions import Frame
from headwater.records import ColumnType, Offsets

#: What a key's rows may do, by number: nothing is remembered; only some rows move it; every row may.
_IDLE, _PENDING, _FIRING, _EVERY = 0, 1, 2, 3

#: Later than any time.
FOREVER: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Transition:
    """One state that an alarm entered.

    key:      JSON object of the key columns, sorted by name
    shown:    what names the alarm: the row that began it
    severity: from now on; None: as it was
    at_us, partition, offset: of the row that caused it, or that had set the timer that did
    fresh:    it fires for the first time
    reading:  what fired it, where that is no row of the log
    """

    key: str
    state: State
    shown: Mark
    at_us: int
    partition: int
    offset: int
    severity: str | None = None
    fresh: bool = False
    reading: Mapping[str, Any] | None = None


class Tracker:
    """The keys of `alarm`.

    memories: what was remembered, by key in JSON
    start:    the alarm sees no rows below these offsets
    clock_us: the alarm's clock, 0 before its first row
    rows:     what is remembered of every key that sends, for an alarm that does
    """

    def __init__(
        self,
        alarm: Alarm,
        memories: Mapping[str, Memory],
        start: Offsets,
        clock_us: int = 0,
        rows: KeyRows | None = None,
    ) -> None:
        self.alarm = alarm
        self.clock_us = clock_us
        self.rows = rows if rows is not None else KeyRows() if alarm.remembers_rows else None
        self.keys = Keys(alarm, self.rows)
        self._memories: dict[int, Memory] = {}
        self._kinds = np.zeros(1024, np.uint8)
        self._touched = np.zeros(1024, np.bool_)
        self._unmet: dict[str, Memory] = {}
        self._deadlines: dict[int, int] = {}
        self._next_us = FOREVER
        self._unsaved: dict[str, Memory | None] = {}
        self._refused = 0
        self._start: npt.NDArray[np.uint64] | None = np.array(start, np.uint64)
        for text, memory in memories.items():
            if not self.keys.fits(text):
                continue  # of an earlier definition with another key: stays as it is
            fitted = self._fitted(memory)
            number = self.keys.restore(text)
            if number is None:
                self._unmet[text] = fitted
                self._schedule_unmet(fitted)
            else:
                self._put(number, fitted)
        self._bound_us = self._earliest_silence() if self.rows is not None else FOREVER

    # ---- what the service asks

    @property
    def deadline_us(self) -> int:
        """When, by the clock, time alone may change something; FOREVER: never."""
        return min(self._next_us, self._bound_us)

    @property
    def refused(self) -> int:
        """Keys, or raises of keys, that found `max_keys` remembered already."""
        return self._refused + self.keys.refused

    def unsaved(self) -> Mapping[str, Memory | None]:
        """What has changed since `saved`, by key in JSON; None: nothing is remembered any more."""
        return self._unsaved

    def saved(self, position: Offsets) -> None:
        """Everything up to this position is committed."""
        self._unsaved = {}
        if self.rows is not None:
            self.rows.recorded()
        if self._start is not None and all(np.array(position, np.uint64) >= self._start):
            self._start = None
        if self.keys.crowded(len(self._memories)):
            memories, self._memories, self._deadlines = self._memories, {}, {}
            self._kinds[:] = _IDLE
            for old, new in self.keys.renumber(memories):
                self._put(new, memories[old])

    def judge(self, frame: Frame) -> list[Transition]:
        """What the rows of a batch change, in log order, then what time has changed by its end."""
        wheres = None
        if not self.alarm.rules.timed and self.rows is None:
            wheres = [step.where.evaluate(frame) for step in self.alarm.steps]
            quiet = all(frame.nowhere(up) for up, _ in wheres)
            # Most batches: nothing is remembered and nothing raises, so no row matters.
            if quiet and not self._memories and not self.keys.unmet:
                return []
        batch = frame.batch
        partitions, offsets = batch.column("_partition").to_numpy(), batch.column("_offset").to_numpy()
        counts = np.ones(frame.rows, np.bool_)
        if self._start is not None:
            counts = offsets >= self._start[partitions]
        for text, number in self.keys.meet(frame):
            self._put(number, self._unmet.pop(text))
        times, clock = self._times(frame, counts)
        if self.alarm.rate is not None:
            frame = self._with_rate(frame, counts, times)
        if self.alarm.rules.silent_us is not None:
            found = self._judge_silence(frame, counts, clock)
        else:
            if wheres is None:
                wheres = [step.where.evaluate(frame) for step in self.alarm.steps]
            found = self._judge_conditions(frame, wheres, counts, times, clock)
        if self.alarm.rules.timed:
            self.clock_us = max(self.clock_us, int(clock[-1])) if len(clock) else self.clock_us
            found += self._expire(self.clock_us)
        return found

    def tick(self, now_us: int) -> list[Transition]:
        """What time alone has changed by `now_us` of the clock, which stands there then."""
        self.clock_us = max(self.clock_us, now_us)
        return self._expire(self.clock_us)

    # ---- rows

    def _times(self, frame: Frame, counts: Any) -> tuple[Any, Any]:
        """Event time of each row, and the clock with it: the latest event time so far that is no lie."""
        times = frame.value("ts", ColumnType.TIMESTAMP)[0]
        if not self.alarm.rules.timed:
            return times, times
        moves = counts & ~self._ahead(frame, times)
        clock = np.maximum.accumulate(np.where(moves, times, self.clock_us))
        return times, np.maximum(clock, self.clock_us)

    def _ahead(self, frame: Frame, times: Any) -> Any:
        """Rows whose event time cannot be true: it lies too far ahead of their arrival."""
        if "received_at" not in frame.batch.schema.names:
            return np.False_
        arrived, known = frame.value("received_at", ColumnType.TIMESTAMP)
        ahead = times - self.alarm.max_ahead_us > arrived
        return ahead if known is None else ahead & known

    def _with_rate(self, frame: Frame, counts: Any, times: Any) -> Frame:
        rate = self.alarm.rate
        assert rate is not None and self.rows is not None  # such an alarm remembers its rows  # noqa: PT018
        values, known = frame.value(rate.of, rate.type)
        takes = counts & ~self._ahead(frame, times)
        if known is not None:
            takes = takes & known
        rows = np.flatnonzero(takes)
        numbers = self.keys.every(frame, rows)
        rows, numbers = rows[numbers >= 0], numbers[numbers >= 0]
        found, mask = np.zeros(frame.rows), np.zeros(frame.rows, np.bool_)
        if len(rows):
            found[rows], mask[rows], after = rates(
                numbers, times[rows], np.asarray(values, float)[rows], self.rows, rate.per_us
            )
            self._keep_values(after)
        column = pa.array(found, mask=~mask)
        return Frame(frame.batch.append_column(RATE, column))

    def _keep_values(self, after: Values) -> None:
        assert self.rows is not None  # a rate is kept there
        self.rows.put_values(after)

    def _judge_conditions(
        self, frame: Frame, wheres: Sequence[tuple[Any, Any]], counts: Any, times: Any, clock: Any
    ) -> list[Transition]:
        raises = reduce(or_, (up for up, _ in wheres))
        if self.alarm.schedule and raises.any():
            raises = raises & self.alarm.schedule.mask(times)
        if not (self._memories or raises.any()):
            return []
        level, cancels, stays = self._levels(frame, wheres)
        level[~raises] = 0
        counts = counts & (raises | cancels | (stays < self.alarm.rules.top))
        rows, numbers = self.keys.some(frame, counts, raises & counts, self._memories)
        if not len(rows):
            return []
        self._grow(int(numbers.max()) + 1)
        # A row matters if it moves its key as it is now; then all later rows of that key may matter.
        kind = self._kinds[numbers]
        up, down, out = raises[rows], cancels[rows], stays[rows] == 0
        moves = np.where(kind == _FIRING, out, up | (down & (kind == _PENDING)) | (kind == _EVERY))
        moved = numbers[moves]
        self._touched[moved] = True
        chosen = np.flatnonzero(self._touched[numbers])
        self._touched[moved] = False
        at = rows[chosen]
        return self._advance(frame, at, numbers[chosen], level[at], cancels[at], stays[at], times, clock)

    def _levels(self, frame: Frame, wheres: Sequence[tuple[Any, Any]]) -> tuple[Any, Any, Any]:
        """Per row: the highest step it raises to, whether it is below all, and the highest step it does not leave."""
        clear = self.alarm.clear
        level, stays = np.zeros(frame.rows, np.uint8), np.zeros(frame.rows, np.uint8)
        for number, (step, (up, down)) in enumerate(zip(self.alarm.steps, wheres, strict=True), 1):
            level[up] = number
            if step.clear is not None:
                left = step.clear.evaluate(frame)[0]
            elif number == 1 and clear is not None:
                left = frame.mask(np.False_)
            else:
                left = down
            stays[~left] = number
        if clear is not None:
            stays[clear.evaluate(frame)[0]] = 0
        return level, reduce(and_, (down for _, down in wheres)), stays

    def _judge_silence(self, frame: Frame, counts: Any, clock: Any) -> list[Transition]:
        """Every row that counts is a sign of life; only keys that were silent before one, or are, take the machine."""
        rules, rows_of = self.alarm.rules, self.rows
        assert rules.silent_us is not None and rows_of is not None  # noqa: PT018
        alive = counts
        for step in self.alarm.steps:
            alive = alive & step.where.evaluate(frame)[0]
        rows = np.flatnonzero(alive)
        numbers = self.keys.every(frame, rows)
        rows, numbers = rows[numbers >= 0], numbers[numbers >= 0]
        if not len(rows):
            return []
        self._grow(int(numbers.max()) + 1)
        order = np.argsort(numbers, kind="stable")
        key, at = numbers[order], rows[order]
        now = clock[at]
        first = np.concatenate([[True], key[1:] != key[:-1]])
        before = np.where(first, rows_of.column("seen_us")[key], np.concatenate([[0], now[:-1]]))
        late = (before > 0) & (now - before >= rules.silent_us)
        moved = key[late | (self._kinds[key] != _IDLE)]
        found: list[Transition] = []
        if len(moved):
            self._touched[moved] = True
            chosen = np.flatnonzero(self._touched[numbers])
            self._touched[moved] = False
            some = rows[chosen]
            ones = np.ones(len(some), np.uint8)
            times = frame.value("ts", ColumnType.TIMESTAMP)[0]
            found = self._advance(frame, some, numbers[chosen], ones, ones == 0, ones, times, clock)
        last = np.concatenate([key[1:] != key[:-1], [True]])
        at = at[last]
        partitions, offsets = frame.batch.column("_partition"), frame.batch.column("_offset")
        rows_of.put_seen(Seen(key[last], now[last], partitions.to_numpy()[at], offsets.to_numpy()[at]))
        self._bound_us = min(
            self._bound_us, rules.active_from(int(now[last].min(initial=FOREVER)) + rules.silent_us)
        )
        return found

    def _advance(
        self,
        frame: Frame,
        rows: Rows,
        numbers: Any,
        level: Any,
        cancels: Any,
        stays: Any,
        times: Any,
        clock: Any,
    ) -> list[Transition]:
        """These rows, in log order, through the state machine."""
        rules, found = self.alarm.rules, list[Transition]()
        partitions, offsets = frame.batch.column("_partition"), frame.batch.column("_offset")
        seen: dict[int, Mark | None] = {}
        judged = zip(
            rows.tolist(),
            numbers.tolist(),
            level.tolist(),
            cancels.tolist(),
            stays.tolist(),
            times[rows].tolist(),
            clock[rows].tolist(),
            partitions.to_numpy()[rows].tolist(),
            offsets.to_numpy()[rows].tolist(),
            strict=True,
        )
        for at, number, *row in judged:
            before = self._memories.get(number, NOTHING)
            if rules.silent_us is not None:
                if number not in seen:
                    seen[number] = self._seen(number)
                before = replace(before, seen=seen[number])
            after, entered = advance(rules, before, Row(*row))
            if after is before:
                continue
            if before.idle and not after.idle and self._full(number):
                self._refused += 1
                continue
            if not after.idle or entered:
                self.keys.name(frame, at, number)
            if rules.silent_us is not None:
                seen[number], after = after.seen, replace(after, seen=None)
            found += self._transitions(number, entered, before.seen)
            self._remember(number, after)
        return found

    # ---- time

    def _expire(self, now_us: int) -> list[Transition]:
        """What the timers that are due at `now_us` change, in the order of their keys' numbers."""
        if now_us < self.deadline_us:
            return []
        due = {number for number, at_us in self._deadlines.items() if at_us <= now_us}
        due |= set(self._silent(now_us)) if self.rows is not None else set()
        found: list[Transition] = []
        for number in sorted(due):
            before = self._memories.get(number, NOTHING)
            if self.alarm.rules.silent_us is not None:
                before = replace(before, seen=self._seen(number))
            if before.idle and self._full(number):
                self._refused += 1
                continue
            after, entered = expire(self.alarm.rules, before, now_us)
            found += self._transitions(number, entered, before.seen)
            self._remember(number, replace(after, seen=None))
        for text, memory in list(self._unmet.items()):
            after, entered = expire(self.alarm.rules, memory, now_us)
            if after is not memory:
                found += [self._transition(text, each, None) for each in entered]
                self._unsaved[text] = None if after.idle else after
                self._unmet[text] = after
        self._next_us = min(self._deadlines.values(), default=FOREVER)
        for memory in self._unmet.values():
            self._schedule_unmet(memory)
        if self.rows is not None:
            self._bound_us = self._earliest_silence()
        return found

    def _silent(self, now_us: int) -> list[int]:
        """Keys that sent nothing for too long and do not fire for it yet."""
        rules = self.alarm.rules
        if rules.silent_us is None or self.rows is None:
            return []
        seen = self.rows.column("seen_us")
        self._grow(len(seen))
        watched = (seen > 0) & (self._kinds[: len(seen)] != _FIRING)
        numbers = np.flatnonzero(watched & (seen + rules.silent_us <= now_us)).tolist()
        if not self.alarm.schedule:
            return numbers
        return [n for n in numbers if rules.active_from(int(seen[n]) + rules.silent_us) <= now_us]

    def _earliest_silence(self) -> int:
        """No key can become silent before that."""
        rules = self.alarm.rules
        if rules.silent_us is None or self.rows is None or not len(self.rows):
            return FOREVER
        seen = self.rows.column("seen_us")
        self._grow(len(seen))
        watched = seen[(seen > 0) & (self._kinds[: len(seen)] != _FIRING)]
        if not len(watched):
            return FOREVER
        return rules.active_from(int(watched.min()) + rules.silent_us)

    def _seen(self, number: int) -> Mark | None:
        assert self.rows is not None  # only asked where rows are remembered
        columns = ("seen_us", "partition", "offset")
        at_us, partition, offset = (int(self.rows.column(name)[number]) for name in columns)
        return Mark(at_us, partition, offset) if at_us else None

    # ---- memories

    def _fitted(self, memory: Memory) -> Memory:
        """A restored memory as today's definition can go on with it."""
        rules = self.alarm.rules
        if memory.phase is not Phase.IDLE:
            memory = replace(memory, level=min(max(memory.level, 1), rules.top))
        if rules.clear_after_us is not None and memory.phase is Phase.FIRING and memory.raised is None:
            start = memory.start or Mark(0, 0, 0)
            memory = replace(memory, raised=start._replace(at_us=self.clock_us))
        return memory if rules.repeat is not None else replace(memory, bits=0)

    def _full(self, number: int) -> bool:
        known = len(self._memories) + len(self._unmet)
        return number not in self._memories and known >= self.alarm.max_keys

    def _remember(self, number: int, memory: Memory) -> None:
        if memory.idle and number not in self._memories:
            return
        self._unsaved[self.keys.text(number)] = None if memory.idle else memory
        self._put(number, memory)

    def _put(self, number: int, memory: Memory) -> None:
        self._grow(number + 1)
        self._kinds[number] = self._kind(memory)
        self._deadlines.pop(number, None)
        if memory.idle:
            self._memories.pop(number, None)
            self.keys.forget(number)
            return
        self._memories[number] = memory
        due = deadline(self.alarm.rules, memory) if self.alarm.rules.timed else None
        if due is not None:
            self._deadlines[number] = due
            self._next_us = min(self._next_us, due)

    def _kind(self, memory: Memory) -> int:
        if memory.idle:
            return _IDLE
        if self.alarm.rules.silent_us is not None:
            return _FIRING if memory.phase is Phase.FIRING else _EVERY
        if memory.flapping or not self.alarm.rules.simple:
            return _EVERY
        return _FIRING if memory.phase is Phase.FIRING else _PENDING

    def _schedule_unmet(self, memory: Memory) -> None:
        due = deadline(self.alarm.rules, memory) if self.alarm.rules.timed else None
        if due is not None:
            self._next_us = min(self._next_us, due)

    def _transitions(
        self, number: int, entered: Sequence[Entered], seen: Mark | None
    ) -> Iterator[Transition]:
        for each in entered:
            yield self._transition(self.keys.text(number), each, seen)

    def _transition(self, key: str, entered: Entered, seen: Mark | None) -> Transition:
        reading = {"last_seen": seen.at_us} if entered.fresh and seen is not None else None
        return Transition(
            key,
            entered.state,
            entered.shown,
            entered.at_us,
            entered.partition,
            entered.offset,
            self.alarm.severity(entered.level) if entered.level else None,
            entered.fresh,
            reading,
        )

    def _grow(self, size: int) -> None:
        if size > len(self._kinds):
            more = max(size, 2 * len(self._kinds)) - len(self._kinds)
            self._kinds = np.concatenate([self._kinds, np.zeros(more, np.uint8)])
            self._touched = np.concatenate([self._touched, np.zeros(more, np.bool_)])

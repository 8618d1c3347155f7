"""The alarm state machine of one key. Pure: a memory and an event with its time in, a memory and the states entered
out.

    inactive ── raised ──▶ pending ── `for` later ──▶ firing ── left ──▶ resolved
        ▲                    │                        │  ▲
        └─── not raised ─────┘       too many changes │  │ calm
                                                      ▼  │
                                                    flapping

There are two times. *Event time* is what a row says, and measures `for`: a row whose event time lies before the one
that began a pending alarm (a late reading) neither restarts nor fires it, but cancels or resolves as any other. The
*clock* is the stream's time, which never goes back and no single device can move far; it drives what time alone
does: silence, resolving after quiet, calm after flapping. A timer that is due ends at its own time, however late it
is noticed, so where batches are cut and when ticks come changes nothing.

Operators' actions (acknowledge, shelve, silence) are not states of this machine: they never change what is raised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from functools import cached_property
from typing import NamedTuple

import orjson


class State(StrEnum):
    """A state that an alarm enters."""

    INACTIVE = "inactive"
    PENDING = "pending"
    FIRING = "firing"
    SEVERITY_UP = "severity_up"
    SEVERITY_DOWN = "severity_down"
    FLAPPING = "flapping"
    RESOLVED = "resolved"


class Phase(IntEnum):
    """Where the condition stands, whatever is told of it while it flaps."""

    IDLE = 0
    PENDING = 1
    FIRING = 2


class Mark(NamedTuple):
    """A time, microseconds UTC, and the row of the log that set it."""

    at_us: int
    partition: int
    offset: int


@dataclass(frozen=True)
class Rules:
    """What the machine knows of an alarm's definition.

    for_us:          how long the condition must hold, event time; 0: the row that raises also fires
    top:             number of steps of severity
    repeat:          (count, of): so many of the last rows must be true
    keeps:           no `clear` is given: with `clear_after` or enough of `repeat`, a false row does not resolve
    clear_after_us:  resolves when no row has raised for so long
    silent_us:       raises when no row has come for so long; every row is a sign of life and resolves
    active_from:     the first instant from a given one on at which silence may raise
    flap:            (changes, within_us): more changes in that time are held back
    """

    for_us: int = 0
    top: int = 1
    repeat: tuple[int, int] | None = None
    keeps: bool = False
    clear_after_us: int | None = None
    silent_us: int | None = None
    active_from: Callable[[int], int] = int
    flap: tuple[int, int] | None = None

    @cached_property
    def timed(self) -> bool:
        """Whether time alone can change a state."""
        return self.clear_after_us is not None or self.silent_us is not None or self.flap is not None

    @cached_property
    def simple(self) -> bool:
        """Whether phase and first row are all there is to remember."""
        return not self.timed and self.repeat is None and self.top == 1


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered of one key.

    level:    step of severity while firing, 1 to `Rules.top`
    start:    the row that began the pending or firing condition, with its event time
    shown:    what names the alarm that is visible: the start, also while flapping hides later ones
    bits:     of `repeat`: the last rows, 1 where the condition was true, the latest lowest
    raised:   of `clear_after`: the last row that raised, by the clock
    changes:  of `flap`: when it last fired or was resolved, by the clock
    changed:  the row of the last of them
    flapping: changes are held back
    seen:     of `silent`: the last row, by the clock
    """

    phase: Phase = Phase.IDLE
    level: int = 0
    start: Mark | None = None
    shown: Mark | None = None
    bits: int = 0
    raised: Mark | None = None
    changes: tuple[int, ...] = ()
    changed: Mark | None = None
    flapping: bool = False
    seen: Mark | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing but `seen` is remembered."""
        return self.phase is Phase.IDLE and not (self.bits or self.changes or self.flapping)

    @property
    def state(self) -> State:
        """The state that is visible."""
        if self.flapping:
            return State.FLAPPING
        return (State.INACTIVE, State.PENDING, State.FIRING)[self.phase]


@dataclass(frozen=True, slots=True)
class Row:
    """One row as an alarm sees it.

    level:   highest step whose `where` is TRUE, 0 for none
    cancels: every `where` is FALSE; one that is NULL neither raises nor cancels
    stays:   highest step that the row does not leave (its `clear`, or without one `where` FALSE); 0 resolves
    at_us:   event time
    now_us:  the clock with this row, never less than with the row before
    """

    level: int
    cancels: bool
    stays: int
    at_us: int
    now_us: int
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Entered:
    """One state that was entered.

    shown: what names the alarm
    level: its step of severity; 0: as it was
    at_us: event time of the row, or when the timer was due
    partition, offset: the row, or the row that had set the timer
    fresh: the alarm fires for the first time, be it told as flapping
    """

    state: State
    shown: Mark
    level: int
    at_us: int
    partition: int
    offset: int
    fresh: bool = False


_Entered = tuple[Entered, ...]
NOTHING = Memory()


def advance(rules: Rules, memory: Memory, row: Row) -> tuple[Memory, _Entered]:
    """The memory after one more row of its key, and the states entered by it and by timers that were due before it.

    A row does one thing: the row that resolves an alarm does not raise the next one, even where `where` and `clear`
    overlap.

    >>> hot = Row(level=1, cancels=False, stays=1, at_us=100, now_us=100, partition=0, offset=7)
    >>> memory, entered = advance(Rules(for_us=5), NOTHING, hot)
    >>> [str(each.state) for each in entered]
    ['pending']
    >>> [str(each.state) for each in advance(Rules(for_us=5), memory, replace(hot, at_us=105, offset=8))[1]]
    ['firing']
    """
    if rules.simple and not memory.flapping and not memory.changes:
        return _plain(rules, memory, row)
    before: _Entered = ()
    if rules.timed or memory.flapping:
        memory, before = expire(rules, memory, row.now_us)
    if rules.silent_us is not None:
        after, entered = _alive(rules, memory, row)
    else:
        after, entered = _judge(rules, memory, row)
    return after, before + entered


def expire(rules: Rules, memory: Memory, now_us: int) -> tuple[Memory, _Entered]:
    """The memory at this time of the clock, and the states entered by the timers that were due, each at its time."""
    found: _Entered = ()
    while (due := _next(rules, memory)) is not None and due[0] <= now_us:
        at_us, timer = due
        memory, entered = timer(rules, memory, at_us)
        found += entered
    return memory, found


def deadline(rules: Rules, memory: Memory) -> int | None:
    """When time alone will change this memory, by the clock; None: never."""
    due = _next(rules, memory)
    return None if due is None else due[0]


def delayed(memory: Memory, by_us: int) -> Memory:
    """A memory whose times of the clock lie so much later: the clock went on, but nothing could be heard."""
    return replace(
        memory,
        raised=memory.raised and memory.raised._replace(at_us=memory.raised.at_us + by_us),
        changes=tuple(change + by_us for change in memory.changes),
        changed=memory.changed and memory.changed._replace(at_us=memory.changed.at_us + by_us),
    )


def to_json(memory: Memory) -> str:
    """A memory as the database keeps it, without `seen`.

    >>> from_json(to_json(Memory(bits=5))) == Memory(bits=5)
    True
    """
    fields: dict[str, object] = {}
    for name in _KEPT:
        value = getattr(memory, name)
        if value:
            fields[name] = list(value) if isinstance(value, tuple) else value
    return orjson.dumps(fields).decode()


def from_json(text: str) -> Memory:
    fields = orjson.loads(text)
    for name in ("start", "shown", "raised", "changed"):
        if name in fields:
            fields[name] = Mark(*fields[name])
    fields["phase"] = Phase(fields.get("phase", 0))
    fields["changes"] = tuple(fields.get("changes", ()))
    return Memory(**fields)


_KEPT = ("phase", "level", "start", "shown", "bits", "raised", "changes", "changed", "flapping")

_Timer = Callable[[Rules, Memory, int], tuple[Memory, _Entered]]


def _next(rules: Rules, memory: Memory) -> tuple[int, _Timer] | None:
    """The timer that is due first. Of two at one time calm goes first: a change just then is not within the
    window."""
    found: list[tuple[int, _Timer]] = []
    if memory.changes and rules.flap is not None:
        found.append((memory.changes[-1] + rules.flap[1], _calm))
    elif memory.flapping:  # the definition no longer has `flap`
        found.append((memory.changes[-1] if memory.changes else 0, _calm))
    if memory.phase is Phase.FIRING and rules.clear_after_us is not None and memory.raised is not None:
        found.append((memory.raised.at_us + rules.clear_after_us, _quiet))
    if memory.phase is Phase.IDLE and rules.silent_us is not None and memory.seen is not None:
        found.append((rules.active_from(memory.seen.at_us + rules.silent_us), _silence))
    return min(found, key=lambda due: due[0], default=None)


def _calm(_rules: Rules, memory: Memory, at_us: int) -> tuple[Memory, _Entered]:
    """No change for so long: what was held back is told."""
    shown, mark = memory.shown, memory.changed
    after = replace(memory, changes=(), changed=None, flapping=False)
    if not memory.flapping or shown is None or mark is None:
        return after, ()
    if memory.phase is Phase.FIRING:
        return after, (Entered(State.FIRING, shown, memory.level, at_us, mark.partition, mark.offset),)
    entered: _Entered = (Entered(State.RESOLVED, shown, 0, at_us, mark.partition, mark.offset),)
    if memory.phase is Phase.PENDING and (start := memory.start) is not None:
        entered += (Entered(State.PENDING, start, memory.level, start.at_us, start.partition, start.offset),)
    return replace(after, shown=memory.start), entered


def _quiet(rules: Rules, memory: Memory, at_us: int) -> tuple[Memory, _Entered]:
    assert memory.raised is not None  # else there is no such timer
    return _resolve(rules, memory, at_us, memory.raised._replace(at_us=at_us))


def _silence(rules: Rules, memory: Memory, at_us: int) -> tuple[Memory, _Entered]:
    assert memory.seen is not None  # else there is no such timer
    mark = memory.seen._replace(at_us=at_us)
    memory, entered = _begin(memory, mark, 1)
    memory, fired = _fire(rules, memory, 1, at_us, mark)
    return memory, entered + fired


def _alive(rules: Rules, memory: Memory, row: Row) -> tuple[Memory, _Entered]:
    mark = Mark(row.now_us, row.partition, row.offset)
    entered: _Entered = ()
    if memory.phase is Phase.FIRING:
        memory, entered = _resolve(rules, memory, row.at_us, mark)
    # A clock that no row has set yet measures nothing.
    return replace(memory, seen=mark if row.now_us else None), entered


def _plain(rules: Rules, memory: Memory, row: Row) -> tuple[Memory, _Entered]:
    """`_judge` where phase and first row are all there is, which many rows of many alarms come through."""
    if memory.phase is Phase.FIRING:
        if row.stays:
            return memory, ()
        assert memory.shown is not None  # it is not idle
        return NOTHING, (Entered(State.RESOLVED, memory.shown, 0, row.at_us, row.partition, row.offset),)
    start = memory.start
    entered: _Entered = ()
    if start is None:
        if not row.level:
            return memory, ()
        start = Mark(row.at_us, row.partition, row.offset)
        entered = (Entered(State.PENDING, start, row.level, *start),)
        if rules.for_us:
            return Memory(Phase.PENDING, row.level, start, start), entered
    elif row.cancels:
        return NOTHING, (Entered(State.INACTIVE, start, 0, row.at_us, row.partition, row.offset),)
    if not row.level or row.at_us - start.at_us < rules.for_us:
        return memory, entered
    fired = Entered(State.FIRING, start, row.level, row.at_us, row.partition, row.offset, fresh=True)
    return Memory(Phase.FIRING, row.level, start, start), (*entered, fired)


def _judge(rules: Rules, memory: Memory, row: Row) -> tuple[Memory, _Entered]:
    level, cancels, stays, holds = row.level, row.cancels, row.stays, False
    if rules.repeat is not None and (level or cancels):
        count, of = rules.repeat
        bits = (memory.bits << 1 | (level > 0)) & ((1 << of) - 1)
        memory = replace(memory, bits=bits)
        enough = bits.bit_count() >= count
        holds = enough
        level, cancels = (level if enough else 0), cancels and not enough
    if rules.keeps and row.cancels and (holds or rules.clear_after_us is not None):
        stays = memory.level
    mark = Mark(row.now_us, row.partition, row.offset)
    if level and rules.clear_after_us is not None:
        memory = replace(memory, raised=mark)
    if memory.phase is Phase.FIRING:
        if stays == 0:
            return _resolve(rules, memory, row.at_us, mark)
        if level > memory.level or stays < memory.level:
            return _step(memory, level if level > memory.level else stays, row)
        return memory, ()
    entered: _Entered = ()
    if memory.phase is Phase.IDLE:
        if not level:
            return memory, ()
        memory, entered = _begin(memory, Mark(row.at_us, row.partition, row.offset), level)
    elif cancels:
        return _cancel(memory, row)
    assert memory.start is not None  # it is pending
    if level and row.at_us - memory.start.at_us >= rules.for_us:
        memory, fired = _fire(rules, memory, level, row.at_us, mark)
        entered += fired
    return memory, entered


def _begin(memory: Memory, start: Mark, level: int) -> tuple[Memory, _Entered]:
    memory = replace(memory, phase=Phase.PENDING, level=level, start=start)
    if memory.flapping:
        return memory, ()
    entered = Entered(State.PENDING, start, level, start.at_us, start.partition, start.offset)
    return replace(memory, shown=start), (entered,)


def _cancel(memory: Memory, row: Row) -> tuple[Memory, _Entered]:
    shown = memory.shown
    memory = replace(memory, phase=Phase.IDLE, level=0, start=None, raised=None)
    if memory.flapping or shown is None:
        return memory, ()
    entered = Entered(State.INACTIVE, shown, 0, row.at_us, row.partition, row.offset)
    return replace(memory, shown=None), (entered,)


def _step(memory: Memory, level: int, row: Row) -> tuple[Memory, _Entered]:
    state = State.SEVERITY_UP if level > memory.level else State.SEVERITY_DOWN
    memory = replace(memory, level=level)
    if memory.flapping or memory.shown is None:
        return memory, ()
    return memory, (Entered(state, memory.shown, level, row.at_us, row.partition, row.offset),)


def _fire(rules: Rules, memory: Memory, level: int, at_us: int, mark: Mark) -> tuple[Memory, _Entered]:
    memory = replace(memory, phase=Phase.FIRING, level=level)
    return _changed(rules, memory, State.FIRING, level, at_us, mark)


def _resolve(rules: Rules, memory: Memory, at_us: int, mark: Mark) -> tuple[Memory, _Entered]:
    memory = replace(memory, phase=Phase.IDLE, level=0, start=None, raised=None, bits=0)
    memory, entered = _changed(rules, memory, State.RESOLVED, 0, at_us, mark)
    return (memory if memory.flapping else replace(memory, shown=None)), entered


def _changed(
    rules: Rules, memory: Memory, state: State, level: int, at_us: int, mark: Mark
) -> tuple[Memory, _Entered]:
    """It has fired or was resolved, which is told, or counted where it flaps. mark: by the clock."""
    if memory.shown is None:
        return memory, ()
    fresh = state is State.FIRING
    if rules.flap is not None:
        most, within_us = rules.flap
        recent = tuple(change for change in memory.changes if change > mark.at_us - within_us)
        changes = (*recent, mark.at_us)[-most - 1 :]
        memory = replace(memory, changes=changes, changed=mark)
        if memory.flapping:
            return memory, ()
        if len(changes) > most:
            memory, state = replace(memory, flapping=True), State.FLAPPING
    assert memory.shown is not None  # said above
    return memory, (Entered(state, memory.shown, level, at_us, mark.partition, mark.offset, fresh),)

"""Headwater's own alarms: what an operator must know about the pipeline itself, told like any other alarm.

Their names begin with `headwater:`, which no declared alarm can, and their targets are `system.notify`. They are kept,
listed and notified with all others. Where the database cannot take them (it may be on the disk that is full), the log
line is there at once and the rest follows as soon as it can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
import structlog

from headwater.alerts import history
from headwater.alerts.machine import Mark, Memory, Phase, State
from headwater.alerts.routing import Router
from headwater.alerts.tracker import Transition
from headwater.api.books import books, each_level
from headwater.api.parts import Parts
from headwater.database import Database

#: What is wrong now, by key columns of the instance: the reading that fires it, with a `detail` for people.
Findings = Iterator[tuple[dict[str, str], dict[str, Any]]]

#: An alarm about errors is resolved when none has come for so long, microseconds.
QUIET_US: Final = 60_000_000
#: Transitions that wait for a database that cannot take them; then only the log has them.
MAX_WAITING: Final = 10_000

_logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OwnAlarm:
    """An alarm about Headwater.

    find:   what is wrong now
    checks: how many checks in a row must find it before it fires
    """

    name: str
    severity: str
    find: Callable[[], Findings]
    checks: int = 1
    notify: tuple[str, ...] = ()

    @property
    def labels(self) -> Mapping[str, str]:
        """None of its own."""
        return {}

    @property
    def incident(self) -> None:
        """Each part is one of its own."""

    @property
    def severities(self) -> tuple[str, ...]:
        """One step."""
        return (self.severity,)


class SelfCheck:
    """Watches `alarms`; driven by one thread that calls `step`, about once a second.

    clock: microseconds UTC
    """

    def __init__(
        self,
        database: Database,
        alarms: Sequence[OwnAlarm],
        clock: Callable[[], int],
        router: Router = history.NO_ROUTES,
    ) -> None:
        self.router = router
        self._database = database
        self._alarms = alarms
        self._clock = clock
        #: By alarm and key: how often in a row it was found, and the instance once it has fired.
        self._found: dict[tuple[str, str], int] = {}
        self._firing: dict[tuple[str, str], Mark] = {}
        self._waiting: list[tuple[OwnAlarm, Transition]] = []
        with database.read() as connection:
            for alarm in alarms:
                for key, memory in history.memories(connection, alarm).items():
                    if memory.shown is not None:
                        self._firing[alarm.name, key] = memory.shown

    def step(self) -> bool:
        """Checks everything once and records what has changed.

        raises: what the database raises; what could not be recorded is tried again at the next step
        """
        now_us = self._clock()
        for alarm in self._alarms:
            self._check(alarm, now_us)
        self._record(now_us)
        return False

    def close(self) -> None:
        """Nothing is held open."""

    def _check(self, alarm: OwnAlarm, now_us: int) -> None:
        found = {orjson.dumps(key, option=orjson.OPT_SORT_KEYS).decode(): why for key, why in alarm.find()}
        for key, reading in found.items():
            times = self._found[alarm.name, key] = self._found.get((alarm.name, key), 0) + 1
            if times >= alarm.checks and (alarm.name, key) not in self._firing:
                shown = Mark(now_us, 0, self._position(now_us))
                self._firing[alarm.name, key] = shown
                self._enter(alarm, key, State.FIRING, shown, reading, now_us)
        for name, key in [each for each in self._found if each[0] == alarm.name and each[1] not in found]:
            del self._found[name, key]
        for name, key in [each for each in self._firing if each[0] == alarm.name and each[1] not in found]:
            self._enter(alarm, key, State.RESOLVED, self._firing.pop((name, key)), {}, now_us)

    def _position(self, now_us: int) -> int:
        """Names an instance as the offset of a row does: the time, or the next microsecond that is free."""
        last = max((one.offset for _, one in self._waiting), default=0)
        return max(now_us, last + 1)

    def _enter(
        self,
        alarm: OwnAlarm,
        key: str,
        state: State,
        shown: Mark,
        reading: dict[str, Any],
        now_us: int,
    ) -> None:
        say = _logger.error if state is State.FIRING else _logger.info
        say("own alarm", alarm=alarm.name, key=orjson.loads(key), state=state.value, **reading)
        offset, fresh = self._position(now_us), state is State.FIRING
        transition = Transition(key, state, shown, now_us, 0, offset, fresh=fresh, reading=reading)
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append((alarm, transition))

    def _record(self, now_us: int) -> None:
        if not self._waiting:
            return
        with self._database.begin() as connection:
            for alarm, transition in self._waiting:
                history.save(connection, alarm, [transition], {}, now_us, self.router)
                shown = transition.shown
                firing = Memory(phase=Phase.FIRING, level=1, start=shown, shown=shown)
                open_ = transition.state is State.FIRING
                history.save_memories(connection, alarm, {transition.key: firing if open_ else None})
        self._waiting.clear()


def own_alarms(parts: Parts, notify: Sequence[str]) -> list[OwnAlarm]:
    """The alarms about one running pipeline."""
    errors = _LogErrors(parts)
    told = tuple(notify)
    return [
        OwnAlarm("headwater:books", "critical", lambda: _unbalanced(parts), checks=2, notify=told),
        OwnAlarm("headwater:disk_full", "critical", lambda: _full(parts), notify=told),
        OwnAlarm("headwater:log_errors", "critical", errors.find, notify=told),
        OwnAlarm("headwater:service", "major", lambda: _failing(parts), checks=3, notify=told),
        OwnAlarm("headwater:shedding", "major", lambda: _shedding(parts), notify=told),
    ]


def _unbalanced(parts: Parts) -> Findings:
    found = books(parts)
    if not found["messages"]["balanced"]:
        yield {"book": "messages"}, {"detail": "the equation of messages does not hold", **found["messages"]}
    for stream, terms in found["rows"].items():
        if not terms["balanced"]:
            yield {"book": stream}, {"detail": f"the rows of {stream} do not balance", **_terms(terms)}
        for (level, value), found_there in each_level(terms).items():
            if not found_there["balanced"]:
                detail = f"the rows of {stream} with {level} = {value!r} do not balance"
                yield {"book": f"{stream}/{level}/{value}"}, {"detail": detail, **found_there}


def _terms(stream: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in stream.items() if name != "levels"}


def _full(parts: Parts) -> Findings:
    stats = parts.log.native.stats()
    if stats["full"]:
        yield {}, {"detail": f"nothing from devices is acknowledged: {stats['last_error']}"}


def _failing(parts: Parts) -> Findings:
    for worker in parts.workers:
        if not worker.healthy:
            yield {"service": worker.name}, {"detail": worker.last_error or "its thread has ended"}


def _shedding(parts: Parts) -> Findings:
    counters = parts.counters()
    if loops := counters["loops_shedding"]:
        detail = f"QoS 0 messages are dropped by {loops} event loops, {counters['shed']} since the start"
        yield {}, {"detail": detail}


class _LogErrors:
    """Writes and syncs that failed: each one is news."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._count = 0
        self._since_us = 0

    def find(self) -> Findings:
        stats = self._parts.log.native.stats()
        count = stats["sync_errors"] + stats["write_errors"]
        now_us = self._parts.clock()
        if count != self._count:
            self._count, self._since_us = count, now_us
        if count and now_us - self._since_us < QUIET_US:
            yield (
                {},
                {
                    "detail": f"the log failed to write or sync, {count} times since the start: {stats['last_error']}"
                },
            )

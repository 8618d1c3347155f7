"""The definition of an alarm, written plainly and slowly, sharing no line with the product: every key is looked at with
every event, nothing is postponed, and histories are kept whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
Condition = Callable[[Row], bool | None]

#: (key, state, event time, partition, offset, step)
Told = tuple[Any, str, int, int, int, int]


@dataclass
class Definition:
    steps: Sequence[tuple[Condition, Condition | None]] = ()
    clear: Condition | None = None
    for_us: int = 0
    repeat: tuple[int, int] | None = None
    clear_after_us: int | None = None
    silent_us: int | None = None
    flap: tuple[int, int] | None = None
    active: Callable[[int], bool] = lambda _at: True
    max_ahead_us: int = 10**18
    rate: tuple[str, int] | None = None


@dataclass
class Key:
    raw: str = "idle"
    step: int = 0
    began: tuple[int, int, int] | None = None
    name: tuple[int, int, int] | None = None
    truths: list[bool] = field(default_factory=list)
    raised: tuple[int, int, int] | None = None
    seen: tuple[int, int, int] | None = None
    changes: list[tuple[int, int, int]] = field(default_factory=list)
    flapping: bool = False
    readings: list[tuple[int, float]] = field(default_factory=list)


class Oracle:
    """Rows and ticks in, what is told out."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.now = 0
        self.keys: dict[Any, Key] = {}
        self.told: list[Told] = []
        self.names: list[tuple[int, int, int] | None] = []

    def tick(self, now: int) -> None:
        self._time(max(self.now, now))

    def row(self, key: Any, row: Row, alive: bool = True) -> None:  # noqa: PLR0915  (the definition, in one piece)
        """row: `ts`, `received_at` or None, `_partition`, `_offset` and whatever conditions look at."""
        d, at = self.definition, row["ts"]
        lies = row.get("received_at") is not None and at > row["received_at"] + d.max_ahead_us
        self._time(self.now if lies else max(self.now, at))
        k = self.keys.setdefault(key, Key())
        where = (row["_partition"], row["_offset"])
        if d.silent_us is not None:
            if alive:
                if k.raw == "firing":
                    self._resolve(key, k, at, self.now, where)
                k.seen = (self.now, *where) if self.now else None
            return
        row = {**row, "rate": self._rate(k, row, lies)}
        ups = [up(row) for up, _ in d.steps]
        level = max((n for n, up in enumerate(ups, 1) if up), default=0)
        if not d.active(at):
            level = 0
        below = all(up is False for up in ups)
        stays = 0
        for n, ((_, clear), up) in enumerate(zip(d.steps, ups, strict=True), 1):
            held = n == 1 and d.clear is not None
            if not (clear(row) is True if clear is not None else up is False and not held):
                stays = n
        if d.clear is not None and d.clear(row) is True:
            stays = 0
        implicit = d.clear is None and all(clear is None for _, clear in d.steps)
        false = below
        if d.repeat is not None and (level or below):
            k.truths.append(level > 0)
            enough = sum(k.truths[-d.repeat[1] :]) >= d.repeat[0]
            if not enough:
                level = 0
            elif below:
                false = False
                if implicit:
                    stays = k.step
        if implicit and below and d.clear_after_us is not None:
            stays = k.step
        if level and d.clear_after_us is not None:
            k.raised = (self.now, *where)
        if k.raw == "firing":
            if stays == 0:
                self._resolve(key, k, at, self.now, where)
            elif level > k.step:
                self._move(key, k, level, "severity_up", at, where)
            elif stays < k.step:
                self._move(key, k, stays, "severity_down", at, where)
            return
        if k.raw == "pending" and false:
            k.raw, k.step, k.began, k.raised = "idle", 0, None, None
            if not k.flapping:
                self._tell(key, k, "inactive", at, where, 0)
                k.name = None
            return
        if k.raw == "idle" and level:
            self._begin(key, k, (at, *where), level)
        if k.raw == "pending" and level and k.began is not None and at - k.began[0] >= d.for_us:
            self._fire(key, k, level, at, self.now, where)

    def _rate(self, k: Key, row: Row, lies: bool) -> float | None:
        if self.definition.rate is None or lies or row.get(self.definition.rate[0]) is None:
            return None
        value, per = row[self.definition.rate[0]], self.definition.rate[1]
        before = k.readings[-1] if k.readings else None
        if before is not None and row["ts"] <= before[0]:
            return None
        k.readings.append((row["ts"], value))
        return None if before is None else (value - before[1]) * (per / float(row["ts"] - before[0]))

    def _time(self, now: int) -> None:
        """Moves the clock microsecond event by event: whatever is due first happens first."""
        self.now = now
        for key, k in self.keys.items():
            while (due := self._due(k)) is not None and due[0] <= now:
                due[2](key, k, due[0])

    def _due(self, k: Key) -> tuple[int, int, Callable[[Any, Key, int], None]] | None:
        d = self.definition
        found: list[tuple[int, int, Callable[[Any, Key, int], None]]] = []
        if d.flap is not None and k.changes:
            found.append((k.changes[-1][0] + d.flap[1], 0, self._calm))
        if d.clear_after_us is not None and k.raw == "firing" and k.raised is not None:
            found.append((k.raised[0] + d.clear_after_us, 1, self._quiet))
        if d.silent_us is not None and k.raw == "idle" and k.seen is not None:
            at = k.seen[0] + d.silent_us
            while not d.active(at):
                at = (at // 60_000_000 + 1) * 60_000_000
            found.append((at, 2, self._silence))
        return min(found, key=lambda due: due[:2], default=None)

    def _calm(self, key: Any, k: Key, at: int) -> None:
        mark, was = k.changes[-1], k.flapping
        k.changes, k.flapping = [], False
        if not was:
            return
        if k.raw == "firing":
            self._tell(key, k, "firing", at, mark[1:], k.step)
            return
        self._tell(key, k, "resolved", at, mark[1:], 0)
        k.name = k.began
        if k.raw == "pending" and k.began is not None:
            self._tell(key, k, "pending", k.began[0], k.began[1:], k.step)

    def _quiet(self, key: Any, k: Key, at: int) -> None:
        assert k.raised is not None
        self._resolve(key, k, at, at, k.raised[1:])

    def _silence(self, key: Any, k: Key, at: int) -> None:
        assert k.seen is not None
        where = k.seen[1:]
        self._begin(key, k, (at, *where), 1)
        self._fire(key, k, 1, at, at, where)

    def _begin(self, key: Any, k: Key, began: tuple[int, int, int], level: int) -> None:
        k.raw, k.began, k.step = "pending", began, level
        if not k.flapping:
            k.name = began
            self._tell(key, k, "pending", began[0], began[1:], level)

    def _fire(self, key: Any, k: Key, level: int, at: int, now: int, where: tuple[int, int]) -> None:
        k.raw, k.step = "firing", level
        self._change(key, k, "firing", at, now, where, level)

    def _resolve(self, key: Any, k: Key, at: int, now: int, where: tuple[int, int]) -> None:
        k.raw, k.step, k.began, k.raised, k.truths = "idle", 0, None, None, []
        self._change(key, k, "resolved", at, now, where, 0)
        if not k.flapping:
            k.name = None

    def _move(self, key: Any, k: Key, level: int, state: str, at: int, where: tuple[int, int]) -> None:
        k.step = level
        if not k.flapping:
            self._tell(key, k, state, at, where, level)

    def _change(
        self, key: Any, k: Key, state: str, at: int, now: int, where: tuple[int, int], level: int
    ) -> None:
        if self.definition.flap is not None:
            most, within = self.definition.flap
            k.changes.append((now, *where))
            if k.flapping:
                return
            if sum(now - within < change[0] for change in k.changes) > most:
                k.flapping, state = True, "flapping"
        self._tell(key, k, state, at, where, level)

    def _tell(self, key: Any, k: Key, state: str, at: int, where: tuple[int, ...], level: int) -> None:
        self.told.append((key, state, at, where[0], where[1], level))
        self.names.append(k.name)


def by_key(told: Sequence[Told]) -> dict[Any, list[Told]]:
    """In the order of each key."""
    found: dict[Any, list[Told]] = {}
    for each in told:
        found.setdefault(each[0], []).append(each)
    return found

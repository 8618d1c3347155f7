"""The alarm state machine of one key: inactive -> pending -> firing -> resolved. Pure: rows in, states out.

Rows are taken in the order of the log. Event time orders nothing here, it only measures `for`: a row whose event time
lies before the first one of a pending alarm (a late reading) neither restarts nor fires it, but a late reading with
`where` FALSE cancels it, and one with `clear` TRUE resolves a firing one, as any other row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class State(StrEnum):
    """A state that an instance enters. Inactive and resolved instances are not kept."""

    INACTIVE = "inactive"
    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Instance:
    """A pending or firing alarm of one key.

    since_us:          event time of the row that made it pending
    partition, offset: that row; they and the key name the instance for ever
    """

    since_us: int
    partition: int
    offset: int
    firing: bool = False

    @property
    def state(self) -> State:
        return State.FIRING if self.firing else State.PENDING


def advance(
    instance: Instance | None,
    *,
    raises: bool,
    cancels: bool,
    resolves: bool,
    at_us: int,
    partition: int,
    offset: int,
    for_us: int,
) -> tuple[Instance | None, tuple[State, ...]]:
    """The instance after one more row of its key, and the states it entered by it, in order.

    raises:   `where` is TRUE
    cancels:  `where` is FALSE; a `where` that is NULL neither raises nor cancels
    resolves: `clear` is TRUE, or, without a `clear`, `where` is FALSE
    at_us:    event time of the row, microseconds UTC
    for_us:   how long `where` must hold; 0: the row that makes it pending also fires it

    A row does one thing: the row that resolves an instance does not raise the next one, even where `where` and
    `clear` overlap.

    >>> hot = {"raises": True, "cancels": False, "resolves": False, "partition": 0, "for_us": 5}
    >>> instance, entered = advance(None, **hot, at_us=100, offset=7)
    >>> entered
    (<State.PENDING: 'pending'>,)
    >>> advance(instance, **hot, at_us=105, offset=8)[1]
    (<State.FIRING: 'firing'>,)
    """
    if instance is None:
        if not raises:
            return None, ()
        if for_us == 0:
            return Instance(at_us, partition, offset, firing=True), (State.PENDING, State.FIRING)
        return Instance(at_us, partition, offset), (State.PENDING,)
    if instance.firing:
        return (None, (State.RESOLVED,)) if resolves else (instance, ())
    if cancels:
        return None, (State.INACTIVE,)
    if raises and at_us - instance.since_us >= for_us:
        return replace(instance, firing=True), (State.FIRING,)
    return instance, ()

"""Fits buffers into a budget of memory: those that nobody set by themselves shrink in proportion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headwater.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Buffer:
    """A kind of buffer.

    name:  its setting
    bytes: of one
    count: how many there are at a time
    floor: least bytes of one
    fixed: it was set by itself and keeps its size
    """

    name: str
    bytes: int
    count: int
    floor: int
    fixed: bool


def fit(budget: int, program: int, buffers: Sequence[Buffer]) -> dict[str, int]:
    """Bytes of each buffer so that they and the `program` take `budget` at most; none grows.

    raises: ConfigError when they cannot

    >>> fit(600, 100, [Buffer("a", 400, 2, 1, False), Buffer("b", 100, 1, 1, True)])
    {'a': 200, 'b': 100}
    """
    sizes = {each.name: each.bytes for each in buffers}
    fixed = program + sum(each.bytes * each.count for each in buffers if each.fixed)
    loose = [each for each in buffers if not each.fixed]
    while (wanted := sum(each.bytes * each.count for each in loose)) and fixed + wanted > budget:
        share = max(budget - fixed, 0) / wanted
        low = [each for each in loose if each.bytes * share < each.floor]
        if not low:
            return sizes | {each.name: int(each.bytes * share) for each in loose}
        # Those at their floor leave less to the others.
        loose = [each for each in loose if each not in low]
        sizes |= {each.name: each.floor for each in low}
        fixed += sum(each.floor * each.count for each in low)
    if fixed + wanted > budget:
        parts = ", ".join(
            f"{each.count} * {each.name} = {sizes[each.name]}" for each in buffers if each.count
        )
        raise ConfigError(
            f"memory_budget = {budget} is too small: the program takes {program} bytes and buffers at least "
            f"{fixed - program} ({parts}); raise it to {fixed}, or lower those that are set"
        )
    return sizes

"""The alarm state machine: examples, then against the oracle for any definition and any rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Definition, Oracle, by_key

from headwater.alerts.machine import (
    NOTHING,
    Memory,
    Row,
    Rules,
    State,
    advance,
    deadline,
    delayed,
    expire,
    from_json,
    to_json,
)

#: Rows as letters: T raises, F is below and clears, m is below and does not clear, N is NULL; 2 raises to the
#: second step.
KINDS = {
    "T": (1, False, 1),
    "F": (0, True, 0),
    "m": (0, True, 1),
    "N": (0, False, 9),
    "2": (2, False, 2),
}


def run(rules: Rules, letters: str, step_us: int = 1) -> list[str]:
    """Row number and state of every transition; a digit of its own row each, `.` only lets time pass."""
    memory, found = NOTHING, []
    for n, letter in enumerate(letters):
        at_us = 100 + n * step_us
        if letter == ".":
            memory, entered = expire(rules, memory, at_us)
        else:
            level, cancels, stays = KINDS[letter]
            row = Row(level, cancels, min(stays, rules.top), at_us, at_us, 0, n)
            memory, entered = advance(rules, memory, row)
        found += [f"{n} {each.state}" for each in entered]
    return found


@pytest.mark.parametrize(
    ("rules", "letters", "expected"),
    [
        (Rules(), "FNm", []),
        (Rules(), "T", ["0 pending", "0 firing"]),
        (Rules(), "TmF", ["0 pending", "0 firing", "2 resolved"]),
        (Rules(for_us=2), "TTTT", ["0 pending", "2 firing"]),
        (Rules(for_us=2), "TmT", ["0 pending", "1 inactive", "2 pending"]),
        (Rules(for_us=2), "TNT", ["0 pending", "2 firing"]),
        (Rules(for_us=2), "TNNN", ["0 pending"]),
        (Rules(for_us=2), "T....", ["0 pending"]),
        (Rules(top=2), "T2T", ["0 pending", "0 firing", "1 severity_up", "2 severity_down"]),
        (Rules(top=2), "2TF", ["0 pending", "0 firing", "1 severity_down", "2 resolved"]),
        (Rules(repeat=(2, 3), keeps=True), "TFTF", ["2 pending", "2 firing", "3 resolved"]),
        (Rules(repeat=(2, 3), keeps=True), "TTFF", ["1 pending", "1 firing", "3 resolved"]),
        (Rules(repeat=(2, 3), keeps=True), "TFFT", []),
        (Rules(clear_after_us=3, keeps=True), "TF..", ["0 pending", "0 firing", "3 resolved"]),
        (Rules(clear_after_us=3, keeps=True), "TFTF..", ["0 pending", "0 firing", "5 resolved"]),
        (Rules(clear_after_us=3), "TF", ["0 pending", "0 firing", "1 resolved"]),
        (Rules(silent_us=3), "T..T...", ["3 pending", "3 firing", "3 resolved", "6 pending", "6 firing"]),
        (Rules(silent_us=3), "TTTTTT", []),
        (
            Rules(flap=(2, 4)),
            "TFTFTF....",
            ["0 pending", "0 firing", "1 resolved", "2 pending", "2 flapping", "9 resolved"],
        ),
        (Rules(flap=(1, 4)), "TFT...", ["0 pending", "0 firing", "1 flapping"]),
        (Rules(flap=(1, 4)), "TFT....", ["0 pending", "0 firing", "1 flapping", "6 firing"]),
    ],
)
def test_examples(rules: Rules, letters: str, expected: list[str]) -> None:
    assert run(rules, letters) == expected


def test_a_late_reading_neither_restarts_nor_fires_but_cancels_and_resolves() -> None:
    def states(for_us: int, *rows: tuple[str, int]) -> list[State]:
        memory, found = NOTHING, []
        for n, (letter, at_us) in enumerate(rows):
            level, cancels, stays = KINDS[letter]
            memory, entered = advance(
                Rules(for_us=for_us), memory, Row(level, cancels, stays, at_us, 0, 0, n)
            )
            found += [each.state for each in entered]
        return found

    assert states(10, ("T", 100), ("T", 40), ("T", 109)) == [State.PENDING]
    assert states(10, ("T", 100), ("T", 40), ("T", 110)) == [State.PENDING, State.FIRING]
    assert states(10, ("T", 100), ("F", 40)) == [State.PENDING, State.INACTIVE]
    assert states(0, ("T", 100), ("F", 40)) == [State.PENDING, State.FIRING, State.RESOLVED]


def test_a_row_that_resolves_does_not_raise_again() -> None:
    memory, found = NOTHING, []
    for n in range(3):
        memory, entered = advance(Rules(), memory, Row(1, False, 0, n, n, 0, n))
        found += [each.state for each in entered]
    assert found == [State.PENDING, State.FIRING, State.RESOLVED, State.PENDING, State.FIRING]


def test_silence_waits_for_active_hours() -> None:
    rules = Rules(silent_us=3, active_from=lambda at: max(at, 50))
    memory, _ = advance(rules, NOTHING, Row(1, False, 1, 1, 1, 0, 0))
    assert deadline(rules, memory) == 50
    assert expire(rules, memory, 49)[1] == ()
    assert [each.at_us for each in expire(rules, memory, 60)[1]] == [50, 50]


def test_time_in_which_nothing_could_be_heard_is_taken_out() -> None:
    rules = Rules(clear_after_us=3, keeps=True)
    memory, _ = advance(rules, NOTHING, Row(1, False, 1, 1, 1, 0, 0))
    assert deadline(rules, delayed(memory, 100)) == 104


# ---- any definition, any rows


@dataclass(frozen=True)
class Event:
    """A row of a key, or a tick; values are looked up by the oracle's conditions."""

    key: str | None
    at: int
    wheres: tuple[bool | None, bool | None]
    clears: tuple[bool | None, bool | None]
    clear: bool | None


TRUTH = st.sampled_from([True, True, False, False, None])
EVENTS = st.lists(
    st.builds(
        Event,
        st.sampled_from(["a", "a", "a", "b", None]),
        st.integers(1, 40),
        st.tuples(TRUTH, TRUTH),
        st.tuples(TRUTH, TRUTH),
        TRUTH,
    ),
    max_size=60,
)
RULES = st.fixed_dictionaries(
    {
        "top": st.sampled_from([1, 2]),
        "step_clears": st.booleans(),
        "clear": st.booleans(),
        "for_us": st.sampled_from([0, 0, 3, 10]),
        "repeat": st.sampled_from([None, (2, 3), (3, 3), (1, 2)]),
        "clear_after_us": st.sampled_from([None, 2, 7]),
        "flap": st.sampled_from([None, (1, 5), (2, 8), (3, 30)]),
    }
)


def definition_of(given_: dict[str, Any]) -> tuple[Definition, Rules]:
    own = given_["step_clears"]
    steps = [
        (lambda row, n=n: row["wheres"][n], (lambda row, n=n: row["clears"][n]) if own else None)
        for n in range(given_["top"])
    ]
    common = {name: given_[name] for name in ("for_us", "repeat", "clear_after_us", "flap")}
    clear = (lambda row: row["clear"]) if given_["clear"] else None
    rules = Rules(top=given_["top"], keeps=clear is None and not own, **common)
    return Definition(steps=steps, clear=clear, **common), rules


def row_of(definition: Definition, event: Event, now_us: int, offset: int) -> Row:
    row = {"wheres": event.wheres, "clears": event.clears, "clear": event.clear}
    level = stays = 0
    for n, (where, clear) in enumerate(definition.steps, 1):
        if where(row):
            level = n
        first = n == 1 and definition.clear is not None
        if not (clear(row) if clear else where(row) is False and not first):
            stays = n
    if definition.clear and definition.clear(row):
        stays = 0
    cancels = all(where(row) is False for where, _ in definition.steps)
    return Row(level, cancels, stays, event.at, now_us, 0, offset)


@settings(max_examples=600, deadline=None)
@given(RULES, EVENTS, st.integers(0, 100))
def test_equal_to_the_oracle(given_: dict[str, Any], events: list[Event], end: int) -> None:
    """The machine looks at a key only when a row of it comes, the oracle always: nothing may come of that."""
    definition, rules = definition_of(given_)
    oracle = Oracle(definition)
    memories: dict[str, Memory] = {}
    found: list[Any] = []
    now = 0
    for offset, event in enumerate(events):
        now = max(now, event.at)
        if event.key is None:
            oracle.tick(now)
            continue
        row = {"ts": event.at, "_partition": 0, "_offset": offset, "wheres": event.wheres}
        oracle.row(event.key, {**row, "clears": event.clears, "clear": event.clear})
        memory = from_json(to_json(memories.get(event.key, NOTHING)))
        memories[event.key], entered = advance(rules, memory, row_of(definition, event, now, offset))
        found += [(event.key, each) for each in entered]
    oracle.tick(now + end)
    for key, memory in memories.items():
        memories[key], entered = expire(rules, memory, now + end)
        found += [(key, each) for each in entered]
        due = deadline(rules, memories[key])
        assert due is None or due > now + end
    told = [(key, str(e.state), e.at_us, e.partition, e.offset, e.level) for key, e in found]
    assert by_key(told) == by_key(oracle.told)
    names = {key: [tuple(e.shown) for k, e in found if k == key] for key in memories}
    assert names == {
        key: [name for each, name in zip(oracle.told, oracle.names, strict=True) if each[0] == key]
        for key in memories
    }
    # Every transition has a name of its own, by which it is written once.
    assert len({(key, e.state, e.partition, e.offset) for key, e in found}) == len(found)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abab."), st.integers(1, 60)), max_size=40), RULES)
def test_silence_is_equal_to_the_oracle(events: list[tuple[str, int]], given_: dict[str, Any]) -> None:
    rules = Rules(silent_us=7, flap=given_["flap"])
    oracle = Oracle(Definition(silent_us=7, flap=given_["flap"]))
    memories: dict[str, Memory] = {}
    found: list[Any] = []
    now = 0
    for offset, (key, at) in enumerate(events):
        now = max(now, at)
        if key == ".":
            oracle.tick(now)
            continue
        oracle.row(key, {"ts": at, "_partition": 0, "_offset": offset})
        memories[key], entered = advance(
            rules, memories.get(key, NOTHING), Row(1, False, 1, at, now, 0, offset)
        )
        found += [(key, each) for each in entered]
    oracle.tick(now + 100)
    for key, memory in memories.items():
        found += [(key, each) for each in expire(rules, memory, now + 100)[1]]
    told = [(key, str(e.state), e.at_us, e.partition, e.offset, e.level) for key, e in found]
    assert by_key(told) == by_key(oracle.told)

"""The alarm state machine against a reference that looks at a key's whole history at once."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.alerts.machine import Instance, State, advance


@dataclass(frozen=True)
class Row:
    where: bool | None
    clear: bool | None  # None also where there is no clear condition and where is NULL
    at_us: int


def run(rows: list[Row], for_us: int) -> list[tuple[int, State]]:
    """(row number, state entered) of every transition."""
    instance: Instance | None = None
    found = []
    for offset, row in enumerate(rows):
        instance, entered = advance(
            instance,
            raises=row.where is True,
            cancels=row.where is False,
            resolves=row.clear is True,
            at_us=row.at_us,
            partition=0,
            offset=offset,
            for_us=for_us,
        )
        found += [(offset, state) for state in entered]
    return found


def simple(rows: str, for_us: int, step_us: int = 1) -> list[tuple[int, str]]:
    """Rows as letters: T (where TRUE), F (where FALSE, clear TRUE), m (where FALSE, clear FALSE), N (both NULL)."""
    kinds = {"T": (True, False), "F": (False, True), "m": (False, False), "N": (None, None)}
    found = run([Row(*kinds[kind], n * step_us) for n, kind in enumerate(rows)], for_us)
    return [(row, state.value) for row, state in found]


@pytest.mark.parametrize(
    ("rows", "for_us", "expected"),
    [
        ("FNm", 0, []),
        ("T", 0, [(0, "pending"), (0, "firing")]),
        ("TTF", 0, [(0, "pending"), (0, "firing"), (2, "resolved")]),
        ("TmF", 0, [(0, "pending"), (0, "firing"), (2, "resolved")]),
        ("TTTT", 2, [(0, "pending"), (2, "firing")]),
        ("TmT", 2, [(0, "pending"), (1, "inactive"), (2, "pending")]),
        ("TNT", 2, [(0, "pending"), (2, "firing")]),
        ("TNNN", 2, [(0, "pending")]),
        ("TTTNNT", 2, [(0, "pending"), (2, "firing")]),
        (
            "TFTF",
            0,
            [(0, "pending"), (0, "firing"), (1, "resolved"), (2, "pending"), (2, "firing"), (3, "resolved")],
        ),
    ],
)
def test_examples(rows: str, for_us: int, expected: list[tuple[int, str]]) -> None:
    assert simple(rows, for_us) == expected


def test_a_late_reading_neither_restarts_nor_fires() -> None:
    rows = [Row(True, False, 100), Row(True, False, 40), Row(True, False, 109), Row(True, False, 110)]
    assert run(rows, 10) == [(0, State.PENDING), (3, State.FIRING)]


def test_a_late_reading_cancels_and_resolves() -> None:
    assert run([Row(True, False, 100), Row(False, True, 40)], 10)[-1] == (1, State.INACTIVE)
    assert run([Row(True, False, 100), Row(False, True, 40)], 0)[-1] == (1, State.RESOLVED)


def test_a_row_that_resolves_does_not_raise_again() -> None:
    both = Row(True, True, 0)
    states = [state for _, state in run([both, both, both], 0)]
    assert states == [State.PENDING, State.FIRING, State.RESOLVED, State.PENDING, State.FIRING]


ROWS = st.lists(
    st.builds(
        Row,
        st.sampled_from([True, True, False, None]),
        st.sampled_from([True, False, False, None]),
        st.integers(0, 30),
    ),
    max_size=40,
)


@given(ROWS, st.sampled_from([0, 1, 5, 20]))
def test_equal_to_the_reference(rows: list[Row], for_us: int) -> None:
    assert run(rows, for_us) == reference(rows, for_us)


def reference(rows: list[Row], for_us: int) -> list[tuple[int, State]]:
    """The definition, episode by episode: looks ahead in the whole list instead of keeping a state."""
    found: list[tuple[int, State]] = []
    start = next((n for n, row in enumerate(rows) if row.where is True), None)
    while start is not None:
        found.append((start, State.PENDING))
        fires = next(
            (
                n
                for n in range(start, len(rows))
                if rows[n].where is True and rows[n].at_us >= rows[start].at_us + for_us
            ),
            len(rows),
        )
        cancelled = next((n for n in range(start + 1, len(rows)) if rows[n].where is False), len(rows))
        if cancelled < fires:
            found.append((cancelled, State.INACTIVE))
            end = cancelled
        elif fires < len(rows):
            found.append((fires, State.FIRING))
            end = next((n for n in range(fires + 1, len(rows)) if rows[n].clear is True), len(rows))
            if end < len(rows):
                found.append((end, State.RESOLVED))
        else:
            return found
        start = next((n for n in range(end + 1, len(rows)) if rows[n].where is True), None)
    return found

"""Watermarks: examples, and that any cut of the rows gives the same rises at the same rows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headwater.streams.shapes import FixedGrid
from headwater.streams.watermarks import NONE, Watermarks


def take(marks: Watermarks, rows: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """(rows taken, boundary) at each rise."""
    partition = np.array([p for p, _ in rows], dtype=np.uint16)
    ts = np.array([t for _, t in rows], dtype=np.int64)
    start, rises = 0, []
    while start < len(rows):
        taken, rose = marks.take(partition[start:], ts[start:])
        start += taken
        if rose:
            rises.append((start, marks.boundary))
    return rises


def test_the_boundary_rises_at_the_row_that_reaches_a_window_end() -> None:
    marks = Watermarks(1, lateness_us=3, grid=FixedGrid(10))
    assert take(marks, [(0, 5), (0, 12), (0, 13), (0, 20), (0, 33)]) == [(1, 0), (3, 10), (5, 30)]
    assert (marks.watermark, marks.boundary) == (30, 30)


def test_a_partition_without_rows_holds_it_until_it_is_idle() -> None:
    marks = Watermarks(2, lateness_us=0, grid=FixedGrid(10))
    assert take(marks, [(0, 25)]) == []
    assert marks.watermark == NONE
    assert marks.set_idle([False, True])
    assert marks.boundary == 20
    assert take(marks, [(1, 3), (0, 40)]) == []
    assert marks.watermark == 25
    assert not marks.idle.any()


def test_when_all_become_idle_it_stays() -> None:
    marks = Watermarks(2, lateness_us=0, grid=FixedGrid(10))
    assert take(marks, [(0, 25), (1, 12)]) == [(2, 10)]
    assert not marks.set_idle([True, True])
    assert marks.watermark == 12
    assert take(marks, [(0, 26)]) == [(1, 20)]


def test_partitions_without_any_row_do_not_hold_it_for_good() -> None:
    marks = Watermarks(3, lateness_us=0, grid=FixedGrid(10))
    assert take(marks, [(0, 25)]) == []
    assert marks.set_idle([True, True, True])
    assert marks.watermark == 25


def test_a_row_without_time_moves_nothing() -> None:
    marks = Watermarks(1, lateness_us=5, grid=FixedGrid(10))
    assert take(marks, [(0, NONE), (0, 25), (0, NONE)]) == [(2, 20)]
    assert marks.watermark == 20


def naive(
    rows: list[tuple[int, int]], idle_at: dict[int, list[bool]], partitions: int, lateness: int, size: int
) -> tuple[list[tuple[int, int]], int]:
    """Row by row: rises (after how many rows, boundary) and the watermark."""
    highest, idle = [NONE] * partitions, [False] * partitions
    watermark, rises = NONE, []

    def update(after: int, counted: list[int]) -> None:
        nonlocal watermark
        if counted and all(highest[p] != NONE for p in counted):
            before = watermark // size
            watermark = max(watermark, min(highest[p] for p in counted) - lateness)
            if watermark // size > before:
                rises.append((after, watermark // size * size))

    for at, (partition, ts) in enumerate(rows):
        if at in idle_at:
            active = [p for p in range(partitions) if not idle_at[at][p]]
            update(at, active or [p for p in range(partitions) if not idle[p] and highest[p] != NONE])
            idle = list(idle_at[at])
        highest[partition] = max(highest[partition], ts)
        idle[partition] = False
        update(at + 1, [p for p in range(partitions) if not idle[p]])
    return rises, watermark


@given(st.data())
def test_any_cut_gives_the_same_rises(data: st.DataObject) -> None:
    partitions = data.draw(st.integers(1, 4))
    count = data.draw(st.sampled_from([5, 40, 700]))
    rows = data.draw(
        st.lists(st.tuples(st.integers(0, partitions - 1), st.integers(-50, 300)), max_size=count)
        | st.builds(
            lambda seed: [
                (int(p), int(t))
                for p, t in zip(
                    np.random.default_rng(seed).integers(0, partitions, count),
                    np.arange(count) + np.random.default_rng(seed + 1).integers(-30, 30, count),
                    strict=True,
                )
            ],
            st.integers(0, 1000),
        )
    )
    lateness, size = data.draw(st.sampled_from([0, 7, 100])), data.draw(st.sampled_from([1, 10, 64]))
    flags = st.lists(st.booleans(), min_size=partitions, max_size=partitions)
    idle_at = data.draw(st.dictionaries(st.integers(0, max(len(rows) - 1, 0)), flags, max_size=3))
    cuts = sorted({0, len(rows), *idle_at, *data.draw(st.lists(st.integers(0, len(rows)), max_size=6))})

    marks = Watermarks(partitions, lateness, FixedGrid(size))
    rises: list[tuple[int, int]] = []
    for start, end in pairwise(cuts):
        if start in idle_at and marks.set_idle(idle_at[start]):
            rises.append((start, marks.boundary))
        rises += [(start + after, boundary) for after, boundary in take(marks, rows[start:end])]
    assert (rises, marks.watermark) == naive(rows, idle_at if rows else {}, partitions, lateness, size)


@given(
    rows=st.lists(st.tuples(st.integers(0, 2), st.integers(-50, 300)), max_size=60),
    idle=st.lists(st.booleans(), min_size=3, max_size=3),
    cut=st.integers(0, 60),
)
def test_all_rows_at_once_see_what_each_row_alone_would(
    rows: list[tuple[int, int]], idle: list[bool], cut: int
) -> None:
    partition = np.array([p for p, _ in rows], dtype=np.uint16)
    ts = np.array([t for _, t in rows], dtype=np.int64)
    marks, single = (Watermarks(3, 7, FixedGrid(1)) for _ in range(2))
    found = marks.take_all(partition[:cut], ts[:cut]).tolist()
    marks.set_idle(idle)
    found += marks.take_all(partition[cut:], ts[cut:]).tolist()
    expected = []
    for at in range(len(rows)):
        if at == cut:
            single.set_idle(idle)
        expected.append(single.watermark)
        single.take(partition[at : at + 1], ts[at : at + 1])
    if len(rows) <= cut:
        single.set_idle(idle)
    assert found == expected
    assert (marks.watermark, marks.highest.tolist()) == (single.watermark, single.highest.tolist())

"""Texts as numbers: the same order and the same equality as the texts themselves, or none."""

from __future__ import annotations

from itertools import pairwise

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from headwater.store.keynumbers import numbers

_LIMIT = 2**62


def test_names_of_one_length() -> None:
    found = numbers(pa.array(["d-002", "d-000", "d-010", "d-002"]), _LIMIT)
    assert found is not None
    assert found.argsort(kind="stable").tolist() == [1, 0, 3, 2]
    assert found[0] == found[3]


def test_a_beginning_comes_before_the_longer_text() -> None:
    found = numbers(pa.array(["d-10", "d-1", "d-2", ""]), _LIMIT)
    assert found is not None
    assert found.argsort().tolist() == [3, 1, 0, 2]


def test_a_slice_is_numbered_by_its_own_rows() -> None:
    found = numbers(pa.array(["zzzzz", "a1", "a3", "a2", "zz"]).slice(1, 3), _LIMIT)
    assert found is not None
    assert found.tolist() == [0, 2, 1]


def test_what_cannot_be_numbered() -> None:
    assert numbers(pa.array([], pa.string()), _LIMIT) is None
    assert numbers(pa.array(["a", None]), _LIMIT) is None
    assert numbers(pa.array(["a", "a\0"]), _LIMIT) is None
    assert numbers(pa.array(["a" * 65, "b"]), _LIMIT) is None
    # Ten digits twice are 100 numbers.
    texts = pa.array(["00", "99"])
    assert numbers(texts, 99) is None
    assert numbers(texts, 100) is not None


@given(st.lists(st.text(max_size=6), min_size=1), st.integers(1, 2**62))
def test_order_and_equality_are_those_of_the_bytes(texts: list[str], limit: int) -> None:
    found = numbers(pa.array(texts, pa.string()), limit)
    if found is None:
        return
    assert found.min() >= 0
    assert found.max() < limit
    ordered = sorted(zip((text.encode() for text in texts), found.tolist(), strict=True))
    for (text, number), (next_text, next_number) in pairwise(ordered):
        assert (number == next_number) if text == next_text else (number < next_number)

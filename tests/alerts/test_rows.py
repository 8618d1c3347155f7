"""What is remembered of every key: rates equal to a plain loop, records that come back, and damage that is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.alerts.rows import NEVER, KeyRows, Seen, Values, rates
from headwater.errors import DataDirectoryError

ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(-50, 50) | st.just(2**62), st.floats(-1e6, 1e6)), max_size=60
)


@settings(max_examples=300, deadline=None)
@given(ROWS, st.integers(0, 60))
def test_rates_are_those_of_a_plain_loop_whatever_the_batches(
    rows: list[tuple[int, int, float]], cut: int
) -> None:
    known = KeyRows()
    for number in range(5):
        assert known.add(f"k{number}") == number
    found: list[float | None] = []
    for part in (rows[:cut], rows[cut:]):
        if not part:
            continue
        numbers, at_us, values = (np.array(column) for column in zip(*part, strict=True))
        rate, mask, after = rates(numbers.astype(np.int64), at_us.astype(np.int64), values, known, 1000)
        known.put_values(after)
        found += [float(one) if there else None for one, there in zip(rate, mask, strict=True)]
    last: dict[int, tuple[int, float]] = {}
    wanted: list[float | None] = []
    for key, at, value in rows:
        before = last.get(key)
        wanted.append(
            None
            if before is None or at <= before[0]
            else (value - before[1]) * (1000 / float(at - before[0]))
        )
        if before is None or at > before[0]:
            last[key] = (at, value)
    assert found == wanted
    assert [int(at) for at in known.column("at_us")] == [last.get(key, (NEVER, 0))[0] for key in range(5)]


def test_records_come_back_in_their_order() -> None:
    rows, records = KeyRows(), []

    def commit() -> None:
        record = rows.record()
        if record is not None:
            records.append(record)
        rows.recorded()

    commit()
    for number in range(3000):
        rows.add(f'{{"device":"d{number}"}}')
    seen = np.arange(1, 3001)
    rows.put_seen(Seen(np.arange(3000), seen, (seen % 4).astype(np.uint16), (seen * 2).astype(np.uint64)))
    commit()
    rows.put_values(Values(np.array([7]), np.array([11]), np.array([1.5])))
    commit()
    rows.add("new")
    commit()
    commit()
    assert len(records) == 3
    assert len(records[1]) < 2000 < len(records[0])
    for again in (KeyRows.restored("hot", records), KeyRows.restored("hot", [rows.whole()])):
        assert again.texts == rows.texts
        for name in ("seen_us", "partition", "offset", "at_us", "value"):
            assert np.array_equal(again.column(name), rows.column(name))
        assert again.record() is None
    again.delay(100)
    assert again.column("seen_us")[:2].tolist() == [101, 102]
    assert again.column("seen_us")[-1] == 0


@pytest.mark.parametrize("at", [0, 4, 8, 40, -1])
def test_damage_is_named(at: int) -> None:
    rows = KeyRows()
    rows.add("a")
    record = bytearray(rows.whole())
    record[at] ^= 1
    with pytest.raises(DataDirectoryError, match="alarm 'hot' remembers of its keys"):
        KeyRows.restored("hot", [bytes(record)])

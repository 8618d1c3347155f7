"""Buffers and their budget: what nobody set shrinks, what somebody set stays, and what cannot fit is said."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater import config
from headwater.budget import Buffer, fit
from headwater.errors import ConfigError

QUERIES = '[streams.t]\ntopic = "dt/{device}"\nfields = { x = "double" }\n' + "".join(
    f"[queries.q{n}]\nsql = '''SELECT device, window_start, window_end, COUNT(*) AS n FROM "
    "TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' MINUTES)) GROUP BY device, window_start, window_end'''\n"
    for n in range(3)
)

buffers = st.lists(
    st.builds(
        Buffer,
        name=st.uuids().map(str),
        bytes=st.integers(1000, 10**10),
        count=st.integers(0, 5),
        floor=st.integers(1, 1000),
        fixed=st.booleans(),
    ),
    max_size=6,
)


@given(st.integers(0, 10**11), st.integers(0, 10**9), buffers)
def test_what_is_given_fits_and_what_is_refused_could_not(
    budget: int, program: int, given: list[Buffer]
) -> None:
    least = program + sum((each.bytes if each.fixed else each.floor) * each.count for each in given)
    if least > budget:
        with pytest.raises(ConfigError, match=f"raise it to {least}"):
            fit(budget, program, given)
        return
    sizes = fit(budget, program, given)
    assert program + sum(sizes[each.name] * each.count for each in given) <= budget
    for each in given:
        assert (each.bytes if each.fixed else each.floor) <= sizes[each.name] <= each.bytes


def load(tmp_path: Path, text: str, *overrides: str) -> config.Settings:
    path = tmp_path / "headwater.toml"
    path.write_text(text, encoding="utf-8")
    return config.load(path, overrides, {})


def test_settings_shrink_to_the_budget_but_not_what_is_set(tmp_path: Path) -> None:
    free = load(tmp_path, QUERIES)
    assert free.memory_bound > 7 << 30
    held = load(tmp_path, QUERIES, f"memory_budget={2 << 30}", f"query.memory_bytes={128 << 20}")
    assert held.memory_bound <= 2 << 30
    assert held.query.memory_bytes == 128 << 20
    assert held.engine.state_bytes < free.engine.state_bytes
    assert held.store.flush_bytes < free.store.flush_bytes
    assert held.mqtt.port == free.mqtt.port


def test_a_budget_that_cannot_hold_what_is_set_says_what_would(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"memory_budget = 500000000 is too small.*raise it to \d+"):
        load(tmp_path, QUERIES, "memory_budget=500000000", f"store.flush_bytes={1 << 30}")

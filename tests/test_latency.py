"""Histograms of latencies beside exact quantiles."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.latency import BOUNDS_S, Latency

NOW_US = 1_800_000_000_000_000


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 50_000_000), min_size=1, max_size=50), min_size=1, max_size=20),
    st.floats(0.01, 1),
)
def test_quantiles_are_exact_up_to_a_bucket(batches: list[list[int]], part: float) -> None:
    latency = Latency()
    for ages in batches:
        latency.observe(pa.array([NOW_US - age for age in ages], pa.timestamp("us", "UTC")), NOW_US)
    flat = sorted(age / 1e6 for ages in batches for age in ages)
    exact = flat[max(math.ceil(part * len(flat)) - 1, 0)]
    assert latency.count == len(flat)
    assert max(exact, BOUNDS_S[0]) <= latency.quantile(part) * (1 + 1e-9)
    assert latency.quantile(part) <= max(exact * 1.2, BOUNDS_S[0]) * (1 + 1e-9)


def test_a_large_batch_is_sampled_and_counts_in_full() -> None:
    latency = Latency()
    ages = np.arange(100_000)
    latency.observe(pa.array(NOW_US - ages), NOW_US)
    assert abs(latency.count - 100_000) <= 1_000
    assert 0.048 <= latency.quantile(0.5) <= 0.062


def test_what_has_no_time_or_a_later_one_does_no_harm() -> None:
    latency = Latency()
    latency.observe(pa.array([None, NOW_US + 5], pa.int64()), NOW_US)
    latency.observe(pa.array([], pa.int64()), NOW_US)
    assert latency.count <= 2
    assert latency.quantile(1) == BOUNDS_S[0]
    buckets, _ = latency.buckets()
    assert buckets[-1] == ("+Inf", latency.count)

"""How long readings take from their arrival to a later point: a histogram for one such point."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

#: Upper bounds of the buckets, seconds: from 1 ms, each a fifth more than the one before, to a minute.
BOUNDS_S: Final = tuple(0.001 * 1.2**step for step in range(61))

#: Of a larger batch every so-manieth row stands for the rows around it: they came together.
_SAMPLES: Final = 256


class Latency:
    """Counts per bucket. One thread observes at a time; reading beside it is safe.

    >>> latency = Latency()
    >>> latency.observe(pa.array([0, 900_000], pa.int64()), now_us=1_000_000)
    >>> latency.count, round(latency.quantile(0.5), 2), round(latency.quantile(1), 2)
    (2, 0.11, 1.02)
    """

    def __init__(self) -> None:
        self._bounds = np.array(BOUNDS_S)
        self._counts = np.zeros(len(BOUNDS_S) + 1, np.int64)
        self._sum_s = 0.0

    def observe(self, arrived: pa.Array, now_us: int) -> None:
        """Readings that have come to the point now.

        arrived: times of arrival, microseconds UTC (int64 or timestamp); NULL where there is none
        """
        stride = max(1, len(arrived) // _SAMPLES)
        sample = arrived.take(pa.array(np.arange(0, len(arrived), stride))) if stride > 1 else arrived
        times = sample.drop_null().cast(pa.int64()).to_numpy(zero_copy_only=False)
        if not len(times):
            return
        # A clock that was set back makes no negative ages.
        ages = np.maximum(now_us - times, 0) / 1e6
        weight = len(arrived) / len(sample)
        found = np.bincount(np.searchsorted(self._bounds, ages), minlength=len(self._counts))
        self._counts += np.rint(found * weight).astype(np.int64)
        self._sum_s += float(ages.sum()) * weight

    @property
    def count(self) -> int:
        """Readings observed."""
        return int(self._counts.sum())

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Bounds with the cumulated counts, as Prometheus has them, and the sum of all seconds."""
        total = np.cumsum(self._counts).tolist()
        names = [*(f"{bound:.6g}" for bound in BOUNDS_S), "+Inf"]
        return list(zip(names, map(float, total), strict=True)), self._sum_s

    def quantile(self, part: float) -> float:
        """Seconds within which that part of the readings was there, at most a fifth too long; 0 without readings."""
        total = np.cumsum(self._counts)
        if not total[-1]:
            return 0.0
        at = int(np.searchsorted(total, part * total[-1]))
        return BOUNDS_S[at] if at < len(BOUNDS_S) else float("inf")

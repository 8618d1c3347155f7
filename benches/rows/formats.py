"""Row 5: decode rate of each payload format and shape, from the timings of the Rust core."""

from __future__ import annotations

from dataclasses import asdict

from benches.bench import Bench
from benches.criterion import timings
from benches.table import SHOWN, Row, not_measured

WHAT = "decode rate of each format and shape, one core"
REACH = "shown for each"


def run(bench: Bench) -> list[Row]:
    """Each as a row."""
    found = timings("decode", seconds=2.0 if bench.rounds >= 5 else 0.5)
    if isinstance(found, str):
        return [not_measured("5", WHAT, REACH, found)]
    rows = []
    for at, (name, timing) in enumerate(found.items()):
        text = f"{timing.readings_s / 1e6:.2f}M readings/s, {1e6 / timing.readings_s:.3f} us each"
        if timing.bytes_s is not None:
            text += f", {timing.bytes_s / 1e6:,.0f} MB/s"
        what = f"decode {name.replace('_', ' ')}, one core"
        rows.append(Row(f"5.{at + 1}", what, REACH, text, SHOWN, asdict(timing)))
    return rows

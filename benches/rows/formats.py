"""Row 5: decode rate of each payload format and shape, from the timings of the Rust core."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import asdict, dataclass

from benches.bench import Bench
from benches.table import SHOWN, Row, not_measured

WHAT = "decode rate of each format and shape, one core"
REACH = "shown for each"
_TIME = re.compile(r"^(\S+)?\s+time:\s+\[\S+ \S+ (\S+) (ns|µs|us|ms|s) \S+ \S+\]")
_BYTES = re.compile(r"^\s+thrpt:\s+\[\S+ \S+ (\S+) (KiB|MiB|GiB)/s \S+ \S+\]")
_SECONDS = {"ns": 1e-9, "µs": 1e-6, "us": 1e-6, "ms": 1e-3, "s": 1.0}
_SIZES = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
#: A payload with many readings says so in its name: json_array_of_100.
_MANY = re.compile(r"_of_(\d+)")


@dataclass
class Timing:
    """Of one payload: seconds, readings in it, and bytes a second where they are told."""

    seconds: float
    readings: int
    bytes_s: float | None = None

    @property
    def readings_s(self) -> float:
        """Readings a second on one core."""
        return self.readings / self.seconds


def run(bench: Bench) -> list[Row]:
    """`cargo bench`, parsed."""
    cargo = shutil.which("cargo")
    if cargo is None:
        return [not_measured("5", WHAT, REACH, "no cargo on the PATH")]
    seconds = "2" if bench.rounds >= 5 else "0.5"
    criterion = ["--", "--noplot", "--warm-up-time", "0.3", "--measurement-time", seconds]
    command = [cargo, "bench", "--quiet", "--package", "headwater-core", "--bench", "decode", *criterion]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    timings = parse(done.stdout)
    if done.returncode != 0 or not timings:
        why = " ".join(done.stderr.split())[-200:]
        return [not_measured("5", WHAT, REACH, f"cargo bench ended with {done.returncode}: {why}")]
    rows = []
    for at, (name, timing) in enumerate(timings.items()):
        found = f"{timing.readings_s / 1e6:.2f}M readings/s, {1e6 / timing.readings_s:.3f} us each"
        if timing.bytes_s is not None:
            found += f", {timing.bytes_s / 1e6:,.0f} MB/s"
        what = f"decode {name.replace('_', ' ')}, one core"
        rows.append(Row(f"5.{at + 1}", what, REACH, found, SHOWN, asdict(timing)))
    return rows


def parse(text: str) -> dict[str, Timing]:
    """Every timing that criterion printed, in its order, by its name without the group."""
    timings: dict[str, Timing] = {}
    name = latest = ""
    for line in text.splitlines():
        if re.fullmatch(r"\S+/\S+", line):
            name = line
        if timed := _TIME.match(line):
            latest = (timed[1] or name).partition("/")[2]
            many = _MANY.search(latest)
            readings = int(many[1]) if many else 1
            timings[latest] = Timing(float(timed[2]) * _SECONDS[timed[3]], readings)
        elif (size := _BYTES.match(line)) and latest and timings[latest].bytes_s is None:
            timings[latest].bytes_s = float(size[1]) * _SIZES[size[2]]
    return timings

"""Timings of the Rust core: `cargo bench`, run and parsed."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

_TIME = re.compile(r"^(\S+/\S.*?)?\s+time:\s+\[\S+ \S+ (\S+) (ns|µs|us|ms|s) \S+ \S+\]")
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


def timings(name: str, only: str = "", seconds: float = 2.0) -> dict[str, Timing] | str:
    """Those of one file of `crates/core/benches`, or why there are none.

    only:    a regular expression of names; empty: all
    seconds: of measuring each
    """
    cargo = shutil.which("cargo")
    if cargo is None:
        return "no cargo on the PATH"
    criterion = [
        "--noplot",
        "--warm-up-time",
        "0.3",
        "--measurement-time",
        str(seconds),
        *([only] if only else []),
    ]
    command = [cargo, "bench", "--quiet", "--package", "headwater-core", "--bench", name, "--", *criterion]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = parse(done.stdout)
    if done.returncode != 0 or not found:
        why = " ".join(done.stderr.split())[-200:]
        return f"cargo bench ended with {done.returncode}: {why}"
    return found


def parse(text: str) -> dict[str, Timing]:
    """Every timing that criterion printed, in its order, by its name without the group."""
    found: dict[str, Timing] = {}
    name = latest = ""
    for line in text.splitlines():
        if re.fullmatch(r"\S+/\S.*", line) and "time:" not in line:
            name = line
        if timed := _TIME.match(line):
            latest = (timed[1] or name).partition("/")[2]
            many = _MANY.search(latest)
            readings = int(many[1]) if many else 1
            found[latest] = Timing(float(timed[2]) * _SECONDS[timed[3]], readings)
        elif (size := _BYTES.match(line)) and latest and found[latest].bytes_s is None:
            found[latest].bytes_s = float(size[1]) * _SIZES[size[2]]
    return found

"""Row 5: decode rate of each payload format and shape, from the timings of the Rust core."""

from __future__ import annotations

import re
import shutil
import subprocess

from benches.bench import Bench
from benches.table import SHOWN, Row, not_measured

WHAT = "decode rate of each format and shape, one core"
REACH = "shown for each"
_RATE = re.compile(r"thrpt:\s+\[\S+ \S+ (\S+) (\S+) \S+ \S+\]")
_UNITS = {"Kelem/s": 1e3, "Melem/s": 1e6, "Gelem/s": 1e9, "elem/s": 1.0}


def run(bench: Bench) -> list[Row]:
    """`cargo bench`, parsed."""
    cargo = shutil.which("cargo")
    if cargo is None:
        return [not_measured("5", WHAT, REACH, "no cargo on the PATH")]
    seconds = "2" if bench.rounds >= 5 else "0.5"
    timing = ["--", "--noplot", "--warm-up-time", "0.3", "--measurement-time", seconds]
    command = [cargo, "bench", "--quiet", "--package", "headwater-core", "--bench", "decode", *timing]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rates = parse(done.stdout)
    if done.returncode != 0 or not rates:
        return [not_measured("5", WHAT, REACH, f"cargo bench failed: {done.stderr.strip()[-200:]}")]
    rows = []
    for at, (name, rate) in enumerate(rates.items()):
        letter = chr(ord("a") + at) if at < 26 else f"z{at}"
        found = f"{rate / 1e6:.2f}M readings/s, {1e6 / rate:.3f} us each"
        rows.append(Row(f"5{letter}", f"decode {name}", REACH, found, SHOWN, {"readings_s": rate}))
    return rows


def parse(text: str) -> dict[str, float]:
    """Elements per second of each timing that criterion printed; those without a throughput are left out."""
    rates, name = {}, ""
    for line in text.splitlines():
        if line and not line.startswith(" ") and "time:" not in line and "Benchmarking" not in line:
            name = line.strip()
        timing = re.match(r"^(\S.*?)?\s+time:", line)
        if timing and timing[1]:
            name = timing[1].strip()
        rate = _RATE.search(line)
        if rate and rate[2] in _UNITS:
            rates[name.partition("/")[2] or name] = float(rate[1]) * _UNITS[rate[2]]
    return rates

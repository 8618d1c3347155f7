"""Row 2: everything on for a minute, at the rate to sustain and flat out: store, a window over three fields, ten rules.

Flat out a closed loop takes in what the gateway can, so lag may grow there: the disk absorbs it. Lag is what the window
query has not read of the rows in the log; it is sampled every two seconds, and the slope over the second half of a run
tells whether it grows. Memory rises and falls with each file that the store writes, so the mean of a run's last quarter
is compared with that of the quarter before. The rows are counted by a query at the end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import numpy as np

from benches import peers
from benches.bench import NO_YARDSTICK, Bench
from benches.server import TELEMETRY, Server, profile
from benches.table import Row, judged, not_measured

RATE = 1e6
#: A little more, so that the last answers do not decide.
OFFERED = 1.03e6
#: Ours: over the second half of the run lag may grow by so much of what arrives, or stay below so many seconds of it;
#: memory may grow by so much.
LAG_SHARE, LAG_S, MEMORY_SHARE = 0.01, 0.5, 0.10
SAMPLE_S = 2.0
WHAT = "whole pipeline on, 1M devices: store, one 5-minute window over 3 fields, 10 alarm rules"
FLAT_OUT = f"{WHAT}; flat out"
FLAT_REACH = f">= {RATE:,.0f} readings/s, every row read back"
Load = Callable[[Server, float], AbstractContextManager["subprocess.Popen[str]"]]
QUERY = """
[queries.temp_5m]
sql = \"\"\"SELECT device, window_start, window_end, AVG(temperature) AS t, MAX(humidity) AS h, MIN(battery) AS b
         FROM TABLE(TUMBLE(TABLE telemetry, DESCRIPTOR(ts), INTERVAL '5' MINUTES))
         GROUP BY device, window_start, window_end\"\"\"
"""
LOAD = {"conns": 50, "qos": 1, "window": 100, "devices": 20_000}


def config() -> str:
    """The stream, the window and ten rules that the yardstick's readings (20 to 30, 40 to 50, 3 to 4) do not raise."""
    fields = ("temperature", "humidity", "battery")
    rules = [
        f'[alarms.rule_{at}]\non = "telemetry"\nwhere = "{fields[at % 3]} > {80 + at}"\n' for at in range(10)
    ]
    return TELEMETRY + QUERY + "".join(rules)


def run(bench: Bench) -> list[Row]:
    """A long run at the rate to sustain, by our own load generator, and one flat out, by the yardstick's."""
    reach = (
        f">= {RATE:,.0f} readings/s for {bench.long_secs:g} s, every row read back, lag bounded, memory flat"
    )
    rows = [run_one(bench, "2a", f"{WHAT}; {OFFERED:,.0f} readings/s offered", reach, offered)]
    if bench.yardstick is None:
        return [*rows, not_measured("2b", FLAT_OUT, FLAT_REACH, NO_YARDSTICK)]
    return [*rows, run_one(bench, "2b", FLAT_OUT, FLAT_REACH, partial(flat_out, bench.yardstick))]


def run_one(bench: Bench, number: str, what: str, reach: str, load: Load) -> Row:
    """One long run under `load`."""
    with Server(bench.scratch, config()) as server:
        before = server.cpu_by_thread()
        with load(server, bench.long_secs) as process:
            samples = sample(server, bench.long_secs)
            printed = process.communicate()
        after = server.cpu_by_thread()
        lag_rows = lag(server.metrics())
        result = figures(*printed)
        begin, counted = time.monotonic(), -1
        while counted < result["acked"] and time.monotonic() - begin < 120:
            counted = server.query("SELECT COUNT(*) FROM telemetry")[0][0]
        visible_s = time.monotonic() - begin
        store_bytes = bytes_per_row(server.metrics())
    half = samples[len(samples) // 2 :]
    slope = growth([(at, rows) for at, rows, _ in half])
    memory = [rss for _, _, rss in half]
    quarters = [int(np.mean(quarter)) for quarter in np.array_split(memory, 2) if len(quarter)]
    flat = quarters[-1] <= quarters[0] * (1 + MEMORY_SHARE)
    worst = max(rows for _, rows, _ in half)
    bounded = slope <= LAG_SHARE * result["msgs_s"] or worst <= LAG_S * result["msgs_s"]
    missing = result["acked"] - counted
    server_s = sum(after.values()) - sum(before.values())
    cpu_us = server_s / result["acked"] * 1e6
    found = [
        f"{result['msgs_s']:,.0f} readings/s for {bench.long_secs:g} s at {cpu_us:.2f} us",
        f"{counted:,} rows counted, {missing} missing, all visible {visible_s:.1f} s after the last acknowledgement",
        f"lag at the end {lag_rows:,.0f} rows, at worst {worst:,.0f}, growing {slope:,.0f} a second",
        f"memory {samples[0][2] >> 20} MiB at first, {quarters[0] >> 20} and {quarters[-1] >> 20} in the last quarters",
    ]
    wanted = [(result["msgs_s"] >= RATE, "the rate"), (missing == 0, "rows read back")]
    if number == "2a":
        wanted += [(bounded, "the lag grows"), (flat, "memory grows")]
    short = [text for holds, text in wanted if not holds]
    cores = [f"{seconds / result['took_s']:.2f}" for seconds in (server_s, result["gen_cpu_s"])]
    notes = [
        profile(before, after, result["acked"]),
        f"of the cores: server {cores[0]}, load generator {cores[1]}",
    ]
    if short:
        notes.insert(0, f"falls short by: {', '.join(short)}")
    return Row(
        number,
        what,
        reach,
        "; ".join(found),
        judged(not short),
        {
            "load": result,
            "cpu_us": cpu_us,
            "store_bytes": store_bytes,
            "missing": missing,
            "counted": counted,
            "lag_rows": lag_rows,
            "lag_slope": slope,
            "samples": samples,
        },
        notes,
    )


@contextmanager
def offered(server: Server, secs: float) -> Iterator[subprocess.Popen[str]]:
    """`headwater bench pub`, bounded to `OFFERED`."""
    command = [
        sys.executable,
        "-m",
        "headwater",
        "bench",
        "pub",
        "--mqtt",
        f"127.0.0.1:{server.port}",
        "--json",
    ]
    options = {"-c": 50, "--window": 100, "--devices": 20_000, "--at-most": OFFERED, "-s": secs}
    given = [str(word) for option in options.items() for word in option]
    with subprocess.Popen([*command, *given], stdout=subprocess.PIPE, text=True) as process:
        yield process


@contextmanager
def flat_out(yardstick: peers.Yardstick, server: Server, secs: float) -> Iterator[subprocess.Popen[str]]:
    """The yardstick's load without a bound."""
    with yardstick.start(server.port, server.pids, **LOAD, secs=secs) as process:
        yield process


def figures(out: str, error: str | None) -> dict[str, Any]:
    """`acked`, `msgs_s`, `took_s` and `gen_cpu_s` of either generator."""
    found = json.loads(out) if out else {}
    if "elapsed_s" not in found:
        return peers.answer(out, error or "")
    if found["refused"] or found["unanswered"] or found["connections_up"] != found["connections"]:
        raise SystemExit(f"bench: the load was not answered in full: {found}")
    return {
        "acked": found["acked"],
        "msgs_s": found["messages_per_s"],
        "took_s": found["elapsed_s"],
        "gen_cpu_s": found["cpu_s"],
    }


def sample(server: Server, secs: float) -> list[tuple[float, float, int]]:
    """Time, lag in rows and resident bytes every two seconds while the load runs."""
    samples, begin = [], time.monotonic()
    while (at := time.monotonic() - begin) < secs:
        samples.append((at, lag(server.metrics()), server.rss_bytes()))
        time.sleep(max(0.0, min(SAMPLE_S, secs - (time.monotonic() - begin))))
    return samples


def lag(metrics: dict[str, float]) -> float:
    """Rows in the log that the window query has not read."""
    in_log = metrics['headwater_log_rows_total{stream="telemetry"}']
    return in_log - metrics['headwater_query_rows_total{query="temp_5m"}']


def bytes_per_row(metrics: dict[str, float]) -> float | None:
    """Of the table's files; None while all rows are in memory."""
    rows = metrics.get('headwater_store_rows_total{table="telemetry"}', 0)
    return metrics['headwater_store_bytes{table="telemetry"}'] / rows if rows else None


def growth(points: list[tuple[float, float]]) -> float:
    """Slope of a line through the points, per second."""
    if len(points) < 2:
        return 0.0
    at, value = np.array(points).T
    return float(np.polyfit(at, value, 1)[0])

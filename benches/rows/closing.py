"""Row 14: what an alarm waits for while a window of a million devices closes and its results are written.

A whole server. A million devices send a reading each into one window; when all is read, readings that raise an alarm
go to another stream one after the other, first with nothing else to do, then while one reading far ahead closes the
window. Time is from PUBLISH to the alarm's message at a subscriber.
"""

from __future__ import annotations

import json
import time

import numpy as np

from benches.bench import Bench
from benches.probe import ALARM, Alarms
from benches.server import TELEMETRY, Server
from benches.table import Row, judged
from headwater import bench as load
from headwater.bench import BenchOptions

KEYS, DELAY_MS = 1_000_000, 100.0
#: A day, so that the fleet is within one window; minus a year of seconds is long before today's.
CONFIG = f"""{TELEMETRY}{ALARM}
[streams.fleet]
topic  = "fleet/{{device}}"
time   = "at"
fields = {{ value = "double" }}
[queries.each]
sql = '''SELECT device, window_start, window_end, COUNT(*) AS n, SUM(value) AS total, MIN(value) AS low,
                MAX(value) AS high FROM TABLE(TUMBLE(TABLE fleet, DESCRIPTOR(ts), INTERVAL '1' DAY))
         GROUP BY device, window_start, window_end'''
"""
DAY_S = 86_400
#: Of the reading that closes a window behind the window's end: more than the stream's lateness.
AHEAD_S = 3_600
QUIET_S, PATIENCE_S = 5.0, 120.0


def run(bench: Bench) -> list[Row]:
    """As many windows as there are rounds."""
    keys = KEYS // 10 if bench.rounds < 3 else KEYS
    quiet: list[float] = []
    closing: list[float] = []
    took: list[float] = []
    with Server(bench.scratch, CONFIG) as server:
        for number in range(bench.rounds):
            at_s = 1_767_225_600 + number * 2 * DAY_S
            _load(server, keys, at_s)
            with Alarms(server, f"r{number}") as alarms:
                end = time.monotonic() + QUIET_S
                quiet += alarms.run(lambda end=end: time.monotonic() > end)
                begin = time.monotonic()
                alarms.publish(f"fleet/ahead{number}", {"at": at_s + DAY_S + AHEAD_S, "value": 1})
                wanted = (number + 1) * keys
                closing += alarms.run(
                    lambda wanted=wanted, begin=begin: (
                        _windows(server) >= wanted or time.monotonic() - begin > PATIENCE_S
                    )
                )
                took.append(time.monotonic() - begin)
                assert _windows(server) >= wanted, f"{_windows(server)} windows of {wanted} in {PATIENCE_S} s"
    usual, worst = float(np.median(quiet)), max(closing)
    return [
        Row(
            "14",
            f"an alarm while a window of {keys:,} devices closes and is written",
            f"at most {DELAY_MS:g} ms more than with nothing else to do",
            f"median {usual:.0f} ms, worst {max(quiet):.0f} ms of {len(quiet)} before; "
            f"median {np.median(closing):.0f} ms, worst {worst:.0f} ms of {len(closing)} in the "
            f"{np.median(took):.1f} s of closing",
            judged(worst - usual <= DELAY_MS),
            {"quiet_ms": quiet, "closing_ms": closing, "closing_s": took},
        )
    ]


def _windows(server: Server) -> float:
    return server.metrics()['headwater_query_windows_total{query="each"}']


def _load(server: Server, keys: int, at_s: int) -> None:
    """A reading of each device, read by the query."""
    before = server.metrics()['headwater_query_rows_total{query="each"}']
    report = load.run(
        BenchOptions(
            port=server.port,
            connections=20,
            devices_per_connection=keys // 20,
            topic="fleet/{device}",
            payload=json.dumps({"at": at_s, "value": 0}).replace(": 0}", ": {random:20.0:30.0}}"),
            timestamp_after="",
            messages=keys,
            duration_s=None,
        )
    )
    assert report.acked == keys, report
    end = time.monotonic() + PATIENCE_S
    while server.metrics()['headwater_query_rows_total{query="each"}'] < before + keys:
        assert time.monotonic() < end, "the query does not come to its input's end"
        time.sleep(0.1)

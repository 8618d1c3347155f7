"""Row 15: how long a start takes with many stored sessions, and with as many retained messages.

Sessions of clients that are away, one subscription each, then retained messages; killed after each, and started again.
That all are there is counted by the server's own gauge, and asked of a sample: CONNACK must say that the session is
present, a subscription must be sent the retained message.
"""

from __future__ import annotations

import random

from benches.bench import Bench
from benches.server import TELEMETRY, Server
from benches.sessions import is_retained, is_stored, store_retained, store_sessions
from benches.table import Row, judged, median

START_S = 2.0
_SAMPLE = 200
_STARTS = 3


def run(bench: Bench) -> list[Row]:
    """The sessions, then both."""
    count = 1_000_000 if bench.secs >= 4 else 10_000
    config = f"{TELEMETRY}[mqtt]\nmax_sessions = {count + 1}\nmax_retained_messages = {count}\n"
    with Server(bench.scratch, config) as server:
        empty = _starts(server)
        store_sessions(server.port, count)
        resident = server.rss_bytes()
        sessions = _starts(server)
        kept = int(server.metrics()["headwater_gateway_sessions"])
        sample = random.Random(1).sample(range(count), _SAMPLE)
        absent = sum(not is_stored(server.port, n) for n in sample)
        rows = [
            _row("15a", f"{count:,} stored sessions", sessions, empty, absent, count - kept),
        ]
        rows[0].notes.append(
            f"resident memory {resident / count:,.0f} B a session before the kill, {server.rss_bytes() / count:,.0f} B "
            "after the start"
        )
        store_retained(server.port, count)
        both = _starts(server)
        # They are loaded behind the first connections; a subscription that comes before its messages waits for them.
        server.until(lambda: server.metrics()["headwater_gateway_retained_messages"] >= count)
        kept = int(server.metrics()["headwater_gateway_sessions"])
        absent = sum(not is_stored(server.port, n) for n in sample)
        absent += sum(not is_retained(server.port, n) for n in sample)
        rows.append(
            _row(
                "15b",
                f"{count:,} stored sessions and {count:,} retained messages",
                both,
                empty,
                absent,
                count - kept,
            )
        )
    return rows


def _starts(server: Server) -> list[float]:
    times = []
    for _ in range(_STARTS):
        server.kill()
        server.start()
        times.append(server.started_in_s)
    return times


def _row(number: str, what: str, times: list[float], empty: list[float], absent: int, lost: int) -> Row:
    took, base = median(times), median(empty)
    found = f"{took:.2f} s ({base:.2f} s empty); {absent} of a sample and {max(lost, 0)} by the gauge missing"
    verdict = judged(took <= START_S and not absent and lost <= 0)
    figures = {"starts_s": times, "empty_s": empty, "missing": absent + max(lost, 0)}
    return Row(
        number, f"restart to accepting with {what}", f"<= {START_S:g} s, all there", found, verdict, figures
    )

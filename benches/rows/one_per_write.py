"""Row 3: one PUBLISH per write, as many devices do it: server CPU beside a server that only acknowledges.

In turn with them, the same without io_uring (ADR 12).
"""

from __future__ import annotations

import resource
from collections.abc import Mapping
from typing import Any

from benches import peers
from benches.bench import NO_YARDSTICK, Bench
from benches.server import LOG_ALONE, Server, profile
from benches.table import Row, judged, median, not_measured

TIMES = 1.3
REACH = f"server CPU <= {TIMES} times discard's"
#: Descriptors that a server and the load generator need beside their connections.
SPARE = 600


def run(bench: Bench) -> list[Row]:
    """1,000 connections as fast as they can, and up to 19,000, as descriptors allow, at 1/s each."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    many = min(19_000, limit - SPARE)
    secs = bench.secs
    return [
        measure(bench, "3a", 1_000, {"conns": 1_000, "qos": 1, "rate": "max", "secs": secs}),
        measure(bench, "3b", many, {"conns": many, "qos": 1, "rate": 1, "secs": max(secs, 2)}),
    ]


def measure(bench: Bench, number: str, connections: int, load: dict[str, object]) -> Row:
    """Both servers in turn, `rounds` times."""
    rate = "as fast as they go" if load["rate"] == "max" else f"{load['rate']} message a second each"
    what = f"one message per write, QoS 1: {connections:,} connections, {rate}"
    if bench.yardstick is None:
        return not_measured(number, what, REACH, NO_YARDSTICK)
    limit_us, ours_us, plain_us, rates, spent = [], [], [], [], ""
    for _ in range(bench.rounds):
        with peers.discard(bench.yardstick) as (port, pids):
            limit_us.append(us_a_message(bench.yardstick.load(port, pids, **load)))
        with Server(bench.scratch, f"[mqtt]\nio_uring = false\n{LOG_ALONE}") as server:
            plain_us.append(us_a_message(bench.yardstick.load(server.port, server.pids, **load)))
        with Server(bench.scratch) as server:
            before = server.cpu_by_thread()
            result = bench.yardstick.load(server.port, server.pids, **load)
            ours_us.append(us_a_message(result))
            rates.append(result["msgs_s"])
            spent = profile(before, server.cpu_by_thread(), result["acked"])
    times = median(ours_us) / median(limit_us)
    found = (
        f"{median(ours_us):.1f} us beside {median(limit_us):.1f} us: {times:.2f} times, {median(rates):,.0f} msg/s; "
        f"{median(plain_us):.1f} us without io_uring"
    )
    figures = {
        "headwater_us": ours_us,
        "discard_us": limit_us,
        "without_io_uring_us": plain_us,
        "msgs_s": rates,
    }
    return Row(number, what, REACH, found, judged(times <= TIMES), figures, [f"{spent}; connecting included"])


def us_a_message(result: Mapping[str, Any]) -> float:
    """CPU of the server, microseconds for each acknowledged message."""
    return float(result["srv_cpu_s"] / result["acked"] * 1e6)

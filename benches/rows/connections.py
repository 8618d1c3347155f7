"""Row 8: user memory of an idle connection with its session and one subscription; the cost model's third figure."""

from __future__ import annotations

import resource
import time

from benches.bench import NO_YARDSTICK, Bench
from benches.server import Server
from benches.table import Row, judged, not_measured

BYTES = 600
WHAT = "user memory of an idle connection with a session and one subscription"
REACH = f"<= {BYTES} B"
_MOST = 15_000
_SPARE = 600
_PATIENCE_S = 120.0


def run(bench: Bench) -> list[Row]:
    """Resident memory before and with the connections, which are settled before it is read."""
    if bench.yardstick is None:
        return [not_measured("8", WHAT, REACH, NO_YARDSTICK)]
    count = min(_MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - _SPARE)
    with Server(bench.scratch) as server:
        # A first round brings what is allocated once: it is not the connections'.
        warm = {"subs": 200, "filter": "none/of/these", "secs": 0.2, "conns": 1, "idle": ""}
        with bench.yardstick.start(server.port, server.pids, **warm) as process:
            process.communicate()
        _await_connections(server, 0)
        before = server.rss_bytes()
        load = {"subs": count, "filter": "none/of/these", "secs": 6, "conns": 1, "idle": ""}
        with bench.yardstick.start(server.port, server.pids, **load) as process:
            _await_connections(server, count)
            used = server.rss_bytes() - before
            process.communicate()
    each = used / count
    return [Row("8", WHAT, REACH, f"{each:,.0f} B of {count:,}", judged(each <= BYTES), {"bytes": each})]


def _await_connections(server: Server, count: int) -> None:
    """Until so many connections are open (one more publishes nothing)."""
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        is_open = server.metrics()["headwater_gateway_connections"]
        if (count == 0 and is_open == 0) or (count > 0 and is_open > count):
            return
        time.sleep(0.05)
    raise SystemExit(f"bench: {count:,} connections were not reached within {_PATIENCE_S:g} s")

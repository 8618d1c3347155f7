"""Row 7: CPU per message as devices, streams and other clients' subscriptions grow.

What must not happen is a cost that grows with their number; a growth of the logarithm is allowed, which is 1.5 from
10k to 1M. Cache misses on a larger dictionary are within that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benches.bench import NO_YARDSTICK, Bench
from benches.server import LOG_ALONE, Server
from benches.subscribers import Subscribers
from benches.table import Row, judged, median, not_measured

#: Ours: log(1M) / log(10k).
RATIO = 1.5
REACH = f"CPU a message <= {RATIO} times the smallest case"
CONNECTIONS = 50
#: Clients that subscribe, in every case as many: a delivery's cost is that of its client's socket.
CLIENTS = 1_000


def run(bench: Bench) -> list[Row]:
    """Four sweeps."""
    sweeps: list[tuple[str, str, dict[str, Callable[[Bench], Cost]]]] = [
        ("7a", "devices", {f"{n:,}": _devices(n) for n in (10_000, 100_000, 1_000_000)}),
        ("7b", "streams", {str(n): _streams(n) for n in (1, 10, 100)}),
        ("7c", "subscriptions that match nothing", {f"{n:,}": _others(n) for n in (0, 10_000, 1_000_000)}),
        (
            "7d",
            "subscriptions, one matching each message",
            {f"{n:,}": _matching(n) for n in (10_000, 1_000_000)},
        ),
    ]
    rows = []
    for number, name, cases in sweeps:
        what = f"flat out at {' / '.join(cases)} {name}"
        if bench.yardstick is None:
            rows.append(not_measured(number, what, REACH, NO_YARDSTICK))
            continue
        found: dict[str, list[float]] = {case: [] for case in cases}
        memory: dict[str, list[float]] = {case: [] for case in cases}
        for _ in range(bench.rounds):
            for case, measure in cases.items():
                cost = measure(bench)
                found[case].append(cost.cpu_us)
                memory[case].append(cost.rss_bytes)
        medians = [median(values) for values in found.values()]
        worst = max(medians) / medians[0]
        text = f"{' / '.join(f'{value:.2f}' for value in medians)} us: {worst:.2f} times"
        rows.append(
            Row(number, what, REACH, text, judged(worst <= RATIO), {"us": found, "rss_bytes": memory})
        )
    return rows


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one case: CPU per message, and resident memory at the end."""

    cpu_us: float
    rss_bytes: float


def _cost(bench: Bench, server: Server, devices: int) -> Cost:
    assert bench.yardstick is not None
    load = {"conns": CONNECTIONS, "qos": 1, "devices": devices // CONNECTIONS, "secs": bench.secs / 2}
    # Once around first, so that the growth of tables is not what is measured; a short one is enough for it.
    bench.yardstick.load(server.port, server.pids, **{**load, "secs": 1.2})
    result = bench.yardstick.load(server.port, server.pids, **load)
    return Cost(result["srv_cpu_s"] / result["acked"] * 1e6, server.rss_bytes())


def _devices(count: int) -> Callable[[Bench], Cost]:
    def measure(bench: Bench) -> Cost:
        with Server(bench.scratch) as server:
            return _cost(bench, server, count)

    return measure


def _streams(count: int) -> Callable[[Bench], Cost]:
    others = "".join(
        f'[streams.other_{at}]\ntopic = "site{at}/{{device}}/telemetry"\nfields = {{ value = "double" }}\n'
        for at in range(count - 1)
    )

    def measure(bench: Bench) -> Cost:
        with Server(bench.scratch, LOG_ALONE + others) as server:
            return _cost(bench, server, 100_000)

    return measure


def _others(count: int) -> Callable[[Bench], Cost]:
    def measure(bench: Bench) -> Cost:
        filters = [f"dt/other/d{at:06}/telemetry" for at in range(count)]
        with Server(bench.scratch) as server, Subscribers(server.port, filters, CLIENTS):
            return _cost(bench, server, 100_000)

    return measure


def _matching(count: int) -> Callable[[Bench], Cost]:
    def measure(bench: Bench) -> Cost:
        filters = [f"dt/demo/d{at:06}/telemetry" for at in range(count)]
        with Server(bench.scratch) as server, Subscribers(server.port, filters, CLIENTS):
            return _cost(bench, server, count)

    return measure

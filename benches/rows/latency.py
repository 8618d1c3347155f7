"""Row 4: latency at 100,000 messages a second offered, one per write, the whole pipeline on.

Outside: the load generator's time from write to PUBACK. Inside: the server's own histogram, from PUBLISH read to PUBACK
handed to the socket, which must be shorter, and not by more than the scheduling of two busy processes explains. In a
second run an outside client sends readings of its own and times when a query has them and when their alarm arrives;
inside, the server times every reading until the store holds it and every alarm until it is delivered, which may be no
longer than outside, up to a bucket of its histogram.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from benches import peers
from benches.bench import NO_YARDSTICK, Bench
from benches.probe import ALARM, Probe, Seen
from benches.rows.whole_pipeline import config
from benches.server import Server, profile, quantile_ms
from benches.table import Row, judged, median, not_measured

OFFERED, CONNECTIONS = 100_000, 100
P50_MS, P99_MS = 3.0, 15.0
#: Ours: inside and outside agree when the inside is not longer, and shorter by no more than this or half of it at p50.
AGREE_MS = 3.0
#: Buckets of the server's histograms grow by a fifth.
BUCKET = 1.2
WHAT = f"acknowledgement at {OFFERED:,} msg/s offered, whole pipeline on"
QUERYABLE, QUERYABLE_MS = "publish to the answer of a query that has the row, under that load", 100.0
ALARMED, ALARMED_MS = "publish to its alarm at an MQTT subscriber, under that load", 250.0
REACH = f"p50 <= {P50_MS:g} ms, p99 <= {P99_MS:g} ms; inside and outside agree"


def run(bench: Bench) -> list[Row]:
    """The load at that rate, `rounds` times, with the outside client beside it."""
    bounds = [("4b", QUERYABLE, QUERYABLE_MS), ("4c", ALARMED, ALARMED_MS)]
    if bench.yardstick is None:
        rows = [not_measured("4a", WHAT, REACH, NO_YARDSTICK)]
        return rows + [
            not_measured(number, what, f"p99 <= {ms:g} ms", NO_YARDSTICK) for number, what, ms in bounds
        ]
    secs = max(bench.secs, 2)
    load = {"conns": CONNECTIONS, "qos": 1, "rate": OFFERED / CONNECTIONS, "devices": 1_000, "secs": secs}
    outside: dict[str, list[float]] = {"p50": [], "p99": [], "p999": []}
    inside: dict[str, list[float]] = {"0.5": [], "0.99": []}
    rates, spent, seen = [], "", Seen()
    within: dict[str, Counter[float]] = {"visible": Counter(), "alarm": Counter()}
    for _ in range(bench.rounds):
        with Server(bench.scratch, config() + ALARM) as server:
            before = server.cpu_by_thread()
            result = bench.yardstick.load(server.port, server.pids, **load)
            spent = profile(before, server.cpu_by_thread(), result["acked"])
            metrics = server.metrics()
            # The outside client's queries cost CPU themselves, so the acknowledgements are timed without it; and the
            # store reads when it is asked, so what is inside is taken of the time in which somebody asks.
            probe = Probe(server)
            for name, buckets in within.items():
                buckets.subtract(server.buckets(f"headwater_{name}_latency_seconds"))
            with bench.yardstick.start(server.port, server.pids, **load) as process:
                seen.add(probe.run(secs))
                peers.answer(*process.communicate())
            for name, buckets in within.items():
                buckets.update(server.buckets(f"headwater_{name}_latency_seconds"))
        rates.append(result["msgs_s"])
        for name, values in outside.items():
            values.append(result["ack_ms"][name])
        for name, values in inside.items():
            values.append(metrics[f'headwater_ack_latency_seconds{{quantile="{name}"}}'] * 1e3)
    out50, out99, in50, in99 = (
        median(values) for values in (outside["p50"], outside["p99"], inside["0.5"], inside["0.99"])
    )
    agree = in50 <= out50 * 1.05 and out50 - in50 <= max(AGREE_MS, out50 / 2)
    offered = median(rates) >= 0.95 * OFFERED
    at = f"at {median(rates):,.0f} msg/s"
    found = (
        f"outside p50 {out50:.2f}, p99 {out99:.2f} ms; inside p50 {in50:.2f}, p99 {in99:.2f} ms "
        f"({'agree' if agree else 'do not agree'}), {at}"
    )
    verdict = judged(out50 <= P50_MS and out99 <= P99_MS and agree and offered)
    figures = {"outside": outside, "inside": inside, "msgs_s": rates}
    rows = [Row("4a", WHAT, REACH, found, verdict, figures, [spent])]
    outer = (seen.queryable_ms, seen.alarm_ms)
    for (number, what, bound_ms), values, inner in zip(bounds, outer, within.values(), strict=True):
        p50, p99 = np.percentile(values, [50, 99]) if values else (np.inf, np.inf)
        # Of all rounds together, as the values outside: a quantile of few of them is nearly their maximum.
        inner50, inner99 = (quantile_ms(inner, part) for part in (0.5, 0.99))
        agree = inner50 <= p50 * BUCKET and inner99 <= p99 * BUCKET
        found = (
            f"outside p50 {p50:.1f}, p99 {p99:.1f} ms of {len(values)} readings, {seen.lost} never seen; inside p50 "
            f"{inner50:.1f}, p99 {inner99:.1f} ms ({'agree' if agree else 'do not agree'}), {at}"
        )
        holds = p99 <= bound_ms and seen.lost == 0 and offered and agree
        figures = {"ms": values, "inside_ms": [inner50, inner99]}
        rows.append(Row(number, what, f"p99 <= {bound_ms:g} ms", found, judged(holds), figures))
    return rows

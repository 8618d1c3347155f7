"""Row 1: gateway and log alone, flat out, beside a server that only acknowledges and beside mosquitto.

Every server runs in turn in each round, so that a neighbour's load falls on all of them. Headwater decodes every
message and has it durable before its acknowledgement; mosquitto has no persistence and decodes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benches import peers
from benches.bench import NO_YARDSTICK, Bench
from benches.server import Server, profile
from benches.table import Row, judged, median, not_measured, say

CPU_US, RATE_SHARE = 0.6, 0.40
WHAT = "flat out: 50 connections, QoS 1, window 100, 1M devices, gateway and log"
REACH = f"<= {CPU_US} us CPU a message, >= {RATE_SHARE:.0%} of discard's rate, every acknowledged message a durable row"
LOAD = {"conns": 50, "qos": 1, "window": 100, "devices": 20_000}


@dataclass
class Series:
    """What the rounds of one server gave."""

    rates: list[float] = field(default_factory=list)
    cpus_us: list[float] = field(default_factory=list)
    p50s_ms: list[float] = field(default_factory=list)
    p99s_ms: list[float] = field(default_factory=list)

    def add(self, result: dict[str, Any]) -> None:
        """Takes the load generator's figures of one round."""
        self.rates.append(result["msgs_s"])
        self.cpus_us.append(result["srv_cpu_s"] / result["acked"] * 1e6)
        self.p50s_ms.append(result["ack_ms"]["p50"])
        self.p99s_ms.append(result["ack_ms"]["p99"])

    def medians(self) -> dict[str, float]:
        """Of all figures."""
        return {name: median(values) for name, values in vars(self).items() if values}


def run(bench: Bench) -> list[Row]:
    """Discard, mosquitto and Headwater in turn, `rounds` times."""
    if bench.yardstick is None:
        return [not_measured("1", WHAT, REACH, NO_YARDSTICK)]
    load = {**LOAD, "secs": bench.secs}
    limit, broker, ours = Series(), Series(), Series()
    missing, notes = 0, []
    for _ in range(bench.rounds):
        with peers.discard(bench.yardstick) as (port, pids):
            limit.add(bench.yardstick.load(port, pids, **load))
        if bench.mosquitto is not None:
            with peers.mosquitto(bench.mosquitto, bench.scratch) as (port, pids):
                broker.add(bench.yardstick.load(port, pids, **load))
        with Server(bench.scratch) as server:
            before = server.cpu_by_thread()
            result = bench.yardstick.load(server.port, server.pids, **load)
            spent = profile(before, server.cpu_by_thread(), result["acked"])
            missing += result["acked"] - server.durable_rows()
        ours.add(result)
    say(beside({"discard": limit, "mosquitto": broker, "headwater": ours}))
    rate, cpu_us = median(ours.rates), median(ours.cpus_us)
    share = rate / median(limit.rates)
    verdict = judged(cpu_us <= CPU_US and share >= RATE_SHARE and missing == 0)
    notes.append(spent)
    found = f"{cpu_us:.2f} us, {rate:,.0f} msg/s = {share:.0%} of discard's {median(limit.rates):,.0f}"
    if broker.rates:
        found += f" and {rate / median(broker.rates):.1f} times mosquitto's ({median(broker.cpus_us):.1f} us)"
    found += f"; {missing} rows missing"
    series = {"discard": limit.medians(), "mosquitto": broker.medians(), "headwater": ours.medians()}
    return [Row("1", WHAT, REACH, found, verdict, {**series, "missing": missing}, notes)]


def beside(servers: dict[str, Series]) -> str:
    """The servers side by side, as Markdown."""
    lines = ["| server | msg/s | CPU us/msg | ack p50 / p99 ms |", "| --- | --- | --- | --- |"]
    for name, series in servers.items():
        if series.rates:
            latency = f"{median(series.p50s_ms):.1f} / {median(series.p99s_ms):.1f}"
            lines.append(
                f"| {name} | {median(series.rates):,.0f} | {median(series.cpus_us):.3f} | {latency} |"
            )
        else:
            lines.append(f"| {name} | not measured: not installed | | |")
    return "\n".join(lines)

"""Row 9: who else notices: latency beside a hot device, and after a burst and a slow, full and stuck disk.

9a, 9b: a fleet's acknowledgements, timed by `headwater bench` without and with one more device that sends 10,000
messages a second, in turn in each round; and with that device at another server of the same machine, which tells what
the fleet feels of the device's own client and of the kernel's part.

9c to 9f: a client of its own sends one message after the other and times each acknowledgement, before, through and
after the fault. Latency is back at the first moment from which on, for two seconds, none took longer than twice the
worst hundredth before the fault, or than 15 ms (row 4's bound). What is acknowledged is counted in the rows.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Self

import numpy as np

from benches.bench import Bench
from benches.rows.whole_pipeline import config
from benches.server import Server
from benches.table import Row, judged, median, not_measured
from headwater import bench as load
from headwater.bench import BenchOptions, BenchReport
from tests.faults.disk import FaultyDisk
from tests.preload import COMPILER

HOT_PER_S = 10_000
TIMES = 1.2
BACK_S = 10.0
#: An acknowledgement within so many milliseconds is never late.
PROMPT_MS = 15.0
QUIET_S = 2.0
_PROBE_EVERY_S = 0.005
_ENDLESS_S = 1e5
#: What the stream and the services take may be in flight for so long after a fault.
_COUNT_S = 120.0

FLEETS = [
    ("9a", "a fleet of 2,000 connections at 20,000 msg/s", {"connections": 2_000, "rate": 20_000.0}),
    ("9b", "a fleet of 1,000 connections at 1,000 msg/s", {"connections": 1_000, "rate": 1_000.0}),
]
FAULTS = [
    ("9c", "a burst flat out, 40 connections with a window of 100"),
    ("9d", "syncs that take 500 ms longer, 20,000 msg/s offered"),
    ("9e", "a full disk, 20,000 msg/s offered, segments of 1 MiB"),
    ("9f", "a store that is stuck, 20,000 msg/s offered"),
]


def run(bench: Bench) -> list[Row]:
    """The hot device beside two fleets, then each fault once, for as long as row 2 is sustained."""
    rows = [beside_a_hot_device(bench, *fleet) for fleet in FLEETS]
    for number, what in FAULTS:
        rows.append(recovery(bench, number, what))
    return rows


def beside_a_hot_device(bench: Bench, number: str, what: str, fleet: dict[str, float]) -> Row:
    """The fleet without and with the hot device, and with it at another server, `rounds` times."""
    what = f"acknowledgements of {what}, beside one device that sends {HOT_PER_S:,} msg/s, whole pipeline on"
    alone: dict[str, list[float]] = {"p50": [], "p99": []}
    beside: dict[str, list[float]] = {"p50": [], "p99": []}
    apart: dict[str, list[float]] = {"p50": [], "p99": []}
    secs = max(bench.secs, 2)
    with Server(bench.scratch, config()) as server, Server(bench.other(), config()) as other:
        for _ in range(bench.rounds):
            add(alone, publish(server, "fleet", duration_s=secs, **fleet))
            for hot, times in ((server, beside), (other, apart)):
                with background(hot, "hot", connections=1, rate=HOT_PER_S, window=1000):
                    add(times, publish(server, "fleet", duration_s=secs, **fleet))
    before, after, elsewhere = (
        {name: median(values) for name, values in each.items()} for each in (alone, beside, apart)
    )
    factors = {name: after[name] / before[name] for name in before}
    found = (
        f"p50 {before['p50']:.2f} -> {after['p50']:.2f} ms ({factors['p50']:.2f} times), "
        f"p99 {before['p99']:.2f} -> {after['p99']:.2f} ms ({factors['p99']:.2f} times); with the device at another "
        f"server {elsewhere['p50']:.2f} and {elsewhere['p99']:.2f} ms"
    )
    holds = all(each <= TIMES for each in factors.values())
    figures = {"alone_ms": alone, "beside_ms": beside, "elsewhere_ms": apart}
    return Row(number, what, f"within {TIMES} times", found, judged(holds), figures)


def recovery(bench: Bench, number: str, what: str) -> Row:
    """One fault, and how long after its end a client is served as before."""
    secs = bench.long_secs
    what = f"latency after {secs:g} s of {what}"
    reach = f"back within {BACK_S:g} s, nothing acknowledged missing"
    if COMPILER is None:
        return not_measured(number, what, reach, "no C compiler (cc) to build the faulty disk with")
    disk = FaultyDisk(bench.scratch / "data")
    fault: AbstractContextManager[None] = {
        "9c": nullcontext(),
        "9d": disk.slow(500),
        "9e": disk.full(),
        "9f": disk.stuck(disk.folder / "tables"),
    }[number]
    burst = number == "9c"
    offered = {"connections": 40 if burst else 20, "rate": 0.0 if burst else 20_000.0}
    text = config()
    if number == "9e":
        # What a segment has already is not full, and a large one has enough for minutes.
        text = f"[log]\nsegment_bytes = 1048576\n{text}"
    with Server(bench.scratch, text, disk.variables) as server, ExitStack() as during:
        if not burst:
            during.enter_context(background(server, "load", **offered))
        with Probe(server.port) as probe:
            time.sleep(5)
            began = time.monotonic()
            with fault:
                if burst:
                    during.enter_context(background(server, "load", **offered))
                time.sleep(secs)
                if burst:
                    during.close()
            ended = time.monotonic()
            back_s = probe.back_after(began, ended, BACK_S + QUIET_S)
        during.close()
        acked = probe.acked
        missing = acked - count(server, acked)
    before_ms = probe.p99_ms(began)
    worst_ms = probe.worst_ms(began, ended)
    found = (
        f"p99 before {before_ms:.1f} ms, worst meanwhile {worst_ms:,.0f} ms, back after "
        + (f"{back_s:.1f} s" if back_s is not None else f"more than {BACK_S:g} s")
        + f", {missing} of {acked:,} acknowledged missing"
    )
    holds = back_s is not None and back_s <= BACK_S and missing == 0
    figures = {"before_p99_ms": before_ms, "worst_ms": worst_ms, "back_s": back_s, "missing": missing}
    return Row(number, what, reach, found, judged(holds), figures)


def publish(server: Server, site: str, stop: threading.Event | None = None, **options: float) -> BenchReport:
    """One run of `headwater bench` against the server."""
    given = BenchOptions(
        port=server.port, topic=f"dt/{site}/{{device}}/telemetry", client_prefix=f"{site}-", **options
    )  # type: ignore[arg-type]
    return load.run(given, stop=stop)


@contextmanager
def background(server: Server, site: str, **options: float) -> Iterator[None]:
    """The same beside the block, until its end. raises: what the run raises"""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(publish, server, site, stop, duration_s=_ENDLESS_S, **options)
        try:
            yield
        finally:
            stop.set()
        running.result()


def add(to: dict[str, list[float]], report: BenchReport) -> None:
    """A round's percentiles, milliseconds."""
    to["p50"].append(report.ack.p50_ms)
    to["p99"].append(report.ack.p99_ms)


def count(server: Server, wanted: int) -> int:
    """Rows of the probe that a query finds; waits for those that are not there yet."""
    end = time.monotonic() + _COUNT_S
    while True:
        ((rows,),) = server.query("SELECT COUNT(*) FROM telemetry WHERE site = 'probe'")
        if rows >= wanted or time.monotonic() > end:
            return int(rows)
        time.sleep(0.2)


class Probe:
    """A client that sends one message after the other, QoS 1, and times each acknowledgement."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=600)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sent: list[float] = []
        self._took_ms: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._socket.sendall(b"\x10\x11\x00\x04MQTT\x04\x02\x00\x00\x00\x05probe")
        self._read(4)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    @property
    def acked(self) -> int:
        """Messages that were acknowledged."""
        return len(self._took_ms)

    def _run(self) -> None:
        topic = b"dt/probe/probe/telemetry"
        while not self._stop.wait(_PROBE_EVERY_S):
            sent = time.monotonic()
            payload = b'{"ts":%d,"temperature":20.5,"humidity":40.0,"battery":3.5}' % (
                time.time_ns() // 1_000_000
            )
            packet_id = len(self._sent) % 65_535 + 1
            body = struct.pack(">H", len(topic)) + topic + struct.pack(">H", packet_id) + payload
            self._sent.append(sent)
            self._socket.sendall(b"\x32" + bytes([len(body)]) + body)
            self._read(4)
            self._took_ms.append((time.monotonic() - sent) * 1e3)

    def _read(self, count: int) -> None:
        while count:
            got = len(self._socket.recv(count))
            if not got:
                raise SystemExit("bench: the server closed the probe's connection")
            count -= got

    def _samples(self) -> tuple[np.ndarray, np.ndarray]:
        """Time of sending, and milliseconds until the acknowledgement; of one not acknowledged yet, so far."""
        sent, took = np.array(self._sent), np.array(self._took_ms)
        waiting = (time.monotonic() - sent[len(took) :]) * 1e3
        return sent, np.concatenate([took, waiting])[: len(sent)]

    def p99_ms(self, before: float) -> float:
        """Of messages sent before that moment."""
        sent, took = self._samples()
        return float(np.percentile(took[sent < before], 99))

    def worst_ms(self, begin: float, end: float) -> float:
        """Of messages sent between these moments."""
        sent, took = self._samples()
        return float(took[(sent >= begin) & (sent < end)].max(initial=0.0))

    def back_after(self, began: float, ended: float, patience_s: float) -> float | None:
        """Seconds from the fault's end until messages are prompt again; None when that takes longer."""
        late_ms = max(PROMPT_MS, 2 * self.p99_ms(began))
        while time.monotonic() < ended + patience_s:
            time.sleep(0.1)
            sent, took = self._samples()
            late = sent[(took > late_ms) & (sent + took / 1e3 > ended)]
            # Prompt from the moment at which the last late one was acknowledged.
            since = max(ended, *(sent + took / 1e3)[np.isin(sent, late)]) if len(late) else ended
            if time.monotonic() - since >= QUIET_S:
                return float(since - ended)
        return None

"""Row 10: a storm of reconnects at the accept limit, and what live clients feel of it.

Beside their 99th percentile that of the server's own histogram, from PUBLISH read to PUBACK handed to the socket,
before and during the storm together: the rest is spent outside the server's own code, in kernel, sockets and clients.
How much of that is no server's matter shows the same storm at another server of the machine.
"""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from benches.bench import Bench
from benches.server import LOG_ALONE, Server
from benches.storm import connect
from benches.table import Row, judged

#: Accepted a second.
RATE = 3000
_MOST = 19_000
_SPARE = 800
_LIVE = 20
_FACTOR = 2.0
WHAT = "a storm of reconnects at max_connect_rate: p99 of live clients' acknowledgements, beside that before the storm"
REACH = f"<= {_FACTOR:g} times"


class Live:
    """A client that publishes one message at a time and notes how long its acknowledgement takes."""

    def __init__(self, port: int, name: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(connect(name))
        assert self._socket.recv(64) == b"\x20\x02\x00\x00"
        topic = f"dt/hall/{name}/telemetry".encode()
        body = (
            len(topic).to_bytes(2, "big") + topic + b"\x00\x01" + b'{"ts":1732000000123,"temperature":21.5}'
        )
        self._packet = bytes([0x32, len(body)]) + body

    def publish_s(self) -> float:
        """Seconds until the acknowledgement."""
        begin = time.perf_counter()
        self._socket.sendall(self._packet)
        assert self._socket.recv(64) == b"\x40\x02\x00\x01"
        return time.perf_counter() - begin

    def close(self) -> None:
        self._socket.close()


def run(bench: Bench) -> list[Row]:
    """Live clients alone, then with a storm beside them at another server and at theirs, until the storm is over."""
    clients = min(_MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - _SPARE)
    reconnects = 100_000 if bench.secs >= 4 else 2 * RATE
    settings = f"[mqtt]\nmax_connect_rate = {RATE}\n{LOG_ALONE}"
    with Server(bench.scratch, settings) as server:
        live = [Live(server.port, f"live-{n}") for n in range(_LIVE)]
        alone = _times(live, lambda begin: time.monotonic() - begin < 2 * bench.secs)
        with Server(bench.other(), settings) as other:
            elsewhere, _ = _storm(live, other.port, clients, reconnects)
        beside, found = _storm(live, server.port, clients, reconnects)
        inside = server.metrics()['headwater_ack_latency_seconds{quantile="0.99"}']
        for each in live:
            each.close()
    factor = beside / alone
    rate = found["connections"] / found["seconds"]
    text = (
        f"{factor:.2f} times ({beside * 1e3:.2f} ms, before {alone * 1e3:.2f} ms, inside {inside * 1e3:.2f} ms; with "
        f"the storm at another server {elsewhere * 1e3:.2f} ms) while {found['connections']:,} connections came, "
        f"{clients:,} at a time, {rate:,.0f}/s"
    )
    if found["refused"]:
        text += f"; {found['refused']:,} were refused"
    holds = factor <= _FACTOR and not found["refused"]
    figures = {"alone_s": alone, "beside_s": beside, "inside_s": inside, "elsewhere_s": elsewhere, **found}
    return [Row("10", WHAT, REACH, text, judged(holds), figures)]


def _storm(live: list[Live], port: int, clients: int, reconnects: int) -> tuple[float, dict[str, float]]:
    """A storm at the server of that port: the 99th percentile of the live clients beside it, and what it found."""
    command = [sys.executable, "-m", "benches.storm", str(port), str(clients), str(reconnects)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        beside = _times(live, lambda _begin: process.poll() is None)
        assert process.stdout is not None
        answer = process.stdout.read()
    if process.returncode != 0:
        raise SystemExit(f"bench: the storm ended with code {process.returncode}")
    found: dict[str, float] = json.loads(answer)
    return beside, found


def _times(live: list[Live], goes_on: Callable[[float], bool]) -> float:
    """The 99th percentile of the acknowledgements, one client after the other, every 2 ms."""
    begin = time.monotonic()
    times = []
    while goes_on(begin):
        for each in live:
            times.append(each.publish_s())
            time.sleep(0.002)
    return sorted(times)[int(len(times) * 0.99)]

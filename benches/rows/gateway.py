"""Row 11: what the gateway costs: fan-in, fan-out, idle connections under TLS, TLS handshakes, matching.

Fan-in is measured at two rates, with one message per write at both, as single devices send: the more a device sends,
the more of its messages the server finds in one read. What the server does while nobody sends is part of the figure.
"""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
from contextlib import ExitStack
from pathlib import Path

import psutil

from benches.bench import Bench
from benches.criterion import timings
from benches.server import LOG_ALONE, Server
from benches.storm import connect
from benches.table import SHOWN, Row, judged, median, not_measured
from headwater import bench as load
from headwater.bench import BenchOptions, BenchReport

_FAN_IN_US = 1.2
_FAN_IN_RATES = {"11a": 50_000, "11f": 100_000}
_MATCH_US = 1.0
#: Matches in one iteration of the timing.
_MATCHES = 500
_FAN_OUT = 10_000
_TLS_BYTES = 20_000
_TLS_CLIENTS = 500
_PORTS = 5
_TLS = f"[mqtts]\nport = 0\n{LOG_ALONE}"


def run(bench: Bench) -> list[Row]:
    """Each on a server of its own."""
    fan_in = [_fan_in(bench, number, rate) for number, rate in _FAN_IN_RATES.items()]
    return [*fan_in, _fan_out(bench), _idle_tls(bench), *_handshakes(bench), _matching(bench)]


def _loaded(server: Server, options: BenchOptions) -> tuple[BenchReport, float]:
    """The report of a load and the server's CPU seconds meanwhile."""
    process = psutil.Process(server.pids[0])
    before = process.cpu_times()
    report = load.run(options)
    after = process.cpu_times()
    return report, after.user + after.system - before.user - before.system


def _fan_in(bench: Bench, number: str, rate: int) -> Row:
    what = "fan-in: 50 publishers at QoS 0 to one subscriber of #, CPU of the server per message"
    found = []
    share, sent_s = 1.0, 0.0
    for _ in range(bench.rounds):
        with Server(bench.scratch) as server:
            options = BenchOptions(
                port=server.port,
                connections=50,
                rate=rate,
                qos=0,
                topic="fan/{device}",
                payload="twenty bytes of text",
                subscribers=1,
                timestamp_after="",
                duration_s=bench.secs,
            )
            report, cpu_s = _loaded(server, options)
            found.append(cpu_s / max(report.sent, 1) * 1e6)
            share = min(share, report.received / max(report.sent, 1))
            sent_s = report.messages_per_s
    cost = median(found)
    return Row(
        number,
        what,
        f"<= {_FAN_IN_US:g} us, all delivered",
        f"{cost:.2f} us at {rate:,} msg/s offered, {sent_s:,.0f} sent, {share:.2%} delivered",
        judged(cost <= _FAN_IN_US and share >= 1.0),
        {"cpu_us": found, "delivered": share},
    )


def _fan_out(bench: Bench) -> Row:
    what = f"fan-out: one publisher to {_FAN_OUT:,} subscribers, CPU of the server per delivery"
    with Server(bench.scratch) as server:
        options = BenchOptions(
            port=server.port,
            connections=1,
            rate=10,
            topic="out/all",
            payload="twenty bytes of text",
            subscribers=_FAN_OUT,
            filter="out/all",
            timestamp_after="",
            duration_s=bench.secs,
        )
        report, cpu_s = _loaded(server, options)
    share = report.received / max(report.sent * _FAN_OUT, 1)
    cost = cpu_s / max(report.received, 1) * 1e6
    text = f"{cost:.2f} us, connecting included; {share:.2%} of {report.sent * _FAN_OUT:,} delivered"
    return Row("11b", what, "all delivered", text, judged(share >= 1.0), {"cpu_us": cost, "delivered": share})


def _idle_tls(bench: Bench) -> Row:
    what = f"resident memory of an idle MQTT connection over TLS 1.3, {_TLS_CLIENTS} of them"
    with Server(bench.scratch, _TLS) as server, ExitStack() as open_:
        context = ssl.create_default_context(cafile=str(server.data / "ca" / "ca.pem"))

        def hold(count: int) -> None:
            for _ in range(count):
                plain = socket.create_connection(_tls(server))
                client = open_.enter_context(context.wrap_socket(plain, server_hostname="localhost"))
                client.sendall(connect(f"idle-{client.fileno():018d}"))
                assert client.recv(64) == b"\x20\x02\x00\x00"

        # What is allocated once is not the connections'.
        hold(50)
        before = server.rss_bytes()
        hold(_TLS_CLIENTS)
        each = (server.rss_bytes() - before) / _TLS_CLIENTS
    return Row(
        "11c", what, f"<= {_TLS_BYTES:,} B", f"{each:,.0f} B", judged(each <= _TLS_BYTES), {"bytes": each}
    )


def _handshakes(bench: Bench) -> list[Row]:
    what = "TLS handshakes a second by openssl s_time, {}, beside openssl s_server"
    kinds = {"11d": ("each anew", "-new"), "11e": ("each resumed", "-reuse")}
    if shutil.which("openssl") is None:
        return [
            not_measured(n, what.format(kind), "", "openssl is missing") for n, (kind, _) in kinds.items()
        ]
    secs = max(1, round(bench.secs))
    rows = []
    with Server(bench.scratch, _TLS) as server:
        ca = server.data / "ca"
        with _OpensslServer(ca) as other:
            for number, (kind, option) in kinds.items():
                ours = [_s_time(*_tls(server), ca, option, secs) for _ in range(bench.rounds)]
                theirs = [_s_time("127.0.0.1", other.port, ca, option, secs) for _ in range(bench.rounds)]
                text = f"{median(ours):,.0f}/s, s_server {median(theirs):,.0f}/s"
                figures = {"ours": ours, "openssl": theirs}
                rows.append(Row(number, what.format(kind), "", text, SHOWN, figures))
    return rows


def _matching(bench: Bench) -> Row:
    """Of the worst kind of filter: with and without wildcards, those of one client among those of a million."""
    what, reach = "one topic matched against 1,000,000 subscriptions, one core", f"<= {_MATCH_US:g} us"
    found = timings("mqtt", "/match 1M", 2.0 if bench.rounds >= 5 else 0.5)
    if isinstance(found, str):
        return not_measured("11g", what, reach, found)
    costs = {name.rpartition(", ")[2]: each.seconds / _MATCHES * 1e6 for name, each in found.items()}
    text = ", ".join(f"{name} {cost:.2f} us" for name, cost in costs.items())
    return Row("11g", what, reach, text, judged(max(costs.values()) <= _MATCH_US), {"us": costs})


class _OpensslServer:
    """`openssl s_server` with our certificate, on a free port."""

    def __init__(self, ca: Path) -> None:
        self._files = ["-cert", str(ca / "server.pem"), "-key", str(ca / "server-key.pem")]
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> _OpensslServer:
        # A port that was free may be taken before s_server has it: connections of other rows leave thousands.
        for _ in range(_PORTS):
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port = free.getsockname()[1]
            self._process = subprocess.Popen(
                ["openssl", "s_server", "-quiet", "-accept", f"127.0.0.1:{self.port}", *self._files],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            while self._process.poll() is None:
                try:
                    socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
                except ConnectionRefusedError:
                    continue
                return self
        raise SystemExit(f"bench: openssl s_server does not start on any of {_PORTS} ports")

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def _tls(server: Server) -> tuple[str, int]:
    host, _, port = str(server.addresses["mqtts"]).rpartition(":")
    return host, int(port)


def _s_time(host: str, port: int, ca: Path, option: str, secs: int) -> float:
    """Handshakes a second of one client that makes one after the other."""
    command = ["openssl", "s_time", "-connect", f"{host}:{port}", "-CAfile", str(ca / "ca.pem")]
    done = subprocess.run(
        [*command, option, "-time", str(secs)], capture_output=True, text=True, check=False, timeout=secs + 60
    )
    found = re.findall(r"(\d+) connections in (\d+) real seconds", done.stdout)
    if not found:
        raise SystemExit(f"bench: openssl s_time says {done.stdout[-500:]} {done.stderr[-500:]}")
    connections, seconds = found[-1]
    return int(connections) / max(int(seconds), 1)

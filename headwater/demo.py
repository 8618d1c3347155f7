"""`headwater demo`: everything on the embedded default, a simulated fleet with planted faults, and a live view.

The server is a process of its own, as it would be in earnest; the fleet plays from this one. At the end the books must
balance, every acknowledged reading must be found by a query, and every planted fault must have raised its alarm.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from headwater.client import Client
from headwater.errors import HeadwaterError
from headwater.simulate import Fault, FaultKind, Fleet, FleetOptions, FleetReport, Label

#: Longest wait for the server to be ready, and for the last readings to settle, seconds.
TIMEOUT_S = 60.0
#: Windows of the demo's query, seconds.
WINDOW_S = 5

# The fleet plays a temperature of 21.5 °C, sigma 0.5, and ±2 over the day; thresholds leave the noise below.
CONFIG = f"""\
[streams.telemetry]
topic    = "dt/{{site}}/{{device}}/telemetry"
time     = "ts"
fields   = {{ temperature = "double", humidity = "double", battery = "double" }}
lateness = "1s"

[queries.temp_{WINDOW_S}s]
sql = \"\"\"SELECT device, window_start, window_end, AVG(temperature) AS avg_temperature,
                MIN(temperature) AS min_temperature, MAX(temperature) AS max_temperature, COUNT(*) AS n
         FROM TABLE(TUMBLE(TABLE telemetry, DESCRIPTOR(ts), INTERVAL '{WINDOW_S}' SECONDS))
         GROUP BY device, window_start, window_end\"\"\"

[alarms.humidity_spike]
on       = "telemetry"
where    = "humidity > 65"
clear    = "humidity < 60"
severity = "major"

[alarms.battery_shift]
on       = "telemetry"
where    = "battery > 3.75"
clear    = "battery < 3.74"
for      = "2s"
severity = "critical"

[alarms.temperature_drift]
on       = "temp_{WINDOW_S}s"
where    = "avg_temperature > 28"
severity = "warning"
"""

#: Which alarm each planted kind of fault must raise.
EXPECTED = {
    FaultKind.SPIKE: "humidity_spike",
    FaultKind.SHIFT: "battery_shift",
    FaultKind.DRIFT: "temperature_drift",
}

#: How long each must have lasted before its alarm can be asked for, seconds; a run may end earlier.
TIME_TO_SHOW_S = {FaultKind.SPIKE: 0, FaultKind.SHIFT: 3, FaultKind.DRIFT: 3 * WINDOW_S}


def planted(devices: int) -> tuple[Fault, ...]:
    """Faults that the demo's alarms must find, and some that only show in the data (stuck, dropout, clock skew)."""

    def fault(
        kind: FaultKind, number: int, field: str | None, start_s: float, duration_s: float, size: float | None
    ) -> Fault:
        return Fault(
            kind=kind,
            device=number % devices,
            field=field,
            start_s=start_s,
            duration_s=duration_s,
            magnitude=size,
        )

    return (
        # 33 percent, so that it shows at any hour: over the day the fleet plays 45 ±5.
        fault(FaultKind.SPIKE, 7, "humidity", 3, 1, 22.0),
        fault(FaultKind.SPIKE, 77, "humidity", 4, 1, 22.0),
        fault(FaultKind.SHIFT, 11, "battery", 2, 8, 8.0),
        fault(FaultKind.SHIFT, 111, "battery", 3, 8, 8.0),
        # A drift of 0.1 sigma an hour takes days; the demo's is faster.
        fault(FaultKind.DRIFT, 13, "temperature", 0, 3600, 12_000.0),
        fault(FaultKind.STUCK, 17, "temperature", 2, 3600, None),
        fault(FaultKind.DROPOUT, 19, None, 5, 3600, None),
        fault(FaultKind.CLOCK_SKEW, 23, None, 5, 3600, -120.0),
    )


@dataclass
class View:
    """What the live view shows, as last asked."""

    report: FleetReport | None = None
    books: dict[str, Any] | None = None
    alarms: list[dict[str, Any]] | None = None
    windows: int = 0
    rate: float = 0.0

    def render(self, server: Server) -> Group:
        """The screen: fleet, books, alarms, and where things are."""
        report, books = self.report, self.books or {}
        numbers = Table.grid(padding=(0, 2))
        if report is not None:
            numbers.add_row("fleet", f"{report.connections_up} of {report.connections} devices connected")
            numbers.add_row(
                "messages", f"{report.sent:,} sent, {report.acked:,} acknowledged, {self.rate:,.0f}/s"
            )
            numbers.add_row("ack latency", f"p50 {report.ack_p50_ms:.1f} ms, p99 {report.ack_p99_ms:.1f} ms")
        numbers.add_row("windows", f"{self.windows:,} results of temp_{WINDOW_S}s")
        if books:
            rows = books["rows"].get("telemetry", {})
            numbers.add_row("books", "balanced" if books["balanced"] else "[bold red]NOT BALANCED[/]")
            numbers.add_row(
                "", f"{rows.get('decoded', 0):,} rows durable, {rows.get('stored', 0):,} in files"
            )
        alarms = Table(
            "alarm", "device", "state", "since", title="alarms", title_justify="left", show_edge=False
        )
        for alarm in (self.alarms or [])[:12]:
            alarms.add_row(
                alarm["alarm"], alarm["key"].get("device", ""), alarm["state"], alarm["since"][:19]
            )
        places = Table.grid(padding=(0, 2))
        places.add_row("data", str(server.directory))
        places.add_row("mqtt", server.addresses["mqtt"])
        places.add_row(
            "http", f"http://{server.addresses['http']}  (/metrics, /api/v1/books, /api/v1/alarms)"
        )
        places.add_row(
            "query", f"headwater query --data-dir {server.directory} 'SELECT count(*) FROM telemetry'"
        )
        return Group(Panel(numbers, title="Headwater"), alarms, Panel(places))


@dataclass
class Server:
    """A `headwater up` of our own."""

    process: subprocess.Popen[bytes]
    directory: Path
    addresses: dict[str, str]


def run_demo(devices: int, seconds: float, seed: int, keep: Path | None) -> int:
    """Runs the demo and returns its exit code: 0 when everything came out as promised.

    seconds: end by itself after so long; 0: until Ctrl-C
    keep:    directory for the data; None: a temporary one, removed at the end
    """
    console = Console()
    with (
        tempfile.TemporaryDirectory(prefix="headwater-demo-") as temporary,
        _server(keep or Path(temporary)) as server,
        Client(f"http://{server.addresses['http']}") as client,
    ):
        view = View()
        host, _, port = server.addresses["mqtt"].rpartition(":")
        options = FleetOptions(
            host=host,
            port=int(port),
            devices=devices,
            seed=seed,
            faults=planted(devices),
            duration_s=seconds or None,
        )
        fleet = Fleet(options)
        try:
            _watch(console, view, server, fleet, client, seconds)
        except KeyboardInterrupt:
            console.print("draining ...")
        finally:
            report = fleet.stop()
        return _summary(console, client, report)


def _watch(
    console: Console, view: View, server: Server, fleet: Fleet, client: Client, seconds: float
) -> None:
    deadline = time.monotonic() + seconds + TIMEOUT_S if seconds else None
    last, last_at = 0, time.monotonic()
    with Live(view.render(server), console=console, refresh_per_second=4, transient=False) as live:
        while server.process.poll() is None:
            view.report = fleet.report()
            now = time.monotonic()
            view.rate = (view.report.acked - last) / max(now - last_at, 1e-9)
            last, last_at = view.report.acked, now
            view.books, view.alarms = client.books(), client.alarms(limit="100")
            view.windows = view.books["rows"].get(f"temp_{WINDOW_S}s", {}).get("decoded", 0)
            live.update(view.render(server))
            if view.report.finished or (deadline is not None and now > deadline):
                return
            time.sleep(0.5)
        raise HeadwaterError(
            f"the server ended with exit code {server.process.returncode}; its messages are above"
        )


def _summary(console: Console, client: Client, report: FleetReport) -> int:
    """Checks the promises and prints them. Returns the exit code."""
    must = [
        label
        for label in report.labels
        if label.readings > TIME_TO_SHOW_S.get(FaultKind(label.kind), math.inf)
    ]
    missing = _await_alarms(client, must)
    books = _await_settled(client)
    stored = client.query("SELECT count(*) AS n FROM telemetry").to_pylist()[0]["n"]
    windows = client.query(f"SELECT count(*) AS n FROM temp_{WINDOW_S}s").to_pylist()[0]["n"]
    checks = [
        (books["balanced"], "the books balance"),
        (stored >= report.acked, f"{report.acked:,} readings acknowledged, {stored:,} found by a query"),
        (report.refused == 0, f"{report.refused} readings refused"),
        (not missing, f"{len(must) - len(missing)} of {len(must)} planted faults raised their alarm"),
        (windows > 0 or report.elapsed_s < 2 * WINDOW_S, f"{windows:,} window results"),
    ]
    for good, text in checks:
        console.print(f"[green]ok[/]   {text}" if good else f"[red]FAIL[/] {text}", highlight=False)
    for label in missing:
        console.print(
            f"     no alarm {EXPECTED[FaultKind(label.kind)]} for {label.kind} of {label.device}",
            highlight=False,
        )
    console.print(
        f"{report.messages_per_s:,.0f} messages/s over {report.elapsed_s:.1f} s, "
        f"ack p50 {report.ack_p50_ms:.1f} ms, p99 {report.ack_p99_ms:.1f} ms, max {report.ack_max_ms:.1f} ms",
        highlight=False,
    )
    return 0 if all(good for good, _ in checks) else 1


def _await_alarms(client: Client, labels: list[Label]) -> list[Label]:
    """Labels whose alarm has not been raised within a window, its lateness and the idle timeout."""
    deadline = time.monotonic() + WINDOW_S + 10
    while True:
        raised = {(alarm["alarm"], alarm["key"].get("device")) for alarm in client.alarms(limit="10000")}
        missing = [label for label in labels if (EXPECTED[FaultKind(label.kind)], label.device) not in raised]
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(0.2)


def _await_settled(client: Client) -> dict[str, Any]:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        books = client.books()
        settled = books["balanced"] and books["messages"]["in_flight"] == 0
        if settled or time.monotonic() > deadline:
            return books
        time.sleep(0.1)


@contextmanager
def _server(directory: Path) -> Iterator[Server]:
    """Starts the server in a session of its own, so that Ctrl-C reaches only us, and drains it at the end."""
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "headwater.toml"
    config.write_text(CONFIG, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "headwater",
        "up",
        "--config",
        str(config),
        "--data-dir",
        str(directory / "data"),
    ]
    command += ["--set", f"mqtt.port={_free(1883)}", "--set", f"http.port={_free(8080)}"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}
    with (directory / "headwater.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, env=environ, start_new_session=True)
    try:
        yield Server(process, directory / "data", _ready(process, directory))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _ready(process: subprocess.Popen[bytes], directory: Path) -> dict[str, str]:
    deadline = time.monotonic() + TIMEOUT_S
    run = directory / "data" / "run.json"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise HeadwaterError(
                f"starting the server: it ended with {process.returncode}; see {_tail(directory)}"
            )
        if run.exists():
            addresses: dict[str, str] = json.loads(run.read_text(encoding="utf-8"))
            return addresses
        time.sleep(0.05)
    raise HeadwaterError(f"starting the server: not ready within {TIMEOUT_S:g} s; see {_tail(directory)}")


def _tail(directory: Path) -> str:
    return (directory / "headwater.log").read_text(encoding="utf-8", errors="replace")[-2000:]


def _free(port: int) -> int:
    """The port if nobody has it, else 0, which picks a free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
    return port

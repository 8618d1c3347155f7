"""The gateway beside its peers, in one run: messages/s and CPU per message at QoS 1, flat out.

    YARDSTICK=DIR .venv/bin/python benches/gateway.py [--rounds 5] [--secs 4] [--data-dir DIR]

DIR holds loadgen.c (the load generator) and discard.c (acknowledges and throws away: the limit of an epoll server).
Each round runs every server in turn, so that a neighbour's load falls on all of them; figures are medians.
Headwater runs with `pipeline.enabled = false`: gateway and log, every message decoded and durable before its
acknowledgement; mosquitto has no persistence and decodes nothing. CPU per message and the ratios are what to trust.

Exit code: 1 when an acknowledged message is not a decoded row in the log; 0 else, whatever the figures are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

import headwater

ROOT = Path(__file__).parents[1]
CONNECTIONS, WINDOW = 50, 100
#: What to reach beside mosquitto: at least so many times its rate, at less than so much of its CPU per message.
RATE_TIMES, CPU_SHARE = 5.0, 0.25

STREAM = """
[pipeline]
enabled = false
[streams.telemetry]
topic  = "dt/{site}/{device}/telemetry"
time   = "ts"
fields = { temperature = "double", humidity = "double", battery = "double" }
"""


@dataclass
class Server:
    """One of the servers and what its rounds gave; `why_not` says why it was not measured."""

    name: str
    why_not: str | None = None
    rates: list[float] = field(default_factory=list)
    cpus_us: list[float] = field(default_factory=list)
    p50s_ms: list[float] = field(default_factory=list)
    p99s_ms: list[float] = field(default_factory=list)

    def add(self, result: dict[str, Any]) -> None:
        self.rates.append(result["msgs_s"])
        self.cpus_us.append(result["srv_cpu_s"] / result["acked"] * 1e6)
        self.p50s_ms.append(result["ack_ms"]["p50"])
        self.p99s_ms.append(result["ack_ms"]["p99"])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise SystemExit(f"bench: {process.args!r} does not accept on port {port}")


@contextmanager
def running(command: list[str | Path]) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that is ended again."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def pids(process: subprocess.Popen[bytes]) -> list[int]:
    """The process and its children: discard works in one."""
    top = psutil.Process(process.pid)
    return [process.pid, *(child.pid for child in top.children(recursive=True))]


def load(generator: Path, port: int, process: subprocess.Popen[bytes], secs: float) -> dict[str, Any]:
    """One run of the load generator, flat out; its figures."""
    command = [
        generator,
        "--port",
        port,
        "--conns",
        CONNECTIONS,
        "--qos",
        1,
        "--window",
        WINDOW,
        "--secs",
        secs,
    ]
    command += ["--pids", ",".join(str(pid) for pid in pids(process))]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    if not result["drained"] or result["died"] or result["sent"] != result["acked"]:
        raise SystemExit(f"bench: the load was not answered in full: {done.stdout}{done.stderr}")
    return result


def measure_discard(generator: Path, discard: Path, secs: float) -> dict[str, Any]:
    port = free_port()
    with running([discard, "-p", str(port)]) as process:
        await_port(port, process)
        return load(generator, port, process, secs)


def measure_mosquitto(generator: Path, program: str, scratch: Path, secs: float) -> dict[str, Any]:
    port = free_port()
    config = scratch / "mosquitto.conf"
    # Without limits on what is in flight, which would hold its rate down.
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nlog_type none\n"
        "max_inflight_messages 0\nmax_queued_messages 0\n"
    )
    with running([program, "-c", config]) as process:
        await_port(port, process)
        return load(generator, port, process, secs)


def measure_headwater(generator: Path, scratch: Path, secs: float) -> tuple[dict[str, Any], int]:
    """Its figures, and the rows that are decoded and durable in its log."""
    data, config = scratch / "data", scratch / "headwater.toml"
    config.write_text(STREAM, encoding="utf-8")
    ports = ["--set", "mqtt.port=0", "--set", "http.port=0"]
    command = [sys.executable, "-m", "headwater", "up", "--config", config, "--data-dir", data, *ports]
    with running(command) as process:
        end = time.monotonic() + 60
        while not (data / "run.json").exists():
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit("bench: headwater does not start; try: headwater up")
            time.sleep(0.02)
        addresses = json.loads((data / "run.json").read_text())
        result = load(generator, int(addresses["mqtt"].rpartition(":")[2]), process, secs)
        metrics = httpx.get(f"http://{addresses['http']}/metrics", timeout=60).text
        [rows] = re.findall(r'^headwater_log_rows_total\{stream="telemetry"\} (\S+)$', metrics, flags=re.M)
        [decoded] = re.findall(r'^headwater_messages_total\{outcome="decoded"\} (\S+)$', metrics, flags=re.M)
    shutil.rmtree(data)
    return result, int(min(float(rows), float(decoded)))


def build(yardstick: Path, scratch: Path) -> dict[str, Path]:
    """Compiles the yardstick's programs into `scratch`."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise SystemExit(
            "bench: no C compiler (cc) to build the yardstick with; Debian: apt-get install gcc libc6-dev"
        )
    built = {}
    for name in ("loadgen", "discard"):
        built[name] = scratch / name
        command = [compiler, "-std=gnu11", "-O2", yardstick / f"{name}.c", "-o", built[name]]
        subprocess.run(command, check=True)
    return built


def version_of(program: str) -> str:
    done = subprocess.run([program, "-h"], capture_output=True, text=True, check=False)
    return next((line for line in done.stdout.splitlines() if "version" in line), "unknown version")


def machine(directory: Path) -> str:
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    disk = subprocess.run(
        ["stat", "-f", "-c", "%T", directory], capture_output=True, text=True, check=False
    ).stdout
    return (
        f"{os.cpu_count()} cores of {models[0] if models else platform.machine()}, "
        f"{psutil.virtual_memory().total >> 30} GiB, {platform.system()} {platform.release()}, data on {disk.strip()}"
    )


def show(servers: list[Server], missing: int | None) -> None:
    """The table, then each row to reach with its verdict."""
    by_name = {server.name: server for server in servers}
    ours, mosquitto, limit = (by_name[name] for name in ("headwater", "mosquitto", "discard"))
    say("| server | msg/s | x mosquitto | x discard | server CPU us/msg | x mosquitto | ack p50 / p99 ms |")
    say("| --- | --- | --- | --- | --- | --- | --- |")
    for server in servers:
        if server.why_not or not server.rates:
            say(f"| {server.name} | not measured: {server.why_not} | | | | | |")
            continue
        rate, cpu = statistics.median(server.rates), statistics.median(server.cpus_us)
        say(
            f"| {server.name} | {rate:,.0f} | {ratio(server.rates, mosquitto.rates)} | "
            f"{ratio(server.rates, limit.rates)} | {cpu:.2f} | {ratio(server.cpus_us, mosquitto.cpus_us)} | "
            f"{statistics.median(server.p50s_ms):.1f} / {statistics.median(server.p99s_ms):.1f} |"
        )
    say()
    say("| to reach | found | |")
    say("| --- | --- | --- |")
    if ours.rates and mosquitto.rates:
        rate = statistics.median(ours.rates) / statistics.median(mosquitto.rates)
        cpu = statistics.median(ours.cpus_us) / statistics.median(mosquitto.cpus_us)
        say(
            f"| >= {RATE_TIMES:g} times mosquitto's rate | {rate:.2f} times | {verdict(rate >= RATE_TIMES)} |"
        )
        say(f"| < {CPU_SHARE:g} of its CPU per message | {cpu:.3f} | {verdict(cpu < CPU_SHARE)} |")
    else:
        say(f"| {RATE_TIMES:g} times mosquitto's rate at {CPU_SHARE:g} of its CPU | not measured | |")
    found = "not measured | |" if missing is None else f"{missing} missing | {verdict(missing == 0)} |"
    say(f"| every acknowledged message a decoded, durable row | {found}")


def ratio(ours: list[float], theirs: list[float]) -> str:
    return f"{statistics.median(ours) / statistics.median(theirs):.2f}" if theirs else "not measured"


def verdict(reached: bool) -> str:
    return "reached" if reached else "falls short"


def say(line: str = "") -> None:
    print(line, flush=True)  # noqa: T201


def main() -> int:
    """Runs the rounds and prints the tables."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--secs", type=float, default=4.0, help="of load per server and round")
    options.add_argument("--data-dir", type=Path, default=ROOT, help="where Headwater's data lies meanwhile")
    given = options.parse_args()
    yardstick = os.environ.get("YARDSTICK")
    mosquitto = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")

    say(f"Headwater {headwater.__version__}, Python {platform.python_version()}; {machine(given.data_dir)}")
    say(f"mosquitto: {version_of(mosquitto) if mosquitto else 'not installed'}")
    load_ = f"{CONNECTIONS} connections flat out, QoS 1, window {WINDOW}"
    say(f"{load_}; medians of {given.rounds} rounds of {given.secs:g} s")
    say()
    no_yardstick = None if yardstick else "YARDSTICK is not set"
    servers = [
        Server("discard", no_yardstick),
        Server("mosquitto", no_yardstick or (None if mosquitto else "mosquitto is not installed")),
        Server("headwater", no_yardstick),
    ]
    if yardstick is None:
        show(servers, None)
        return 0
    missing = 0
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=given.data_dir) as folder:
        scratch = Path(folder)
        built = build(Path(yardstick), scratch)
        generator = built["loadgen"]
        for _ in range(given.rounds):
            servers[0].add(measure_discard(generator, built["discard"], given.secs))
            if mosquitto is not None:
                servers[1].add(measure_mosquitto(generator, mosquitto, scratch, given.secs))
            result, rows = measure_headwater(generator, scratch, given.secs)
            servers[2].add(result)
            missing += result["acked"] - rows
    show(servers, missing)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())

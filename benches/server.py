"""Headwater as a process on free ports: started, asked, profiled by thread, stopped or killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import psutil

from benches.subscribers import connect

T = TypeVar("T")

#: The stream that takes the yardstick's readings.
TELEMETRY = """
[streams.telemetry]
topic  = "dt/{site}/{device}/telemetry"
time   = "ts"
fields = { temperature = "double", humidity = "double", battery = "double" }
"""
LOG_ALONE = f"[pipeline]\nenabled = false\n{TELEMETRY}"

_START_S = 120.0
_METRIC = re.compile(r"^([a-z_]+)(?:\{([^}]*)\})? (\S+)", flags=re.M)
_TICKS = os.sysconf("SC_CLK_TCK")


def quantile_ms(buckets: Mapping[float, int], part: float) -> float:
    """Upper bound of the bucket in which that part of the observations ends, milliseconds."""
    total = max(buckets.values())
    return 1e3 * min(bound for bound, count in buckets.items() if count >= part * total)


class Server:
    """One data directory and the process on it; as a context manager it is stopped and its data removed.

    config:      text of the TOML file
    environment: variables beside those of this process
    """

    def __init__(
        self, scratch: Path, config: str = LOG_ALONE, environment: Mapping[str, str] | None = None
    ) -> None:
        self.data = scratch / "data"
        self.config = scratch / "headwater.toml"
        self.config.write_text(config, encoding="utf-8")
        self.environment = {**os.environ, **(environment or {})}
        self.errors = scratch / "headwater.stderr"
        self.http = httpx.Client(timeout=600)
        self.process: subprocess.Popen[bytes] | None = None
        #: What `run.json` says.
        self.addresses: dict[str, Any] = {}
        self.started_in_s = 0.0

    def start(self) -> Self:
        """Starts the process and waits until all of it answers.

        `started_in_s` tells after how long a device's CONNECT was answered, which HTTP comes up behind.
        """
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        begin = time.monotonic()
        ports = ["--set", f"mqtt.port={self.port}", "--set", "http.port=0"]
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "headwater",
            "up",
            "--config",
            self.config,
            "--data-dir",
            self.data,
        ]
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [*command, *ports], stdout=subprocess.DEVNULL, stderr=errors, env=self.environment
            )
        self._await(begin, self._answers)
        self.started_in_s = time.monotonic() - begin
        self.addresses = self._await(begin, self._announced)
        self.http.base_url = httpx.URL(f"http://{self.addresses['http']}")
        return self

    def _await(self, begin: float, probe: Callable[[], T | None]) -> T:
        while not (found := probe()):
            if self.process is None or self.process.poll() is not None or time.monotonic() - begin > _START_S:
                tail = self.errors.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise SystemExit(f"bench: headwater does not start: {tail}")
            time.sleep(0.005)
        return found

    def until(self, holds: Callable[[], bool]) -> None:
        """Waits until it holds. raises: SystemExit after two minutes"""
        self._await(time.monotonic(), holds)

    def _answers(self) -> bool:
        """Whether a CONNECT is answered with success."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=10) as client:
            client.sendall(connect("bench-start"))
            return client.recv(4) == b"\x20\x02\x00\x00"
        return False

    def _announced(self) -> dict[str, Any] | None:
        with suppress(FileNotFoundError, json.JSONDecodeError):
            found: dict[str, Any] = json.loads((self.data / "run.json").read_text(encoding="utf-8"))
            # A killed process leaves its file behind; its successor's has another pid.
            if self.process is not None and found["pid"] == self.process.pid:
                return found
        return None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.http.close()
        shutil.rmtree(self.data, ignore_errors=True)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL if it does not end."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @property
    def pids(self) -> list[int]:
        """Process ids, for the load generator's CPU figures."""
        assert self.process is not None
        return [self.process.pid]

    def metrics(self) -> dict[str, float]:
        """Every metric: `name` or `name{labels}` to value."""
        text = self.http.get("/metrics").raise_for_status().text
        return {
            f"{name}{{{labels}}}" if labels else name: float(v) for name, labels, v in _METRIC.findall(text)
        }

    def buckets(self, histogram: str) -> Counter[float]:
        """Observations at or below each bound of a histogram, seconds."""
        prefix = f'{histogram}_bucket{{le="'
        found = self.metrics().items()
        return Counter(
            {float(name.split('"')[1]): int(count) for name, count in found if name.startswith(prefix)}
        )

    def query(self, sql: str) -> list[list[Any]]:
        """Rows of one SELECT."""
        rows: list[list[Any]] = (
            self.http.post("/api/v1/query", json={"sql": sql}).raise_for_status().json()["rows"]
        )
        return rows

    def durable_rows(self) -> int:
        """Messages that are decoded and durable rows of the telemetry stream."""
        found = self.metrics()
        rows = found['headwater_log_rows_total{stream="telemetry"}']
        return int(min(rows, found['headwater_messages_total{outcome="decoded"}']))

    def recovered(self) -> tuple[int, float]:
        """What the log itself says of its last recovery: bytes that it read, and seconds that it took."""
        text = self.errors.read_text(encoding="utf-8")
        [*_, opened] = (line for line in text.splitlines() if '"log opened"' in line)
        recovery = json.loads(opened)
        return recovery["bytes_read"], recovery["took_ms"] / 1e3

    def rss_bytes(self) -> int:
        """Resident memory."""
        size: int = psutil.Process(self.pids[0]).memory_info().rss
        return size

    def cpu_by_thread(self) -> dict[str, float]:
        """CPU seconds so far by name of thread; numbers at the end of names are left out."""
        cpu: dict[str, float] = defaultdict(float)
        for task in Path(f"/proc/{self.pids[0]}/task").iterdir():
            with suppress(OSError):  # a thread may end meanwhile
                name, rest = (task / "stat").read_text().partition("(")[2].rsplit(")", 1)
                times = rest.split()
                cpu[re.sub(r"[-_]?\d+$", "", name)] += (int(times[11]) + int(times[12])) / _TICKS
        return dict(cpu)


def profile(before: dict[str, float], after: dict[str, float], messages: int) -> str:
    """Share and CPU per message of each kind of thread between two `cpu_by_thread`, the largest first."""
    spent = {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}
    total = sum(spent.values()) or 1.0
    parts = sorted(spent.items(), key=lambda part: -part[1])
    shown = [
        f"{name} {seconds / total:.0%} ({seconds / max(messages, 1) * 1e6:.2f} us)"
        for name, seconds in parts
        if seconds / total >= 0.01
    ]
    return "CPU by thread: " + ", ".join(shown)

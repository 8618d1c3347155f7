"""A Headwater that runs as a process on free ports, as a user would start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

#: Longest wait for anything that is awaited, seconds; generous, since test machines are shared.
PATIENCE_S = 60.0
_POLL_S = 0.02

T = TypeVar("T")

#: One stream of devices with every column type, and nothing else.
TELEMETRY = """
[streams.telemetry]
topic    = "dt/{site}/{device}/telemetry"
time     = "ts"
lateness = "10s"
[streams.telemetry.fields]
seq         = "bigint"
temperature = "double"
on          = "boolean"
note        = "string"
rssi        = { type = "bigint", path = "radio.rssi" }
"""


def await_that(what: str, probe: Callable[[], T | None], patience_s: float = PATIENCE_S) -> T:
    """The first true value that `probe` gives; fails naming `what` and the last value after `patience_s`."""
    end = time.monotonic() + patience_s
    while True:
        begin = time.monotonic()
        if found := probe():
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {patience_s:g} s: {what} (last: {found!r})")
        # A dear question, such as one for a hundred thousand alarms, leaves the server time for what is waited for.
        time.sleep(max(_POLL_S, time.monotonic() - begin))


class Server:
    """One data directory and the process that runs on it, when it does.

    config:      text of the TOML file
    directory:   the data directory; kept between starts
    environment: variables of the process, beside this process's own; HEADWATER_* of this process are left out
    """

    def __init__(
        self, directory: Path, config: str = TELEMETRY, environment: Mapping[str, str] | None = None
    ) -> None:
        self.directory = directory
        self.file = directory.with_name(f"{directory.name}.toml")
        self.file.write_text(config, encoding="utf-8")
        self.errors = directory.with_name(f"{directory.name}.stderr")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADWATER_")}
        self.environment |= environment or {}
        self.process: subprocess.Popen[str] | None = None
        self.running: dict[str, Any] = {}
        self.http = httpx.Client(timeout=PATIENCE_S)

    # ---- the process

    def spawn(self, overrides: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Starts the process and does not wait for it. Ports are free ones unless overridden."""
        settings = ["mqtt.port=0", "http.port=0", *overrides]
        command = [sys.executable, "-m", "headwater", "up", "--config", str(self.file)]
        command += ["--data-dir", str(self.directory), *(f"--set={setting}" for setting in settings)]
        with self.errors.open("a", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                text=True,
            )
        return self.process

    def start(self, overrides: Sequence[str] = ()) -> Self:
        """Starts the process and waits until it accepts."""
        process = self.spawn(overrides)
        self.running = await_that("run.json of the started process", lambda: self._announced(process))
        self.http.base_url = httpx.URL(f"http://{self.running['http']}")
        return self

    def _announced(self, process: subprocess.Popen[str]) -> dict[str, Any] | None:
        if process.poll() is not None:
            raise AssertionError(f"headwater ended with code {process.returncode}:\n{self.stderr()}")
        try:
            running: dict[str, Any] = json.loads((self.directory / "run.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        # A killed process leaves its file behind; its successor's has another pid.
        return running if running["pid"] == process.pid else None

    def stop(self) -> None:
        """SIGTERM; the process must drain and end with code 0."""
        assert self.process is not None
        self.process.terminate()
        code = self.process.wait(PATIENCE_S)
        assert code == 0, f"headwater ended with code {code}:\n{self.stderr()}"
        self.process = None

    def kill(self) -> None:
        """SIGKILL, and gone when this returns."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self.process = None

    def close(self) -> None:
        """Ends what still runs, however; for fixtures."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.close()

    def stderr(self) -> str:
        """What the process has written to its standard error, over all starts."""
        return self.errors.read_text(encoding="utf-8", errors="replace") if self.errors.exists() else ""

    # ---- its addresses

    @property
    def mqtt(self) -> tuple[str, int]:
        """Host and port of the MQTT listener."""
        host, _, port = str(self.running["mqtt"]).rpartition(":")
        return host.strip("[]"), int(port)

    # ---- its API

    def rows(self, sql: str, *params: object) -> list[list[Any]]:
        """Rows of one SELECT by `POST /api/v1/query`, as JSON gives them."""
        answer = self.http.post("/api/v1/query", json={"sql": sql, "params": list(params)})
        assert answer.status_code == 200, f"{sql}: {answer.status_code} {answer.text}"
        rows: list[list[Any]] = answer.json()["rows"]
        return rows

    def value(self, sql: str, *params: object) -> Any:
        """The one value of a SELECT with one row and one column."""
        [[value]] = self.rows(sql, *params)
        return value

    def get(self, path: str, **params: str) -> Any:
        """The JSON of a GET that must succeed."""
        answer = self.http.get(path, params=params)
        assert answer.status_code == 200, f"GET {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def await_ready(self) -> None:
        """Waits until `/readyz` is 200: a query sees every acknowledged reading."""
        await_that("/readyz is 200", lambda: self.http.get("/readyz").status_code == 200)

    def await_alarms(
        self, condition: Callable[[list[dict[str, Any]]], bool], **filters: str
    ) -> list[dict[str, Any]]:
        """The alarm instances that pass the filters, as soon as `condition` holds for them."""

        def probe() -> list[dict[str, Any]] | None:
            found: list[dict[str, Any]] = self.get("/api/v1/alarms", limit="100000", **filters)
            return [*found, {}] if condition(found) else None

        return await_that("the alarms expected", probe)[:-1]

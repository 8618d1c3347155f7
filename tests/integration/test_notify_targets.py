"""Targets of a running Headwater: signed webhooks, our own broker, dead letters, escalation, and the test button."""

from __future__ import annotations

import hashlib
import hmac
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.integration import peer
from tests.integration.peer import Peer
from tests.integration.server import TELEMETRY, Server, await_that

SECRET = "a secret of some length"


class Hook:
    """A web server with a path for every temper: /slow (answers when released), /busy (429 once), /no (422)."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, dict[str, str], bytes]] = []
        self.release = threading.Event()
        self.refuse = True
        busy: list[str] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/slow":
                    hook.release.wait(60)
                status = 204
                if self.path == "/busy" and not busy:
                    busy.append(self.path)
                    status = 429
                if self.path == "/no" and hook.refuse:
                    status = 422
                headers = {name.lower(): value for name, value in self.headers.items()}
                hook.posts.append((self.path, headers | {"status": str(status)}, body))
                self.send_response(status)
                if status == 429:
                    self.send_header("Retry-After", "6")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Silence on standard error."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def to(self, path: str, status: str = "204") -> list[tuple[dict[str, str], Any]]:
        return [
            (headers, json.loads(body))
            for at, headers, body in self.posts
            if at == path and headers["status"] == status
        ]

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.close()


def config(hook: Hook) -> str:
    return (
        TELEMETRY
        + f"""
[alarms.hot]
on = "telemetry"
steps = [{{ where = "temperature > 80", severity = "minor" }}, {{ where = "temperature > 90", severity = "critical" }}]
notify = ["slow", "dead", "busy", "no", "bus"]
[[routes]]
match = {{ severity = "critical", device = "d*" }}
steps = [{{ after = "0s", to = ["ops"] }}, {{ after = "2s", to = ["boss"] }}]
[notify.ops]
url = "{hook.url}/ops"
secret = "{SECRET}"
[notify.boss]
url = "{hook.url}/boss"
body = '{{"boss": "${{alarm}} of ${{key.device}} is ${{state}}"}}'
[notify.slow]
url = "{hook.url}/slow"
[notify.busy]
url = "{hook.url}/busy"
[notify.no]
url = "{hook.url}/no"
[notify.dead]
url = "http://127.0.0.1:9/dead"
[notify.bus]
url = "mqtt:alarms/{{alarm}}/{{device}}"
"""
    )


def cli(server: Server, *words: str, code: int = 0) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "headwater", *words, "--data-dir", str(server.directory), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def ingest(server: Server, device: str, temperature: float, ts: int) -> None:
    body = {"site": "a", "device": device, "ts": 1_790_000_000 + ts, "temperature": temperature}
    assert server.http.post("/api/v1/ingest/telemetry", json=body).status_code == 200


def test_each_target_gets_its_own_whatever_the_others_do(server: Callable[..., Server], hook: Hook) -> None:
    up = server(config(hook)).start()
    with Peer(up.mqtt, 5) as watcher:
        watcher.login("watcher")
        assert watcher.ask(peer.subscribe(5, ("alarms/#", 1))) == ["SUBACK 0x01"]
        ingest(up, "d1", 95.0, 0)
        await_that("the signed webhook has it, beside slow and dead ones", lambda: hook.to("/ops"))
        answer = watcher.read()
        while answer is not None and answer.kind != peer.PUBLISH:
            answer = watcher.read()
        assert answer is not None
        topic, payload = answer.message(5)
        assert (topic, json.loads(payload)["state"]) == ("alarms/hot/d1", "firing")
    headers, body = hook.to("/ops")[0]
    given = dict(part.split("=", 1) for part in headers["headwater-signature"].split(","))
    raw = next(body for path, _, body in hook.posts if path == "/ops")
    assert (
        given["v1"] == hmac.new(SECRET.encode(), f"{given['t']}.".encode() + raw, hashlib.sha256).hexdigest()
    )
    assert (body["labels"]["severity"], body["dedupe_key"]) == ("critical", 'hot:{"device":"d1"}')

    await_that("the boss is told later", lambda: hook.to("/boss"))
    assert hook.to("/boss")[0][1] == {"boss": "hot of d1 is firing"}
    [(first, _)] = await_that("the busy one was asked", lambda: hook.to("/busy", "429"))
    [(again, _)] = await_that("and again after Retry-After", lambda: hook.to("/busy"))
    assert first["idempotency-key"] == again["idempotency-key"]
    assert hook.to("/slow") == []
    hook.release.set()
    await_that("the slow one has it", lambda: hook.to("/slow"))

    await_that(
        "what was refused is dead", lambda: cli(up, "notify", "list", "--state", "dead", "--target", "no")
    )
    hook.refuse = False
    assert cli(up, "notify", "replay", "--target", "no") == [{"replayed": 1}]
    [(sent, _)] = await_that("it is sent again", lambda: hook.to("/no"))
    assert sent["idempotency-key"] == hook.to("/no", "422")[0][0]["idempotency-key"]

    assert cli(up, "notify", "test", "ops") == [{"target": "ops", "delivered": True, "error": None}]
    assert cli(up, "notify", "test", "dead", code=1)[0]["error"] == "POST failed: ConnectError"
    cli(up, "notify", "test", "nobody", code=1)
    [waiting] = cli(up, "notify", "list", "--state", "waiting")
    assert waiting["target"] == "dead"
    up.stop()


def test_an_acknowledged_alarm_is_escalated_no_further_also_over_a_kill(
    server: Callable[..., Server], hook: Hook
) -> None:
    up = server(config(hook)).start()
    ingest(up, "d1", 95.0, 0)
    ingest(up, "d2", 95.0, 0)
    await_that("both are told", lambda: len(hook.to("/ops")) == 2)
    ids = {each["key"]["device"]: each["id"] for each in up.get("/api/v1/alarms")}
    assert up.http.post(f"/api/v1/alarms/{ids['d1']}/acknowledge", json={"who": "ann"}).status_code == 200
    told = len(hook.to("/boss"))
    up.kill()
    up.start()
    await_that(
        "the other one is escalated", lambda: any("d2" in body["boss"] for _, body in hook.to("/boss"))
    )
    assert sum("d1" in body["boss"] for _, body in hook.to("/boss")) <= told
    up.stop()

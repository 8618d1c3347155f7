"""Notifications of alarms: webhook, Apprise and MQTT get each firing and each resolution, also over a kill."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.integration import peer
from tests.integration.peer import Peer
from tests.integration.server import TELEMETRY, Server, await_that


class Hook:
    """A web server that keeps what is posted to it; it can refuse."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, dict[str, str], Any]] = []
        self.status = 200
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                hook.posts.append((self.path, headers, json.loads(body)))
                self.send_response(hook.status)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Silence on standard error."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def to(self, path: str) -> list[Any]:
        return [body for at, _headers, body in self.posts if at.startswith(path)]

    def close(self) -> None:
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
[alarms.overheat]
on       = "telemetry"
where    = "temperature > 80"
clear    = "temperature < 75"
for      = "10s"
severity = "critical"
notify   = ["web", "apprise", "bus"]
[notify.web]
url = "http://{hook.address}/web"
[notify.apprise]
url = "json://{hook.address}/apprise"
[notify.bus]
url = "mqtt:alarms/{{alarm}}/{{device}}"
"""
    )


def send(server: Server, *readings: tuple[int, float]) -> None:
    """Readings (second, temperature) of d1, acknowledged."""
    with Peer(server.mqtt) as device:
        device.login("d1")
        for second, temperature in readings:
            body = json.dumps({"ts": 1_790_000_000 + second, "temperature": temperature}).encode()
            assert device.ask(peer.publish(4, "dt/hall/d1/telemetry", body, qos=1)) == ["PUBACK 0x00"]


def test_all_targets_hear_of_firing_and_resolved(server: Callable[..., Server], hook: Hook) -> None:
    up = server(config(hook)).start()
    with Peer(up.mqtt, 5) as watcher:
        watcher.login("watcher")
        assert watcher.ask(peer.subscribe(5, ("alarms/+/+", 1))) == ["SUBACK 0x01"]
        send(up, (0, 85), (5, 85), (10, 79), (15, 85), (20, 85), (25, 85), (26, 76), (30, 70))
        [alarm] = up.await_alarms(lambda found: [each["state"] for each in found] == ["resolved"])
        assert alarm["key"] == {"device": "d1"}
        assert alarm["severity"] == "critical"
        assert alarm["since"] == "2026-09-21T14:13:35Z"
        assert alarm["fired_at"] == "2026-09-21T14:13:45Z"
        assert alarm["resolved_at"] == "2026-09-21T14:13:50Z"

        await_that("the webhook got both", lambda: len(hook.to("/web")) >= 2)
        await_that("Apprise got both", lambda: len(hook.to("/apprise")) >= 2)
        assert [each["state"] for each in hook.to("/web")] == ["firing", "resolved"]
        assert {each["id"] for each in hook.to("/web")} == {alarm["id"]}
        assert all("overheat" in json.dumps(each) for each in hook.to("/apprise"))
        heard = []
        while len(heard) < 2:
            answer = watcher.read()
            assert answer is not None
            if answer.kind == peer.PUBLISH:
                topic, payload = answer.message(5)
                assert topic == "alarms/overheat/d1"
                heard.append(json.loads(payload)["state"])
        assert heard == ["firing", "resolved"]
    # The one reading that fired, by each of three targets; and all eight.
    await_that("the time to three targets is told", lambda: observed(up, "alarm") == 3)
    await_that("the time to the tables is told", lambda: observed(up, "visible") == 8)
    up.stop()


def observed(server: Server, latency: str) -> int:
    """Readings in a histogram of latencies."""
    [count] = re.findall(
        rf"^headwater_{latency}_latency_seconds_count (\S+)$", server.http.get("/metrics").text, re.M
    )
    return int(float(count))


def test_a_refused_notification_is_sent_again_over_a_kill_with_the_same_key(
    server: Callable[..., Server], hook: Hook
) -> None:
    up = server(config(hook)).start()
    hook.status = 503
    send(up, (0, 85), (10, 85))
    up.await_alarms(lambda found: [each["state"] for each in found] == ["firing"])
    await_that("the webhook refuses", lambda: hook.to("/web"))
    up.kill()
    hook.status = 200
    hook.posts.clear()
    up.start()
    await_that("the webhook gets it", lambda: hook.to("/web"))
    await_that("so does Apprise", lambda: hook.to("/apprise"))
    [alarm] = up.get("/api/v1/alarms")
    assert {each["id"] for each in hook.to("/web")} == {alarm["id"]}
    keys = {headers.get("idempotency-key") for at, headers, _ in hook.posts if at == "/web"}
    assert len(keys) == 1
    assert keys != {None}, "a notification carries no key by which its repetition is known"
    up.stop()

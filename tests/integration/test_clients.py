"""Clients as an operator sees them: by the API, by the command line, by `$SYS` and by lifecycle events."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from headwater.client import Client
from headwater.errors import NotFoundError, TraceError
from tests.integration.peer import PATIENCE_S, Peer, publish
from tests.integration.server import Server, await_that

Starts = Callable[..., Server]


@pytest.fixture
def up(server: Starts) -> Server:
    return server().start(["mqtt.sys_interval=1s"])


@pytest.fixture
def api(up: Server) -> Iterator[Client]:
    with Client.of_directory(up.directory) as client:
        yield client


class Device:
    """A paho client of MQTT 5 with a session of a minute; what it hears, and how it ended."""

    def __init__(self, up: Server, name: str) -> None:
        self.heard: queue.Queue[tuple[str, bytes, bool]] = queue.Queue()
        self.ended: queue.Queue[int] = queue.Queue()
        self._answers: queue.Queue[str] = queue.Queue()
        self.paho = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5, reconnect_on_failure=False
        )
        self.paho.on_message = lambda _c, _d, each: self.heard.put((each.topic, each.payload, each.retain))
        self.paho.on_disconnect = lambda _c, _d, _f, reason, _p: self.ended.put(reason.value)
        self.paho.on_connect = lambda *_: self._answers.put("connected")
        self.paho.on_subscribe = lambda *_: self._answers.put("subscribed")
        session = Properties(PacketTypes.CONNECT)
        session.SessionExpiryInterval = 60
        self.paho.connect(*up.mqtt, keepalive=30, properties=session)
        self.paho.loop_start()
        assert self._answers.get(timeout=PATIENCE_S) == "connected"

    def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        self.paho.subscribe(topic_filter, qos)
        assert self._answers.get(timeout=PATIENCE_S) == "subscribed"

    def hear(self) -> tuple[str, bytes, bool]:
        return self.heard.get(timeout=PATIENCE_S)

    def close(self) -> None:
        self.paho.disconnect()
        self.paho.loop_stop()


@pytest.fixture
def device(up: Server) -> Iterator[Callable[[str], Device]]:
    made: list[Device] = []

    def make(name: str) -> Device:
        made.append(Device(up, name))
        return made[-1]

    yield make
    for each in made:
        each.close()


def headwater(up: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADWATER_")}
    return subprocess.run(
        [sys.executable, "-m", "headwater", *arguments, "--data-dir", str(up.directory)],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=60,
    )


def test_clients_are_listed_page_by_page(up: Server, api: Client) -> None:
    peers = [Peer(up.mqtt) for _ in range(7)]
    try:
        for n, each in enumerate(peers):
            each.login(f"dev/{n}" if n % 2 else f"dev-{n}")
        found, after = [], "0"
        while after != "None":
            page = up.get("/api/v1/clients", search="dev*", limit="2", after=after)
            found += [each["client"] for each in page["clients"]]
            after = str(page["next"])
        assert sorted(found) == [
            each["client"] for each in sorted(api.clients(), key=lambda each: each["client"])
        ]
        assert len(found) == 7
        assert {each["client"] for each in api.clients("dev/")} == {"dev/1", "dev/3", "dev/5"}
        assert list(api.clients(connected=False)) == []
        assert api.client("dev/1")["protocol"] == "3.1.1"
    finally:
        for each in peers:
            each.close()
    assert up.http.get("/api/v1/clients", params={"limit": "0"}).status_code == 422


def test_one_client_from_its_connection_to_its_end(
    up: Server, api: Client, device: Callable[[str], Device]
) -> None:
    with pytest.raises(NotFoundError, match="nothing is known"):
        api.client("d1")
    d1 = device("d1")
    d1.subscribe("x/#")
    found = api.client("d1")
    assert found["connected"]
    assert (found["keep_alive_s"], found["session_expiry_s"], found["clean_start"]) == (30, 60, True)
    assert (found["listener"], found["protocol"], found["address"].split(":")[0]) == (
        "mqtt",
        "5.0",
        "127.0.0.1",
    )
    assert found["subscriptions"] == [{"filter": "x/#", "qos": 1, "shared": False}]
    assert found["last_close"] is None
    assert api.kick("d1") == "connection"
    assert d1.ended.get(timeout=PATIENCE_S) == 0x98
    found = api.client("d1")
    assert not found["connected"]
    assert found["last_close"]["reason"] == "AdministrativeAction"
    with pytest.raises(NotFoundError, match="session=true"):
        api.kick("d1")
    assert api.kick("d1", session=True) == "session"
    with pytest.raises(NotFoundError, match="no session"):
        api.kick("d1", session=True)
    assert api.client("d1")["last_close"]["reason"] == "AdministrativeAction"
    event = await_that("the event", lambda: api.client("d1")["events"])[0]
    assert event["reason"] == "AdministrativeAction"


def test_the_command_line(up: Server, device: Callable[[str], Device]) -> None:
    d1 = device("d1")
    d1.subscribe("x/#")
    listed = headwater(up, "clients", "--search", "d?", "--json")
    assert [json.loads(line)["client"] for line in listed.stdout.splitlines()] == ["d1"], listed.stderr
    shown = headwater(up, "clients", "show", "d1")
    assert "x/#" in shown.stdout
    assert "keep_alive_s" in shown.stdout
    kicked = headwater(up, "clients", "kick", "d1", "--session")
    assert kicked.stdout == "ended the connection of d1\n", kicked.stderr
    assert d1.ended.get(timeout=PATIENCE_S) == 0x98
    unknown = headwater(up, "clients", "kick", "d1")
    assert unknown.returncode == 1
    assert "headwater: client 'd1': it is not connected" in unknown.stderr


def test_a_trace_by_the_command_line_and_by_the_api(up: Server, api: Client) -> None:
    command = [sys.executable, "-m", "headwater", "trace", "dt/+/d1/#", "--count", "1"]
    with subprocess.Popen(
        [*command, "--data-dir", str(up.directory)], stdout=subprocess.PIPE, text=True
    ) as process:

        def says() -> bool:
            """Publishes again and again, since a trace shows what comes after its start."""
            with Peer(up.mqtt, 5) as client:
                client.login("d1")
                client.ask(publish(5, "dt/hall/d1/telemetry", b'{"seq": 1}', qos=1))
            return process.poll() is not None

        await_that("the trace of the topic ends", says)
        assert process.stdout is not None
        text = process.stdout.read()
    assert "d1 -> PUBLISH" in text
    assert 'topic "dt/hall/d1/telemetry", QoS 1' in text
    with Client.of_directory(up.directory) as second, Peer(up.mqtt, 5) as client:
        client.login("d2")
        with up.http.stream("GET", "/api/v1/trace", params={"client": "d2"}) as response:
            lines = response.iter_lines()
            assert next(lines) == "", "it has begun"
            client.send(b"\xc0\x00")
            assert json.loads(next(lines))["packet"] == "PINGREQ"
        # Those who watched have gone, so none of them holds a place.
        for _ in range(20):
            await_that("a place is free", lambda: begins(up))
        with pytest.raises(TraceError, match="no topic filter"):
            next(second.trace(topic="a/#/b"))
    with pytest.raises(TraceError, match="either client or topic"):
        next(api.trace())


def begins(up: Server) -> bool:
    with up.http.stream("GET", "/api/v1/trace", params={"client": "d2"}) as response:
        return response.status_code == 200


def test_sys_topics_and_lifecycle_events(up: Server, api: Client, device: Callable[[str], Device]) -> None:
    watcher = device("watcher")
    watcher.subscribe("$aws/events/presence/#")
    d1 = device("d1")
    topic, payload, _ = watcher.hear()
    connected = json.loads(payload)
    assert topic == "$aws/events/presence/connected/d1"
    assert connected["ipAddress"] == "127.0.0.1"
    api.kick("d1", session=True)
    assert d1.ended.get(timeout=PATIENCE_S) == 0x98
    topic, payload, _ = watcher.hear()
    gone = json.loads(payload)
    assert topic == "$aws/events/presence/disconnected/d1"
    assert gone["disconnectReason"] == "API_INITIATED_DISCONNECT"
    assert gone["sessionIdentifier"] == connected["sessionIdentifier"]
    reader = device("reader")
    watcher.hear()
    reader.subscribe("$SYS/broker/clients/total", 0)
    topic, payload, retain = reader.hear()
    assert (topic, retain) == ("$SYS/broker/clients/total", True)
    while payload != b"2":
        topic, payload, retain = reader.hear()
        assert (topic, retain) == ("$SYS/broker/clients/total", False)

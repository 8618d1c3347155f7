"""Retained messages, takeover and both directions of QoS 1, by paho, aiomqtt, mosquitto and bytes."""

from __future__ import annotations

import asyncio
import queue
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import aiomqtt
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.integration import peer
from tests.integration.peer import Peer
from tests.integration.server import TELEMETRY, Server, await_that
from tests.integration.test_session_restarts import metric

VERSIONS = pytest.mark.parametrize("version", [mqtt.MQTTv311, mqtt.MQTTv5], ids=["3.1.1", "5"])
LEVELS = pytest.mark.parametrize("level", [4, 5], ids=["3.1.1", "5"])
PROGRAMS = shutil.which("mosquitto_pub"), shutil.which("mosquitto_sub")
NEEDS_MOSQUITTO = pytest.mark.skipif(
    None in PROGRAMS, reason="mosquitto_pub and mosquitto_sub are not installed (Debian: mosquitto-clients)"
)
PATIENCE_S = 30


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("clients") / "data", TELEMETRY) as server:
        yield server.start()
        assert server.get("/api/v1/books")["balanced"]
        server.stop()


@contextmanager
def paho(up: Server, version: int, client_id: str = "") -> Iterator[tuple[mqtt.Client, queue.Queue[Any]]]:
    """A connected paho client and the queue of what it hears: messages, SUBACK codes, its disconnection."""
    heard: queue.Queue[Any] = queue.Queue()
    client = mqtt.Client(
        mqtt.CallbackAPIVersion.VERSION2, client_id, protocol=version, reconnect_on_failure=False
    )
    client.on_connect = lambda _c, _d, _f, reason, _p: heard.put(("connected", reason.value))
    client.on_message = lambda _c, _d, message: heard.put(message)
    client.on_subscribe = lambda _c, _d, _m, reasons, _p: heard.put(
        ("subscribed", [r.value for r in reasons])
    )
    client.on_disconnect = lambda _c, _d, _f, reason, _p: heard.put(("disconnected", reason.value))
    client.connect(*up.mqtt)
    client.loop_start()
    try:
        assert heard.get(timeout=PATIENCE_S) == ("connected", 0)
        yield client, heard
    finally:
        client.disconnect()
        client.loop_stop()


def published(client: mqtt.Client, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
    sent = client.publish(topic, payload, qos, retain)
    sent.wait_for_publish(PATIENCE_S)
    assert sent.is_published()


@VERSIONS
def test_a_retained_message_is_replayed_flagged_and_cleared_by_an_empty_one(up: Server, version: int) -> None:
    topic = f"retained/{version}/state"
    with paho(up, version) as (device, _), paho(up, version) as (live, heard):
        live.subscribe(topic, 1)
        assert heard.get(timeout=PATIENCE_S)[0] == "subscribed"
        published(device, topic, b"first", retain=True)
        published(device, topic, b"second", retain=True)
        messages = [heard.get(timeout=PATIENCE_S) for _ in range(2)]
        assert [(m.payload, m.retain) for m in messages] == [(b"first", False), (b"second", False)]

        with paho(up, version) as (late, heard_late):
            late.subscribe(f"retained/{version}/+", 1)
            assert heard_late.get(timeout=PATIENCE_S) == ("subscribed", [1])
            message = heard_late.get(timeout=PATIENCE_S)
            assert (message.payload, message.retain, message.qos) == (b"second", True, 1)

        published(device, topic, b"", retain=True)
        message = heard.get(timeout=PATIENCE_S)
        assert (message.payload, message.retain) == (b"", False)
        with paho(up, version) as (later, heard_later):
            later.subscribe(topic, 1)
            assert heard_later.get(timeout=PATIENCE_S)[0] == "subscribed"
            published(device, topic, b"live", qos=1)
            assert heard_later.get(timeout=PATIENCE_S).payload == b"live", "the cleared message came back"


@VERSIONS
def test_retained_messages_survive_kills_and_orderly_restarts(
    server: Callable[..., Server], version: int
) -> None:
    up = server(TELEMETRY).start()
    properties = None
    if version == mqtt.MQTTv5:
        properties = Properties(PacketTypes.PUBLISH)
        properties.ContentType, properties.MessageExpiryInterval = "text/plain", 3600
    for end in (up.kill, up.stop, up.kill):
        with paho(up, version) as (device, _):
            for n in range(200):
                sent = device.publish(f"kept/{n}", f"{end.__name__} {n}", qos=1 + n % 2, retain=True)
            sent.wait_for_publish(PATIENCE_S)
            published(device, "kept/5", b"", retain=True)
            last = device.publish("kept/6", b"last", 1, retain=True, properties=properties)
            last.wait_for_publish(PATIENCE_S)
            assert last.is_published()
        end()
        up.start()
        with paho(up, version) as (late, heard):
            late.subscribe("kept/#", 2)
            assert heard.get(timeout=PATIENCE_S)[0] == "subscribed"
            found = {m.topic: m for m in (heard.get(timeout=PATIENCE_S) for _ in range(199))}
            assert heard.empty()
        assert metric(up, "headwater_gateway_retained_messages") == 199
        wanted = {f"kept/{n}": (f"{end.__name__} {n}".encode(), 1 + n % 2) for n in range(200) if n != 5}
        wanted["kept/6"] = b"last", 1
        assert {topic: (m.payload, m.qos) for topic, m in found.items()} == wanted
        if version == mqtt.MQTTv5:
            assert found["kept/6"].properties.ContentType == "text/plain"
            assert 0 < found["kept/6"].properties.MessageExpiryInterval <= 3600
    up.stop()


@LEVELS
def test_a_client_that_subscribes_before_they_are_loaded_gets_every_retained_message_once(
    server: Callable[..., Server], level: int
) -> None:
    count = 20_000
    up = server(TELEMETRY).start()
    with Peer(up.mqtt, level) as device:
        device.login("device")
        device.send(b"".join(peer.publish(level, f"many/{n}", b"old", retain=True) for n in range(count)))
        # Behind them in the log.
        assert device.ask(b"") == []
    up.kill()
    with socket.create_server(("127.0.0.1", 0)) as free:
        address: tuple[str, int] = free.getsockname()
    up.spawn([f"mqtt.port={address[1]}"])
    with (
        await_that("a connection", lambda: _accepted(address, level)) as late,
        Peer(address, level) as device,
    ):
        late.login("late")
        late.send(peer.subscribe(level, ("many/#", 0)))
        suback = late.read()
        assert suback is not None
        assert suback.kind == peer.SUBACK
        device.login("device")
        # Whether they come before the stored ones or after: these are newer.
        device.send(peer.publish(level, "many/7", b"new", retain=True))
        device.send(peer.publish(level, f"many/{count - 1}", b"", retain=True))
        assert device.ask(peer.publish(level, "many/live", b"live")) == []
        found: dict[str, list[tuple[bytes, bool]]] = {}
        while len(found) < count + 1:
            heard = late.read()
            assert heard is not None
            topic, payload = heard.message(level)
            found.setdefault(topic, []).append((payload, bool(heard.first & 1)))
        # Live, and before it what was retained, where that had been loaded when it subscribed.
        assert found.pop("many/live") == [(b"live", False)]
        assert found.pop("many/7")[-1] == (b"new", False)
        assert found.pop(f"many/{count - 1}")[-1] == (b"", False)
        assert found == {f"many/{n}": [(b"old", True)] for n in range(count - 1) if n != 7}
    with Peer(address, level) as again:
        again.login("again")
        again.send(peer.subscribe(level, ("many/7", 0), (f"many/{count - 1}", 0)))
        kinds = [again.read() for _ in range(2)]
        assert [each.kind for each in kinds if each] == [peer.SUBACK, peer.PUBLISH]
        assert kinds[1] is not None
        assert kinds[1].message(level) == ("many/7", b"new")
        assert again.ask(b"") == []
    up.stop()


def _accepted(address: tuple[str, int], level: int) -> Peer | None:
    try:
        return Peer(address, level)
    except OSError:
        return None


@LEVELS
def test_a_second_connection_of_a_client_id_takes_over(up: Server, level: int) -> None:
    with Peer(up.mqtt, level) as first, Peer(up.mqtt, level) as second:
        first.login("twin")
        assert first.ask(peer.subscribe(level, ("twin/+", 1))) == ["SUBACK 0x01"]
        second.login("twin")
        told = first.read()
        if level == 5:
            assert told is not None
            assert (told.kind, told.reason(5)) == (peer.DISCONNECT, 0x8E)
            told = first.read()
        assert told is None
        # The first one's subscription went with its session.
        assert second.ask(peer.publish(level, "twin/a", b"1", qos=1))[-1].startswith("PUBACK")
        assert second.ask(peer.subscribe(level, ("twin/+", 1))) == ["SUBACK 0x01"]
        second.send(peer.publish(level, "twin/a", b"2", qos=1))
        # Who publishes to itself is told in no given order.
        answers = [second.read(), second.read()]
        assert sorted(answer.kind for answer in answers if answer) == [peer.PUBLISH, peer.PUBACK]


def heard(device: Peer, *messages: bytes) -> list[tuple[str, int]]:
    """Topic and QoS of every delivery that these PUBLISH packets cause, up to the last one, to `the/end`."""
    device.send(peer.subscribe(device.level, ("the/end", 0)))
    device.send(b"".join(messages) + peer.publish(device.level, "the/end", b""))
    found = []
    while True:
        answer = device.read()
        assert answer is not None
        if answer.kind == peer.PUBLISH:
            topic, _ = answer.message(device.level)
            if topic == "the/end":
                return found
            found.append((topic, answer.first >> 1 & 3))


@LEVELS
def test_wildcards_and_dollar_topics(up: Server, level: int) -> None:
    cases = {
        "w/#": {"w", "w/a", "w/a/b"},
        "w/+": {"w/a"},
        "+/a": {"w/a"},
        "+/+/b": {"w/a/b"},
        "+": {"w"},
        "#": {"w", "w/a", "w/a/b"},
        "$other/#": {"$other/w"},
        "$aws/things/+/shadow/get/#": set(),
    }
    messages = [peer.publish(level, topic, b"x") for topic in ("w", "w/a", "w/a/b", "$other/w")]
    for wanted, topics in cases.items():
        with Peer(up.mqtt, level) as device:
            device.login(f"wild{level}")
            device.send(peer.subscribe(level, (wanted, 0)))
            assert {topic for topic, _ in heard(device, *messages)} == topics, wanted


@LEVELS
def test_overlapping_filters_give_one_copy_with_the_highest_qos(up: Server, level: int) -> None:
    with Peer(up.mqtt, level) as device:
        device.login("overlap")
        assert device.ask(peer.subscribe(level, ("over/#", 0), ("over/+", 1))) == ["SUBACK 0x00"]
        assert heard(device, peer.publish(level, "over/lap", b"once", qos=1)) == [("over/lap", 1)]


@LEVELS
def test_acknowledgements_keep_the_order_of_publish(up: Server, level: int) -> None:
    kinds = [
        ("dt/h/d1/telemetry", b'{"seq": 1}'),
        ("dt/h/d2/telemetry", b"{"),
        ("none/of/it", b"x"),
        ("kept", b"r"),
    ]
    with Peer(up.mqtt, level) as device:
        device.login("ordered")
        data = b""
        for n in range(1, 801):
            topic, payload = kinds[n % 4]
            data += peer.publish(level, topic, payload, qos=1, packet_id=n, retain=topic == "kept")
        device.send(data)
        ids = []
        while len(ids) < 800:
            answer = device.read()
            assert answer is not None
            assert answer.kind == peer.PUBACK
            ids.append(int.from_bytes(answer.body[:2], "big"))
        assert ids == list(range(1, 801))


@VERSIONS
def test_a_reconnecting_publisher_keeps_its_order_for_a_subscriber(up: Server, version: int) -> None:
    topic = f"order/{version}"
    with paho(up, version) as (live, heard):
        live.subscribe(topic, 1)
        assert heard.get(timeout=PATIENCE_S)[0] == "subscribed"
        for part in range(3):
            with paho(up, version, "publisher") as (device, _):
                for n in range(100):
                    device.publish(topic, f"{part * 100 + n}", qos=1)
                published(device, f"{topic}/end", b"")
        got = [int(heard.get(timeout=PATIENCE_S).payload) for _ in range(300)]
        assert got == list(range(300))


def test_aiomqtt_publishes_and_subscribes(up: Server) -> None:
    host, port = up.mqtt

    async def run() -> list[bytes]:
        async with (
            aiomqtt.Client(host, port, identifier="aio-sub") as subscriber,
            aiomqtt.Client(
                host, port, identifier="aio-pub", protocol=aiomqtt.ProtocolVersion.V5
            ) as publisher,
        ):
            await subscriber.subscribe("aio/#", qos=1)
            for n in range(50):
                await publisher.publish(f"aio/{n}", f"{n}", qos=1)
            found = []
            async for message in subscriber.messages:
                found.append(bytes(message.payload))
                if len(found) == 50:
                    return found
        raise AssertionError("the subscriber ended early")

    assert asyncio.run(asyncio.wait_for(run(), PATIENCE_S)) == [str(n).encode() for n in range(50)]


@NEEDS_MOSQUITTO
@pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
def test_mosquitto_clients_publish_subscribe_and_retain(up: Server, version: str) -> None:
    publish, subscribe = PROGRAMS
    host, port = up.mqtt
    options = ["-h", host, "-p", str(port), "-V", version, "-q", "1"]
    retained = [str(publish), *options, "-t", f"mosquitto/{version}", "-m", "kept", "-r"]
    assert subprocess.run(retained, timeout=PATIENCE_S, check=False).returncode == 0
    heard: list[str] = []
    command = [str(subscribe), *options, "-t", f"mosquitto/{version}", "-C", "3", "-F", "%r %q %p"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout is not None
        heard.append(listener.stdout.readline().strip())  # the retained one: now it listens
        lines = [str(publish), *options, "-t", f"mosquitto/{version}", "-l"]
        subprocess.run(lines, input="one\ntwo\n", text=True, timeout=PATIENCE_S, check=True)
        reader = threading.Timer(PATIENCE_S, listener.kill)
        reader.start()
        heard += listener.stdout.read().split("\n")[:2]
        reader.cancel()
        assert listener.wait(PATIENCE_S) == 0
    assert heard == ["1 1 kept", "0 1 one", "0 1 two"]


def test_a_slow_subscriber_loses_deliveries_but_hurts_nobody(server: Callable[..., Server]) -> None:
    up = server("[mqtt]\nmax_queued_messages = 10\nmax_queued_bytes = 65536\n" + TELEMETRY).start()
    with Peer(up.mqtt) as slow, Peer(up.mqtt) as device:
        slow.login("slow")
        assert slow.ask(peer.subscribe(4, ("fast/#", 0))) == ["SUBACK 0x00"]
        device.login("fast")
        # The slow one reads nothing; the fast one's messages are all acknowledged.
        for first in range(1, 2001, 100):
            batch = [peer.publish(4, "fast/x", bytes(20_000), qos=1, packet_id=first + n) for n in range(100)]
            assert device.ask(b"".join(batch)) == ["PUBACK 0x00"] * 100
        metrics = up.http.get("/metrics").text
        [line] = [
            each
            for each in metrics.splitlines()
            if each.startswith("headwater_gateway_dropped_deliveries_total")
        ]
        assert float(line.split()[1]) > 0
        assert up.get("/api/v1/books")["balanced"]
    up.stop()

"""One session at a time over `kill -9` and orderly ends: what of it comes back, what does not, and in which state."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable

import aiomqtt
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.integration.device import Device
from tests.integration.fleet import SUBSCRIPTION_ID
from tests.integration.peer import DISCONNECT, packet, publish
from tests.integration.server import TELEMETRY, Server

Starts = Callable[..., Server]
LEVELS = pytest.mark.parametrize("level", [4, 5], ids=["3.1.1", "5"])
PATIENCE_S = 30
#: Only what sessions need, so that a start takes less.
LEAN = "[pipeline]\nenabled = false\n"


def at_once(up: Server) -> None:
    """`kill -9` and a start."""
    up.kill()
    up.start()


def again(up: Server) -> None:
    """The same, when what nobody waits for is durable too: a DISCONNECT, a subscriber's PUBACK."""
    send(up, "before/a/kill", b"")
    at_once(up)


def send(up: Server, topic: str, *payloads: bytes, qos: int = 1, **options: object) -> None:
    """Publishes; all are acknowledged when this returns."""
    with Device(up.mqtt, "sender", clean=True, expiry_s=0) as sender:
        for payload in payloads:
            sender.publish(topic, payload, qos, **options)


def metric(up: Server, name: str) -> float:
    lines = up.http.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


@LEVELS
@pytest.mark.parametrize("qos", [1, 2])
def test_a_session_that_nobody_comes_back_to_goes_on_queueing(server: Starts, level: int, qos: int) -> None:
    up = server(LEAN).start()
    with Device(up.mqtt, "away", level) as device:
        assert not device.present
        device.subscribe("a/+", qos)
        device.disconnect()
    send(up, "a/1", b"before", qos=qos)
    again(up)
    send(up, "a/1", b"after a kill", qos=qos)
    again(up)
    send(up, "a/1", b"after two", qos=qos)
    up.stop()
    up.start()
    send(up, "a/1", b"after an orderly end", qos=qos)
    with Device(up.mqtt, "away", level) as device:
        assert device.present
        found = [device.take() for _ in range(4)]
        assert [each.payload for each in found] == [
            b"before",
            b"after a kill",
            b"after two",
            b"after an orderly end",
        ]
        assert {each.qos for each in found} == {qos}
        assert device.rest() == []
        device.disconnect()
    up.stop()
    up.start()
    with Device(up.mqtt, "away", level) as device:
        assert device.present
        assert device.rest() == []


@LEVELS
def test_at_its_bound_a_session_keeps_the_oldest_messages(server: Starts, level: int) -> None:
    up = server(LEAN + "[mqtt]\nmax_queued_messages = 10\n").start()
    with Device(up.mqtt, "away", level) as device:
        device.subscribe("a", 1)
        device.disconnect()
    send(up, "a", *(b"%d" % n for n in range(30)))
    assert metric(up, "headwater_gateway_dropped_deliveries_total") == 20
    again(up)
    send(up, "a", b"still full")
    assert metric(up, "headwater_gateway_dropped_deliveries_total") == 1
    with Device(up.mqtt, "away", level) as device:
        assert [device.take().payload for _ in range(10)] == [b"%d" % n for n in range(10)]
        assert device.rest() == []
        send(up, "a", b"room again")
        assert device.take().payload == b"room again"


def test_at_its_bound_in_bytes_a_session_keeps_the_oldest_messages(server: Starts) -> None:
    up = server(LEAN + "[mqtt]\nmax_queued_bytes = 50000\n").start()
    with Device(up.mqtt, "away") as device:
        device.subscribe("a", 1)
        device.disconnect()
    send(up, "a", *(b"%d" % n + bytes(10_000) for n in range(9)))
    dropped = int(metric(up, "headwater_gateway_dropped_deliveries_total"))
    assert 9 - dropped in (4, 5)
    again(up)
    with Device(up.mqtt, "away") as device:
        assert [each[:1] for each in device.rest()] == [b"%d" % n for n in range(9 - dropped)]


def test_at_the_bound_of_all_sessions_new_messages_are_dropped_and_counted(server: Starts) -> None:
    up = server(LEAN + "[mqtt]\nmax_total_queued_bytes = 100000\n").start()
    for n in range(5):
        with Device(up.mqtt, f"away-{n}") as device:
            device.subscribe(f"a/{n}", 1)
            device.disconnect()
    for n in range(5):
        send(up, f"a/{n}", *(b"%d" % each + bytes(10_000) for each in range(5)))
    dropped = int(metric(up, "headwater_gateway_dropped_deliveries_total"))
    assert dropped == metric(up, "headwater_gateway_dropped_total_queued_total")
    assert 25 - dropped in range(7, 11)
    again(up)
    kept = 0
    for n in range(5):
        with Device(up.mqtt, f"away-{n}") as device:
            found = [each[:1] for each in device.rest()]
            assert found == [b"%d" % each for each in range(len(found))], "the oldest stay"
            kept += len(found)
    assert kept == 25 - dropped


@LEVELS
def test_a_clean_start_discards_what_was_stored(server: Starts, level: int) -> None:
    up = server(LEAN).start()
    with Device(up.mqtt, "fickle", level) as device:
        device.subscribe("a", 1)
        device.disconnect()
    send(up, "a", b"old")
    again(up)
    with Device(up.mqtt, "fickle", level, clean=True, expiry_s=0) as device:
        assert not device.present
        assert device.rest() == []
        # The kill comes right behind CONNACK.
        at_once(up)
    with Device(up.mqtt, "fickle", level) as device:
        assert not device.present
        send(up, "a", b"new")
        assert device.rest() == []


def test_a_clean_start_with_an_expiry_begins_another_session(server: Starts) -> None:
    up = server(LEAN).start()
    with Device(up.mqtt, "fickle") as device:
        device.subscribe("a", 1)
        device.subscribe("b", 1)
        device.disconnect()
    send(up, "a", b"old")
    again(up)
    with Device(up.mqtt, "fickle", clean=True) as device:
        assert not device.present
        device.subscribe("b", 1)
    again(up)
    send(up, "a", b"not wanted")
    send(up, "b", b"wanted")
    with Device(up.mqtt, "fickle") as device:
        assert device.present
        assert device.rest() == [b"wanted"]


def test_a_session_whose_client_ends_it_does_not_come_back(server: Starts) -> None:
    up = server(LEAN).start()
    with Device(up.mqtt, "done") as device:
        device.subscribe("a", 1)
        device.disconnect(expiry_s=0)
    again(up)
    send(up, "a", b"x")
    with Device(up.mqtt, "done") as device:
        assert not device.present
        assert device.rest() == []


@LEVELS
def test_what_was_under_way_is_sent_again_with_its_packet_id(server: Starts, level: int) -> None:
    up = server(LEAN).start()
    with Device(up.mqtt, "slow", level) as device:
        device.subscribe("a", 1)
        device.subscribe("b", 2)
        send(up, "a", b"one")
        send(up, "b", b"two", b"three", qos=2)
        first = [device.next() for _ in range(3)]
        assert not any(each.again for each in first)
        # Of one it has said PUBREC, and PUBREL has come: it is released, though not completed.
        [two] = [each for each in first if each.payload == b"two"]
        device.peer.send(packet(0x50, two.packet_id.to_bytes(2, "big")))
        released = device.peer.read()
        assert released is not None
        assert released.kind == 6
        at_once(up)
    for _ in range(2):
        with Device(up.mqtt, "slow", level) as device:
            assert device.present
            heard = [device.peer.read() for _ in range(3)]
            kinds = sorted(each.kind for each in heard if each is not None)
            assert kinds == [3, 3, 6]
            at_once(up)
    with Device(up.mqtt, "slow", level) as device:
        answers = [device.peer.read() for _ in range(3)]
        found = {}
        for answer in answers:
            assert answer is not None
            if answer.kind == 3:
                topic, payload = answer.message(level)
                size = 2 + len(topic)
                found[payload] = (bool(answer.first & 8), int.from_bytes(answer.body[size : size + 2], "big"))
            else:
                found[b"two"] = (True, int.from_bytes(answer.body[:2], "big"))
        assert found == {each.payload: (True, each.packet_id) for each in first}


@LEVELS
def test_a_message_of_qos_2_is_one_message_over_kills(server: Starts, level: int) -> None:
    up = server(TELEMETRY).start()
    reading = publish(level, "dt/s/d/telemetry", b'{"ts": 1000, "seq": 7}', qos=2, packet_id=9)
    repeated = publish(level, "dt/s/d/telemetry", b'{"ts": 1000, "seq": 7}', qos=2, packet_id=9, dup=True)
    with Device(up.mqtt, "exact", level) as device:
        device.peer.send(reading)
        answer = device.peer.read()
        assert answer is not None
        assert answer.kind == 5
        at_once(up)
    for _ in range(2):
        with Device(up.mqtt, "exact", level) as device:
            assert device.present
            device.peer.send(repeated)
            answer = device.peer.read()
            assert answer is not None
            assert (answer.kind, answer.body[:2]) == (5, b"\0\x09")
            at_once(up)
    with Device(up.mqtt, "exact", level) as device:
        device.peer.send(packet(0x62, b"\0\x09"))
        answer = device.peer.read()
        assert answer is not None
        assert answer.kind == 7
        at_once(up)
    with Device(up.mqtt, "exact", level) as device:
        # The packet id is free: the same one is another message now.
        device.peer.send(reading)
        answer = device.peer.read()
        assert answer is not None
        assert answer.kind == 5
        assert up.value("SELECT COUNT(*) FROM telemetry WHERE seq = 7") == 2


@LEVELS
def test_takeover_of_a_stored_session(server: Starts, level: int) -> None:
    up = server(LEAN).start()
    with Device(up.mqtt, "twin", level) as device:
        device.subscribe("a", 2)
        device.disconnect()
    send(up, "a", b"x", qos=2)
    again(up)
    with Device(up.mqtt, "twin", level) as first:
        sent = first.next()
        with Device(up.mqtt, "twin", level) as second:
            told = first.peer.read()
            if level == 5:
                assert told is not None
                assert (told.kind, told.reason(5)) == (DISCONNECT, 0x8E)
                told = first.peer.read()
            assert told is None
            assert second.present
            again_sent = second.next()
            assert (again_sent.packet_id, again_sent.again) == (sent.packet_id, True)
            at_once(up)
    with Device(up.mqtt, "twin", level) as third:
        assert third.present
        message = third.take()
        assert (message.packet_id, message.payload, message.again) == (sent.packet_id, b"x", True)
        assert third.rest() == []


def test_options_and_identifiers_of_subscriptions_come_back(server: Starts) -> None:
    no_local, as_published = 4, 8
    up = server(LEAN).start()
    with Device(up.mqtt, "options") as device:
        device.subscribe("a/+", 1 | no_local | as_published, properties=bytes([SUBSCRIPTION_ID, 42]))
        device.disconnect()
    again(up)
    with Device(up.mqtt, "options") as device:
        device.publish("a/own", b"mine")
        with Device(up.mqtt, "other", clean=True, expiry_s=0) as other:
            other.publish("a/1", b"retained", retain=True)
            message = device.take()
        assert (message.payload, message.retain) == (b"retained", True)
        assert message.properties[SUBSCRIPTION_ID] == [42]
        assert device.rest() == []


def test_an_absent_member_of_a_share_takes_messages_after_a_restart(server: Starts) -> None:
    up = server(LEAN).start()
    for name in ("one", "two"):
        with Device(up.mqtt, name) as device:
            device.subscribe("$share/g/a", 2)
            device.disconnect()
    again(up)
    send(up, "a", *(b"%d" % n for n in range(10)), qos=2)
    again(up)
    with Device(up.mqtt, "one") as one, Device(up.mqtt, "two") as two:
        assert one.present
        assert two.present
        found = [*one.rest(), *two.rest()]
        assert sorted(found) == [b"%d" % n for n in range(10)]


def test_without_durable_sessions_none_comes_back(server: Starts) -> None:
    up = server(LEAN + "[mqtt]\ndurable_sessions = false\n").start()
    with Device(up.mqtt, "away") as device:
        device.subscribe("a", 1)
        device.disconnect()
    with Device(up.mqtt, "away") as device:
        assert device.present
    again(up)
    with Device(up.mqtt, "away") as device:
        assert not device.present


def test_nobody_hears_of_a_session_before_it_is_durable(server: Starts) -> None:
    """CONNACK, SUBACK and the first message in one write, then the kill: what was answered is there."""
    up = server(LEAN).start()
    for n in range(5):
        with Device(up.mqtt, f"new-{n}") as device:
            device.subscribe("a", 1)
            at_once(up)
        send(up, "a", b"%d" % n)
    for n in range(5):
        with Device(up.mqtt, f"new-{n}") as device:
            assert device.present
            assert device.rest() == [b"%d" % each for each in range(n, 5)]


@pytest.mark.parametrize("version", [4, 5], ids=["3.1.1", "5"])
@pytest.mark.parametrize("qos", [1, 2])
def test_aiomqtt_finds_its_session_after_kills(server: Starts, version: int, qos: int) -> None:
    up = server(LEAN).start()

    def client(name: str) -> aiomqtt.Client:
        options: dict[str, object] = {"identifier": name, "protocol": aiomqtt.ProtocolVersion(version)}
        if version == 5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 3600
            options |= {"clean_start": False, "properties": properties}
        else:
            options["clean_session"] = False
        return aiomqtt.Client(*up.mqtt, **options)  # type: ignore[arg-type]

    async def run() -> None:
        async with client("listener") as device:
            await device.subscribe("a/#", qos=qos)
        for part in range(3):
            again(up)
            async with client("talker") as device:
                for n in range(50):
                    await device.publish("a/b", str(50 * part + n), qos=qos)
        again(up)
        async with client("listener") as device, asyncio.timeout(PATIENCE_S):
            found = []
            async for message in device.messages:
                found.append(int(message.payload))
                if len(found) == 150:
                    break
            assert found == list(range(150))

    asyncio.run(run())


@pytest.mark.parametrize("version", [4, 5], ids=["3.1.1", "5"])
def test_paho_reconnects_by_itself_and_hears_each_message_of_qos_2_once(server: Starts, version: int) -> None:
    # After a reconnect paho sends all that waits, whatever the server says that it takes.
    up = server(LEAN + "[mqtt]\nreceive_maximum = 1500\n").start()
    host, port = up.mqtt
    heard: queue.Queue[int] = queue.Queue()
    subscribed: queue.Queue[bool] = queue.Queue()
    serving = threading.Event()
    serving.set()

    class Patient(mqtt.Client):
        """Comes back when it is told to, which an application may do without.

        An attempt that ends before the CONNACK resets the states of paho's messages once more: those with a PUBREC are
        sent as new ones, after their PUBREL. And what is published while it comes back may overtake what waits.
        """

        def reconnect(self) -> mqtt.MQTTErrorCode:
            assert serving.wait(PATIENCE_S)
            return super().reconnect()

    def client(name: str) -> mqtt.Client:
        made = Patient(
            mqtt.CallbackAPIVersion.VERSION2,
            name,
            protocol=mqtt.MQTTProtocolVersion(version),
            **({"clean_session": False} if version == 4 else {}),
        )
        made.max_queued_messages_set(0)
        return made

    def connect(made: mqtt.Client) -> None:
        if version == 5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 3600
            made.connect(host, port, clean_start=False, properties=properties)
        else:
            made.connect(host, port)
        made.loop_start()

    listener, talker = client("listener"), client("talker")
    listener.on_message = lambda _c, _d, message: heard.put(int(message.payload))
    listener.on_subscribe = lambda *_: subscribed.put(True)
    connect(listener)
    listener.subscribe("a", 2)
    subscribed.get(timeout=PATIENCE_S)
    connect(talker)
    try:
        found: list[int] = []
        for part in range(3):
            for n in range(500):
                talker.publish("a", str(500 * part + n), 2)
            serving.set()
            # In the midst of them, when some have come; those of earlier parts do not say that paho is connected again.
            while not found or found[-1] < 500 * part + 49:
                found.append(heard.get(timeout=PATIENCE_S))
            serving.clear()
            up.kill()
            up.start([f"mqtt.port={port}"])
        serving.set()
        found += [heard.get(timeout=PATIENCE_S) for _ in range(1500 - len(found))]
        assert found == list(range(1500))
        with Device(up.mqtt, "last", clean=True, expiry_s=0) as device:
            device.publish("a", b"-1", 2)
        assert heard.get(timeout=PATIENCE_S) == -1
    finally:
        for each in (talker, listener):
            each.disconnect()
            each.loop_stop()

"""QoS 2, sessions, wills and shared subscriptions, by paho and aiomqtt."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import aiomqtt
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.integration.server import TELEMETRY, Server

VERSIONS = pytest.mark.parametrize("version", [4, 5], ids=["3.1.1", "5"])
PATIENCE_S = 30


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("sessions") / "data", TELEMETRY) as server:
        yield server.start()
        assert server.get("/api/v1/books")["balanced"]
        server.stop()


def client(up: Server, version: int, client_id: str, lasting: bool, **more: object) -> aiomqtt.Client:
    """An aiomqtt client, with a session that outlives its connection or without."""
    options: dict[str, object] = {
        "identifier": client_id,
        "protocol": aiomqtt.ProtocolVersion(version),
        **more,
    }
    if version == 5:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600 if lasting else 0
        options |= {"clean_start": not lasting, "properties": properties}
    else:
        options["clean_session"] = not lasting
    return aiomqtt.Client(*up.mqtt, **options)  # type: ignore[arg-type]


async def take(device: aiomqtt.Client, count: int) -> list[bytes]:
    """The payloads of the next messages."""
    taken: list[bytes] = []
    async with asyncio.timeout(PATIENCE_S):
        async for message in device.messages:
            taken.append(bytes(message.payload))
            if len(taken) == count:
                break
    return taken


@VERSIONS
@pytest.mark.parametrize("qos", [1, 2])
def test_a_session_waits_for_its_client(up: Server, version: int, qos: int) -> None:
    async def run() -> None:
        topic = f"waits/{version}/{qos}"
        async with client(up, version, topic, True) as device:
            await device.subscribe(topic, qos=qos)
        async with client(up, 5, "sender", False) as sender:
            for n in range(100):
                await sender.publish(topic, str(n), qos=qos)
        async with client(up, version, topic, True) as device:
            assert await take(device, 100) == [str(n).encode() for n in range(100)]

    asyncio.run(run())


def test_qos_2_readings_are_stored_once(up: Server) -> None:
    async def run() -> None:
        async with client(up, 5, "exact", False) as device:
            for n in range(200):
                await device.publish("dt/exact/d/telemetry", f'{{"ts": {n}, "temperature": {n}}}', qos=2)

    asyncio.run(run())
    assert up.value("SELECT COUNT(*) FROM telemetry WHERE site = 'exact'") == 200


@VERSIONS
def test_a_lost_connection_leaves_its_will(up: Server, version: int) -> None:
    async def run() -> None:
        topic = f"will/{version}"
        async with client(up, 5, "watcher", False) as watcher:
            await watcher.subscribe(topic, qos=1)
            lost = client(up, version, f"lost-{version}", False, will=aiomqtt.Will(topic, b"gone", 1))
            with suppress(aiomqtt.MqttError):
                async with lost:
                    socket = lost._client.socket()
                    assert socket is not None
                    socket.shutdown(2)
                    assert await take(watcher, 1) == [b"gone"]

    asyncio.run(run())


def test_members_of_a_share_take_turns(up: Server) -> None:
    async def run() -> None:
        async with client(up, 5, "one", False) as one, client(up, 4, "two", False) as two:
            for member in (one, two):
                await member.subscribe("$share/group/jobs/+", qos=1)
            async with client(up, 5, "sender", False) as sender:
                for n in range(20):
                    await sender.publish("jobs/x", str(n), qos=1)
            taken = await asyncio.gather(take(one, 10), take(two, 10))
            assert sorted(int(each) for each in [*taken[0], *taken[1]]) == list(range(20))

    asyncio.run(run())


def test_paho_resumes_with_what_it_left_unacknowledged(up: Server) -> None:
    def connect() -> mqtt.Client:
        device = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "manual", clean_session=False, manual_ack=True)
        device.connect(*up.mqtt)
        return device

    heard: list[mqtt.MQTTMessage] = []
    device = connect()
    device.on_message = lambda _c, _d, message: heard.append(message)
    device.on_connect = lambda client, *_: client.subscribe("manual", 1)
    device.on_subscribe = lambda client, *_: client.publish("manual", b"x", 1)
    while not heard:
        device.loop(0.1)
    assert not heard[0].dup
    socket = device.socket()
    assert socket is not None
    socket.close()
    again = connect()
    again.on_message = lambda _c, _d, message: heard.append(message)
    while len(heard) < 2:
        again.loop(0.1)
    assert (heard[1].dup, heard[1].payload, heard[1].mid) == (True, b"x", heard[0].mid)
    again.ack(heard[1].mid, 1)
    again.disconnect()

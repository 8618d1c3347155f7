"""Client libraries of other makers against a running server: gmqtt, mqtt.js, and the AWS IoT SDK over mutual TLS.

paho, aiomqtt and the mosquitto clients are in test_retained_and_takeover, test_sessions and test_listeners."""

from __future__ import annotations

import asyncio
import json
import queue
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gmqtt
import pytest
from awscrt import mqtt as mqtt3
from awscrt import mqtt5
from awsiot import mqtt5_client_builder, mqtt_connection_builder

from tests.integration.certificates import Authority
from tests.integration.server import PATIENCE_S, TELEMETRY, Server
from tests.integration.test_listeners import address, tls_table, toml

ROOT = Path(__file__).parents[2]
JS = ROOT / "tests" / "js"

NEEDS_JS = pytest.mark.skipif(
    shutil.which("node") is None or not (JS / "node_modules" / "mqtt").is_dir(),
    reason="no node, or no mqtt.js: `make tools` installs it with npm",
)


# ---- gmqtt


@pytest.mark.parametrize("version", [4, 5])
def test_gmqtt(server: Callable[..., Server], version: int) -> None:
    up = server().start()

    def client(name: str, **options: Any) -> Any:
        made = gmqtt.Client(f"gmqtt-{name}", clean_session=True, **options)
        made.set_config({"reconnect_retries": 0})
        return made

    async def run() -> tuple[list[tuple[str, bytes, int, int, Any]], list[tuple[int, ...]]]:
        heard: asyncio.Queue[tuple[str, bytes, int, int, Any]] = asyncio.Queue()
        granted: asyncio.Queue[tuple[int, ...]] = asyncio.Queue()
        codes = []

        async def on_message(_client: Any, topic: str, payload: bytes, qos: int, properties: Any) -> int:
            await heard.put((topic, payload, qos, properties["retain"], properties.get("user_property")))
            return 0

        subscriber = client("subscriber")
        subscriber.on_message = on_message
        subscriber.on_subscribe = lambda _client, _mid, codes, _properties: granted.put_nowait(tuple(codes))
        await subscriber.connect(*up.mqtt, version=version)
        will = gmqtt.Message("gmqtt/will", b"gone", qos=1)
        publisher = client("publisher", will_message=will)
        await publisher.connect(*up.mqtt, version=version)
        subscriber.subscribe("gmqtt/#", qos=2)
        codes.append(await granted.get())
        publisher.publish("gmqtt/kept", b"kept", qos=1, retain=True)
        messages = [await heard.get()]
        subscriber.subscribe("gmqtt/kept", qos=0)
        codes.append(await granted.get())
        messages.append(await heard.get())
        for qos in (0, 1, 2):
            options = {"user_property": ("k", f"v{qos}")} if version == 5 else {}
            publisher.publish(f"gmqtt/{qos}", f"at {qos}", qos=qos, **options)
            messages.append(await heard.get())
        # Without DISCONNECT: its will is published.
        publisher._connection._transport.abort()
        messages.append(await heard.get())
        await subscriber.disconnect()
        return messages, codes

    messages, codes = asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
    assert codes == [(2,), (0,)]

    def user(value: str) -> Any:
        return [("k", value)] if version == 5 else None

    assert messages == [
        ("gmqtt/kept", b"kept", 1, 0, None),
        ("gmqtt/kept", b"kept", 0, 1, None),
        ("gmqtt/0", b"at 0", 0, 0, user("v0")),
        ("gmqtt/1", b"at 1", 1, 0, user("v1")),
        ("gmqtt/2", b"at 2", 2, 0, user("v2")),
        ("gmqtt/will", b"gone", 1, 0, None),
    ]


# ---- mqtt.js


@NEEDS_JS
@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("transport", ["mqtt", "ws", "wss"])
def test_mqtt_js(server: Callable[..., Server], tmp_path: Path, transport: str, version: int) -> None:
    authority = Authority(tmp_path / "pki")
    config = '[[mqtt.listeners]]\nname = "js-ws"\ntransport = "ws"\nport = 0\n'
    config += tls_table("js-wss", authority.issue("server"), transport="wss")
    up = server(TELEMETRY + config).start()
    _, port = address(up, transport if transport == "mqtt" else f"js-{transport}")
    url = f"{transport}://localhost:{port}" + ("/mqtt" if transport != "mqtt" else "")
    command = ["node", str(JS / "exchange.mjs"), url, str(version)]
    if transport == "wss":
        command.append(str(authority.file))
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["granted"] == [2]

    def message(name: str, payload: str, qos: int, retain: bool, user: str | None = None) -> dict[str, Any]:
        properties = {"k": user} if user is not None and version == 5 else None
        topic = f"js/{version}/{name}"
        return {"topic": topic, "payload": payload, "qos": qos, "retain": retain, "user": properties}

    assert said["heard"] == [
        message("kept", "kept", 1, True),
        message("0", "at 0", 0, False, "v0"),
        message("1", "at 1", 1, False, "v1"),
        message("2", "at 2", 2, False, "v2"),
        message("will", "gone", 1, False),
    ]


# ---- AWS IoT Device SDK, over mutual TLS as its users have it


def devices(server: Callable[..., Server], authority: Authority) -> tuple[Server, dict[str, Any]]:
    """A server whose listener wants certificates, and what a builder of the SDK needs to reach it."""
    more = f"client_ca = {toml(authority.file)}"
    up = server(TELEMETRY + tls_table("devices", authority.issue("server"), more)).start()
    device = authority.issue("thing-1")
    _, port = address(up, "devices")
    options = {
        "endpoint": "localhost",
        "port": port,
        "cert_filepath": str(device.file),
        "pri_key_filepath": str(device.key),
        "ca_filepath": str(authority.file),
        "client_id": "thing-1",
    }
    return up, options


def test_aws_sdk_with_mqtt_3_1_1(server: Callable[..., Server], tmp_path: Path) -> None:
    up, options = devices(server, Authority(tmp_path / "pki"))
    heard: queue.SimpleQueue[tuple[str, bytes, int, bool]] = queue.SimpleQueue()
    connection = mqtt_connection_builder.mtls_from_path(**options, clean_session=False, keep_alive_secs=30)
    present = connection.connect().result(PATIENCE_S)["session_present"]
    assert not present

    def on_message(topic: str, payload: bytes, dup: bool, qos: mqtt3.QoS, retain: bool, **_: Any) -> None:
        assert not dup
        heard.put((topic, payload, int(qos), retain))

    subscribed, _ = connection.subscribe("aws/#", mqtt3.QoS.AT_LEAST_ONCE, on_message)
    assert subscribed.result(PATIENCE_S)["qos"] == mqtt3.QoS.AT_LEAST_ONCE
    for qos in (mqtt3.QoS.AT_MOST_ONCE, mqtt3.QoS.AT_LEAST_ONCE):
        published, _ = connection.publish(f"aws/{int(qos)}", f"at {int(qos)}", qos)
        published.result(PATIENCE_S)
        assert heard.get(timeout=PATIENCE_S) == (
            f"aws/{int(qos)}",
            f"at {int(qos)}".encode(),
            int(qos),
            False,
        )
    reading, _ = connection.publish("dt/s/thing-1/telemetry", json.dumps({"seq": 1}), mqtt3.QoS.AT_LEAST_ONCE)
    reading.result(PATIENCE_S)
    assert up.value("SELECT seq FROM telemetry") == 1
    connection.disconnect().result(PATIENCE_S)
    assert connection.connect().result(PATIENCE_S)["session_present"]
    connection.disconnect().result(PATIENCE_S)


def test_aws_sdk_with_mqtt_5(server: Callable[..., Server], tmp_path: Path) -> None:
    up, options = devices(server, Authority(tmp_path / "pki"))
    heard: queue.SimpleQueue[mqtt5.PublishPacket] = queue.SimpleQueue()
    connected: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stopped: queue.SimpleQueue[Any] = queue.SimpleQueue()
    client = mqtt5_client_builder.mtls_from_path(
        **options,
        session_expiry_interval_sec=60,
        receive_maximum=5,
        on_publish_received=lambda data: heard.put(data.publish_packet),
        on_lifecycle_connection_success=connected.put,
        on_lifecycle_connection_failure=connected.put,
        on_lifecycle_stopped=stopped.put,
    )
    client.start()
    settings = connected.get(timeout=PATIENCE_S).negotiated_settings
    assert settings.session_expiry_interval_sec == 60
    assert settings.server_keep_alive_sec > 0
    filters = [mqtt5.Subscription("aws/#", mqtt5.QoS.AT_LEAST_ONCE)]
    suback = client.subscribe(mqtt5.SubscribePacket(subscriptions=filters)).result(PATIENCE_S)
    assert suback.reason_codes == [mqtt5.SubackReasonCode.GRANTED_QOS_1]
    sent = mqtt5.PublishPacket(
        topic="aws/1",
        payload=b"hello",
        qos=mqtt5.QoS.AT_LEAST_ONCE,
        content_type="text/plain",
        response_topic="aws/answer",
        correlation_data=b"\x00\xff",
        message_expiry_interval_sec=60,
        user_properties=[mqtt5.UserProperty("k", "1"), mqtt5.UserProperty("k", "2")],
    )
    puback = client.publish(sent).result(PATIENCE_S).puback
    assert puback.reason_code == mqtt5.PubackReasonCode.SUCCESS
    got = heard.get(timeout=PATIENCE_S)
    assert (got.topic, got.payload, got.qos) == ("aws/1", b"hello", mqtt5.QoS.AT_LEAST_ONCE)
    assert (got.content_type, got.response_topic) == ("text/plain", "aws/answer")
    assert got.correlation_data_bytes == b"\x00\xff"
    assert [(each.name, each.value) for each in got.user_properties] == [("k", "1"), ("k", "2")]
    bad = mqtt5.PublishPacket(topic="dt/s/thing-1/telemetry", payload=b"no json", qos=mqtt5.QoS.AT_LEAST_ONCE)
    refused = client.publish(bad).result(PATIENCE_S).puback
    assert refused.reason_code == mqtt5.PubackReasonCode.PAYLOAD_FORMAT_INVALID
    assert "no json" not in (refused.reason_string or "no json")
    removed = client.unsubscribe(mqtt5.UnsubscribePacket(topic_filters=["aws/#", "never"])).result(PATIENCE_S)
    assert removed.reason_codes == [
        mqtt5.UnsubackReasonCode.SUCCESS,
        mqtt5.UnsubackReasonCode.NO_SUBSCRIPTION_EXISTED,
    ]
    client.stop()
    stopped.get(timeout=PATIENCE_S)
    client.start()
    assert connected.get(timeout=PATIENCE_S).connack_packet is not None
    client.stop()
    stopped.get(timeout=PATIENCE_S)
    assert up.rows("SELECT COUNT(*) FROM telemetry") == [[0]]

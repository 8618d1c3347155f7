"""Publishing and subscribing from the command line, over real MQTT (paho)."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headwater.errors import HeadwaterError

if TYPE_CHECKING:
    import paho.mqtt.client as mqtt
    from paho.mqtt.reasoncodes import ReasonCode

#: Longest wait for an answer of the server, seconds.
TIMEOUT_S = 30.0


def address_of(given: str | None, data_dir: Path | None) -> tuple[str, int]:
    """Host and port: as given, of the Headwater running on `data_dir`, or the default 127.0.0.1:1883."""
    if given is None and data_dir is not None:
        try:
            given = json.loads((data_dir / "run.json").read_text(encoding="utf-8"))["mqtt"]
        except (OSError, ValueError, KeyError) as error:
            raise HeadwaterError(
                f"looking for a running Headwater in {data_dir}: no run.json there"
            ) from error
    host, _, port = (given or "127.0.0.1:1883").rpartition(":")
    if not port.isdecimal():
        raise HeadwaterError(f"--mqtt {given!r}: write host:port")
    return host.strip("[]") or "127.0.0.1", int(port)


#: User name and password.
Credentials = tuple[str, str | None]


def publish(
    address: tuple[str, int],
    topic: str,
    payloads: Sequence[bytes],
    *,
    qos: int,
    retain: bool,
    credentials: Credentials | None = None,
) -> int:
    """Publishes and waits for every acknowledgement (QoS 1). Returns the number of messages.

    raises: HeadwaterError when the server cannot be reached, refuses a message or does not answer in time
    """
    refused: list[str] = []

    def on_publish(_client: object, _data: object, _id: int, reason: ReasonCode, _properties: object) -> None:
        if reason.is_failure:
            refused.append(str(reason))

    client = _connect(address, credentials)
    client.on_publish = on_publish
    client.loop_start()
    try:
        for sent in [client.publish(topic, payload, qos, retain) for payload in payloads]:
            sent.wait_for_publish(TIMEOUT_S)
            if not sent.is_published():
                raise HeadwaterError(f"publishing to {topic!r}: no acknowledgement within {TIMEOUT_S:g} s")
    except (ValueError, RuntimeError) as error:
        raise HeadwaterError(f"publishing to {topic!r}: {error}") from error
    finally:
        client.disconnect()
        client.loop_stop()
    if refused:
        raise HeadwaterError(
            f"publishing to {topic!r}: {len(refused)} of {len(payloads)} refused: {refused[0]}"
        )
    return len(payloads)


def subscribe(
    address: tuple[str, int], topic_filter: str, *, count: int = 0, credentials: Credentials | None = None
) -> Iterator[mqtt.MQTTMessage]:
    """Messages as they come; ends after `count` of them, or never. raises: HeadwaterError when refused"""
    arrived: queue.SimpleQueue[mqtt.MQTTMessage | str] = queue.SimpleQueue()
    client = _connect(address, credentials)
    client.on_message = lambda _client, _data, message: arrived.put(message)
    client.on_disconnect = lambda _client, _data, _flags, reason, _properties: arrived.put(str(reason))

    def on_subscribe(
        _client: object, _data: object, _id: int, reasons: list[ReasonCode], _properties: object
    ) -> None:
        if reasons[0].is_failure:
            arrived.put(f"subscription refused: {reasons[0]}")

    client.on_subscribe = on_subscribe
    client.subscribe(topic_filter, 1)
    client.loop_start()
    try:
        seen = 0
        while count == 0 or seen < count:
            message = arrived.get()
            if isinstance(message, str):
                raise HeadwaterError(f"subscribing to {topic_filter!r}: {message}")
            yield message
            seen += 1
    finally:
        client.disconnect()
        client.loop_stop()


def _connect(address: tuple[str, int], credentials: Credentials | None) -> mqtt.Client:
    # Here, so that the verbs that send nothing, `up` before all, do not wait for it.
    import paho.mqtt.client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion

    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    if credentials is not None:
        client.username_pw_set(*credentials)
    try:
        client.connect(*address)
    except OSError as error:
        host, port = address
        raise HeadwaterError(
            f"connecting to MQTT at {host}:{port}: {error}; is Headwater running there?"
        ) from error
    return client

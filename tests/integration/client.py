"""paho as a test wants it: each answer of the server is awaited and given."""

from __future__ import annotations

import queue
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

#: Longest wait for an answer, seconds.
PATIENCE_S = 30.0


class MqttClient:
    """One connection that is not tried again.

    connack: the reason code (MQTT 5) or return code (3.1.1) of CONNACK
    will:    topic and whether it is retained
    wait:    false: `await_connack` does it later
    """

    def __init__(
        self,
        address: tuple[str, int],
        client_id: str,
        version: int = mqtt.MQTTv5,
        user: str | None = None,
        secret: str | None = None,
        will: tuple[str, bool] | None = None,
        wait: bool = True,
    ) -> None:
        self._v5 = version == mqtt.MQTTv5
        self._answers: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self.connack: int | None = None
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id, protocol=version, reconnect_on_failure=False
        )
        self._client = client
        if user is not None:
            client.username_pw_set(user, secret)
        if will is not None:
            client.will_set(will[0], b"gone", 1, will[1])
        client.on_connect = lambda _c, _d, _f, code, _p: self._answers.put(("connack", code))
        client.on_publish = lambda _c, _d, _id, code, _p: self._answers.put(("puback", code))
        client.on_subscribe = lambda _c, _d, _id, codes, _p: self._answers.put(("suback", codes))
        client.on_disconnect = lambda _c, _d, _f, code, _p: self._answers.put(("end", code))
        client.on_message = lambda _c, _d, message: self._messages.put((message.topic, message.payload))
        client.connect(*address)
        client.loop_start()
        if wait:
            self.await_connack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """DISCONNECT, where the connection is up."""
        self._client.disconnect()
        self._client.loop_stop()

    def await_connack(self) -> None:
        """Until CONNACK has come."""
        code = self._await("connack")
        # paho speaks of 3.1.1's return codes in MQTT 5's words.
        self.connack = code.value if self._v5 else _RETURN_CODES[code.getName()]

    def subscribe(self, *filters: str, qos: int = 1) -> list[int]:
        """Codes of SUBACK."""
        self._client.subscribe([(each, qos) for each in filters])
        return [code.value for code in self._await("suback")]

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> int:
        """Reason code of the PUBACK."""
        self.send(topic, payload, retain)
        return int(self._await("puback").value)

    def send(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Publishes with QoS 1 and waits for nothing."""
        self._client.publish(topic, payload, 1, retain)

    def received_until(self, topic: str) -> list[tuple[str, bytes]]:
        """Messages in their order, up to the first one on `topic`."""
        received = []
        while not received or received[-1][0] != topic:
            received.append(self._messages.get(timeout=PATIENCE_S))
        return received

    def await_end(self) -> int:
        """Until the server has ended the connection; the reason code of its DISCONNECT (MQTT 5)."""
        return int(self._await("end").value)

    def _await(self, wanted: str) -> Any:
        kind, answer = self._answers.get(timeout=PATIENCE_S)
        assert kind == wanted, f"{kind} {answer} instead of {wanted}"
        return answer


#: Return codes of MQTT 3.1.1, section 3.2.2.3, by the names that paho gives them.
_RETURN_CODES = {
    "Success": 0,
    "Unsupported protocol version": 1,
    "Client identifier not valid": 2,
    "Server unavailable": 3,
    "Bad user name or password": 4,
    "Not authorized": 5,
}

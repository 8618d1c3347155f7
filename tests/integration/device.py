"""One device with a session, at the level of packets: connects, and tells what comes until the server has no more."""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import Self

from tests.integration.fleet_subscriber import take_properties
from tests.integration.peer import (
    CONNACK,
    PUBACK,
    PUBLISH,
    SUBACK,
    Packet,
    Peer,
    connect,
    length,
    packet,
    publish,
    subscribe,
    text,
)

PUBREC, PUBREL, PUBCOMP = 5, 6, 7
EXPIRY, WILL_DELAY = 0x11, 0x18


@dataclass(frozen=True, slots=True)
class Heard:
    """A message that came."""

    topic: str
    payload: bytes
    qos: int
    packet_id: int
    again: bool
    retain: bool
    properties: dict[int, list[object]]


class Device:
    """A connection that goes on with the session of its client id.

    expiry_s:   of the session (3.1.1: for ever, as far as the server lets it)
    clean:      begins a new session
    will:       topic, and the delay in seconds

    present: what CONNACK said
    """

    def __init__(
        self,
        address: tuple[str, int],
        client_id: str,
        level: int = 5,
        *,
        expiry_s: int = 3600,
        clean: bool = False,
        will: tuple[str, int] | None = None,
    ) -> None:
        self.level = level
        self.peer = Peer(address, level)
        #: Messages that came while something else was awaited.
        self._early: deque[Packet] = deque()
        flags, after, properties = 2 if clean else 0, b"", b""
        if level == 5:
            properties = bytes([EXPIRY]) + struct.pack(">I", expiry_s)
        if will is not None:
            topic, delay_s = will
            flags |= 0x04 | 1 << 3
            delay = bytes([WILL_DELAY]) + struct.pack(">I", delay_s)
            after = (length(len(delay)) + delay if level == 5 else b"") + text(topic) + text("gone")
        self.peer.send(connect(level, flags, client=client_id, properties=properties, after=after))
        answer = self.peer.read()
        assert answer is not None
        assert (answer.kind, answer.body[1]) == (CONNACK, 0), answer
        self.present = bool(answer.body[0] & 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.peer.close()

    def disconnect(self, expiry_s: int | None = None) -> None:
        """A normal DISCONNECT; with `expiry_s` it changes the session's expiry (MQTT 5)."""
        body = b""
        if expiry_s is not None:
            properties = bytes([EXPIRY]) + struct.pack(">I", expiry_s)
            body = b"\0" + length(len(properties)) + properties
        self.peer.send(packet(0xE0, body))
        assert self.peer.read() is None
        self.peer.close()

    def subscribe(self, topic_filter: str, options: int, properties: bytes = b"") -> None:
        """SUBSCRIBE; options: as in the packet."""
        self.peer.send(subscribe(self.level, (topic_filter, options), properties=properties))
        answer = self.answer(SUBACK)
        assert answer.reason(self.level) == options & 3, answer

    def publish(self, topic: str, payload: bytes, qos: int = 1, **options: object) -> None:
        """PUBLISH, until it is acknowledged."""
        self.peer.send(publish(self.level, topic, payload, qos=qos, **options))  # type: ignore[arg-type]
        if qos == 2:
            self.peer.send(packet(0x62, self.answer(PUBREC).body[:2]))
        self.answer((PUBACK, PUBCOMP)[qos - 1])

    def answer(self, kind: int) -> Packet:
        """The next packet that is no message; it must be of this kind."""
        while True:
            answer = self.peer.read()
            assert answer is not None, "the server ended the connection"
            if answer.kind != PUBLISH:
                assert answer.kind == kind, answer
                return answer
            self._early.append(answer)

    def next(self) -> Heard:
        """The next message; nothing is acknowledged."""
        answer = self._early.popleft() if self._early else self.peer.read()
        assert answer is not None, "the server ended the connection"
        assert answer.kind == PUBLISH, answer
        size = int.from_bytes(answer.body[:2], "big")
        topic, rest = answer.body[2 : 2 + size].decode(), answer.body[2 + size :]
        qos = answer.first >> 1 & 3
        packet_id = int.from_bytes(rest[:2], "big") if qos else 0
        rest = rest[2:] if qos else rest
        properties: dict[int, list[object]] = {}
        if self.level == 5:
            properties, rest = take_properties(rest)
        flags = bool(answer.first & 8), bool(answer.first & 1)
        return Heard(topic, rest, qos, packet_id, *flags, properties)

    def acknowledge(self, message: Heard) -> None:
        """PUBACK, or PUBREC and, after PUBREL, PUBCOMP."""
        packet_id = struct.pack(">H", message.packet_id)
        if message.qos == 1:
            self.peer.send(packet(0x40, packet_id))
        elif message.qos == 2:
            self.peer.send(packet(0x50, packet_id))
            assert self.answer(PUBREL).body[:2] == packet_id
            self.peer.send(packet(0x70, packet_id))

    def take(self) -> Heard:
        """The next message, acknowledged."""
        message = self.next()
        self.acknowledge(message)
        return message

    def rest(self) -> list[bytes]:
        """Payloads of all that waits; a message of its own, behind it all, tells where that ends."""
        self.peer.send(subscribe(self.level, ("the/end", 0), packet_id=60000))
        self.peer.send(publish(self.level, "the/end", b""))
        self.answer(SUBACK)
        waiting: list[Heard] = []
        while (message := self.next()).topic != "the/end":
            waiting.append(message)
        for message in waiting:
            self.acknowledge(message)
        return [message.payload for message in waiting]

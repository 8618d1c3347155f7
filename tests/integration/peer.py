"""An MQTT peer at the level of bytes: sends what a test says, well-formed or not, and reads packets."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Self

#: Longest wait for an answer, seconds.
PATIENCE_S = 30.0

#: Packet id of the message behind which `ask` stops reading.
LAST_ID = 65535

CONNACK, PUBLISH, PUBACK, SUBACK, UNSUBACK, PINGRESP, DISCONNECT = 2, 3, 4, 9, 11, 13, 14
NAMES = {CONNACK: "CONNACK", PUBLISH: "PUBLISH", PUBACK: "PUBACK", SUBACK: "SUBACK", UNSUBACK: "UNSUBACK"}
NAMES |= {PINGRESP: "PINGRESP", DISCONNECT: "DISCONNECT"}


def length(n: int) -> bytes:
    """A variable byte integer (MQTT 5, section 1.5.5)."""
    out = bytearray()
    while True:
        n, low = divmod(n, 128)
        out.append(low | (0x80 if n else 0))
        if not n:
            return bytes(out)


def packet(first: int, body: bytes = b"") -> bytes:
    """A packet with this first byte."""
    return bytes([first]) + length(len(body)) + body


def text(value: str | bytes) -> bytes:
    """A string with its length."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack(">H", len(data)) + data


def connect(
    level: int = 4,
    flags: int = 2,
    *,
    client: str = "peer",
    keep_alive_s: int = 0,
    properties: bytes = b"",
    after: bytes = b"",
    name: str = "MQTT",
) -> bytes:
    """CONNECT; `after` follows the client id (will, user name, password)."""
    variable = text(name) + bytes([level, flags]) + struct.pack(">H", keep_alive_s)
    if level == 5:
        variable += length(len(properties)) + properties
    return packet(0x10, variable + text(client) + after)


def publish(
    level: int,
    topic: str | bytes,
    payload: bytes = b"",
    *,
    qos: int = 0,
    packet_id: int = 1,
    retain: bool = False,
    dup: bool = False,
    properties: bytes = b"",
) -> bytes:
    """PUBLISH."""
    body = text(topic) + (struct.pack(">H", packet_id) if qos else b"")
    if level == 5:
        body += length(len(properties)) + properties
    return packet(0x30 | dup << 3 | qos << 1 | retain, body + payload)


def subscribe(
    level: int, *filters: tuple[str, int], packet_id: int = 1, first: int = 0x82, properties: bytes = b""
) -> bytes:
    """SUBSCRIBE with (filter, options byte) pairs."""
    body = struct.pack(">H", packet_id) + (length(len(properties)) + properties if level == 5 else b"")
    return packet(first, body + b"".join(text(name) + bytes([options]) for name, options in filters))


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet from the server."""

    first: int
    body: bytes

    @property
    def kind(self) -> int:
        return self.first >> 4

    def reason(self, level: int) -> int:
        """Its reason or return code; the first one of a SUBACK."""
        if self.kind == CONNACK:
            return self.body[1]
        if self.kind == PUBACK:
            return self.body[2] if len(self.body) > 2 else 0
        if self.kind in (SUBACK, UNSUBACK):
            return self.body[2 + (1 + self.body[2] if level == 5 else 0)]
        if self.kind == DISCONNECT:
            return self.body[0] if self.body else 0
        raise AssertionError(f"{self} has no reason code")

    def message(self, level: int) -> tuple[str, bytes]:
        """Topic and payload of a PUBLISH."""
        at = 2 + int.from_bytes(self.body[:2], "big")
        topic = self.body[2:at].decode()
        at += 2 if self.first & 6 else 0
        return topic, self.body[at + (1 + self.body[at] if level == 5 else 0) :]


class Peer:
    """One connection. level: 4 (MQTT 3.1.1) or 5"""

    def __init__(self, address: tuple[str, int], level: int = 4) -> None:
        self.level = level
        self._socket = socket.create_connection(address, timeout=PATIENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def login(self, client: str = "peer", **options: int) -> Packet:
        """A good CONNECT and its CONNACK."""
        self.send(connect(self.level, client=client, **options))
        answer = self.read()
        assert answer is not None, "the server hung up on a good CONNECT"
        assert answer.kind == CONNACK, answer
        assert answer.body[1] == 0, f"a good CONNECT was refused: {answer}"
        return answer

    def read(self) -> Packet | None:
        """The next packet; None when the server has hung up."""
        while True:
            found = self._take()
            if found is not None:
                return found
            try:
                data = self._socket.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                assert not self._buffer, f"the connection ended within a packet: {self._buffer.hex()}"
                return None
            self._buffer += data

    def _take(self) -> Packet | None:
        size = 0
        for at, byte in enumerate(self._buffer[1:5], 1):
            size |= (byte & 0x7F) << 7 * (at - 1)
            if byte < 0x80:
                end = at + 1 + size
                if len(self._buffer) < end:
                    return None
                found = Packet(self._buffer[0], bytes(self._buffer[at + 1 : end]))
                del self._buffer[:end]
                return found
        return None

    def ask(self, data: bytes) -> list[str]:
        """Sends, and a last message after it, and reads until that is acknowledged or the server hangs up.

        returns: what came, in the words of the documents: ["PUBACK 0x99"], ["DISCONNECT 0x82", "closed"], or []

        Acknowledgements keep the order of PUBLISH (MQTT 5.0, section 4.6), so none is still to come then. A PINGRESP
        would not do: it does not wait for the disk.
        """
        said = []
        try:
            self.send(data)
            self.send(publish(self.level, "the/last", b"", qos=1, packet_id=LAST_ID))
        except ConnectionError:
            pass  # the answer may still be readable
        while (answer := self.read()) is not None:
            if answer.kind == PUBACK and int.from_bytes(answer.body[:2], "big") == LAST_ID:
                return said
            code = f" 0x{answer.reason(self.level):02X}" if answer.kind != PUBLISH else ""
            said.append(NAMES.get(answer.kind, f"type {answer.kind}") + code)
        return [*said, "closed"]

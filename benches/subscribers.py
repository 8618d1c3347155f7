"""Clients that subscribe to many topic filters and throw away what they are sent, over raw sockets."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

_READ_BYTES = 1 << 18
_TIMEOUT_S = 30.0


class Subscribers:
    """MQTT 3.1.1 clients, as many as asked for, that share the filters evenly, QoS 0; a thread drains them.

    raises: OSError, RuntimeError when the server refuses one
    """

    def __init__(self, port: int, filters: Sequence[str], clients: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._sockets: list[socket.socket] = []
        per_client = max(len(filters) // clients, 1)
        for at in range(0, len(filters), per_client):
            client = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)
            self._sockets.append(client)
            _exchange(client, connect(f"bench-sub-{at}"), b"\x20\x02\x00\x00")
            mine = filters[at : at + per_client]
            _exchange(client, subscribe(mine), suback(len(mine)))
            client.setblocking(False)
            self._selector.register(client, selectors.EVENT_READ)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._selector.close()
        for client in self._sockets:
            client.close()

    def _drain(self) -> None:
        buffer = bytearray(_READ_BYTES)
        while not self._ended.is_set():
            for key, _ in self._selector.select(0.2) if self._sockets else ():
                client = key.fileobj
                assert isinstance(client, socket.socket)
                try:
                    if client.recv_into(buffer) == 0:
                        self._selector.unregister(client)
                except BlockingIOError:
                    continue
            if not self._sockets:
                self._ended.wait(0.2)


def _exchange(client: socket.socket, request: bytes, expected: bytes) -> None:
    """Sends a packet and reads its answer."""
    client.sendall(request)
    answer = b""
    while len(answer) < len(expected):
        part = client.recv(len(expected) - len(answer))
        if not part:
            break
        answer += part
    if answer != expected:
        raise RuntimeError(
            f"subscribing: the server answered {answer[:16]!r}, {expected[:16]!r} was expected"
        )


def connect(client_id: str) -> bytes:
    """CONNECT, clean session, no keep alive (MQTT 3.1.1 section 3.1)."""
    return packet(0x10, b"\x00\x04MQTT\x04\x02\x00\x00" + text(client_id))


def subscribe(filters: Sequence[str]) -> bytes:
    """SUBSCRIBE at QoS 0 (section 3.8)."""
    return packet(0x82, b"\x00\x01" + b"".join(text(each) + b"\x00" for each in filters))


def suback(count: int) -> bytes:
    """SUBACK that grants QoS 0 to all (section 3.9)."""
    return packet(0x90, b"\x00\x01" + bytes(count))


def text(words: str) -> bytes:
    """A string with its length (section 1.5.3)."""
    encoded = words.encode()
    return len(encoded).to_bytes(2, "big") + encoded


def packet(first: int, body: bytes) -> bytes:
    """A packet with this first byte (section 2.2)."""
    length, rest = bytearray(), len(body)
    while True:
        length.append(rest % 128 | (128 if rest >= 128 else 0))
        rest //= 128
        if rest == 0:
            return bytes([first, *length]) + body

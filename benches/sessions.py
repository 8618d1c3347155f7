"""Fills a server with what a start has to find again: sessions whose clients are away, and retained messages."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator
from itertools import islice

from benches.subscribers import packet, text

#: Without an answer for so long nothing more is to be expected, seconds.
_PATIENCE_S = 60.0
#: Descriptors of the server, and messages without an acknowledgement.
_AT_A_TIME, _WINDOW = 1_000, 500

_CONNACK, _SUBACK, _PUBACK = b"\x20\x02\x00\x00", b"\x90\x03\x00\x01\x01", b"\x40\x02"


def client_id(n: int) -> str:
    """Of the n-th session; 23 bytes, which every server takes."""
    return f"stored-session-{n:08d}"


def connect(n: int) -> bytes:
    """CONNECT of the n-th session, to go on with it (MQTT 3.1.1, section 3.1)."""
    return packet(0x10, b"\x00\x04MQTT\x04\x00\x00\x00" + text(client_id(n)))


def store_sessions(port: int, count: int) -> None:
    """Clients that connect, subscribe to one filter of their own at QoS 1, and go.

    raises: OSError; RuntimeError when the server does not answer as it should
    """
    numbers = iter(range(count))
    with selectors.DefaultSelector() as selector:
        for n in islice(numbers, _AT_A_TIME):
            _begin(selector, port, n)
        while selector.get_map():
            ready = selector.select(_PATIENCE_S)
            if not ready:
                raise RuntimeError(f"storing sessions: {len(selector.get_map())} clients wait in vain")
            for key, _ in ready:
                client = key.fileobj
                assert isinstance(client, socket.socket)
                key.data.extend(client.recv(64))
                if len(key.data) < len(_CONNACK + _SUBACK):
                    if not _CONNACK.startswith(key.data[:4]):
                        raise RuntimeError(f"storing sessions: the server answered {bytes(key.data)!r}")
                    continue
                if key.data != _CONNACK + _SUBACK:
                    raise RuntimeError(f"storing sessions: the server answered {bytes(key.data)!r}")
                client.sendall(packet(0xE0, b""))
                selector.unregister(client)
                client.close()
                for n in islice(numbers, 1):
                    _begin(selector, port, n)


def _begin(selector: selectors.BaseSelector, port: int, n: int) -> None:
    client = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S)
    client.sendall(connect(n) + packet(0x82, b"\x00\x01" + text(f"cmd/{client_id(n)}/#") + b"\x01"))
    selector.register(client, selectors.EVENT_READ, bytearray())


def is_stored(port: int, n: int) -> bool:
    """Whether CONNACK says that the n-th session is present."""
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S) as client:
        client.sendall(connect(n))
        answer = client.recv(4)
        client.sendall(packet(0xE0, b""))
        return answer == b"\x20\x02\x01\x00"


def topic(n: int) -> str:
    """Of the n-th retained message."""
    return f"state/{n // 1000}/{n % 1000}"


def store_retained(port: int, count: int) -> None:
    """One publisher of retained messages of QoS 1, each on a topic of its own.

    raises: OSError; RuntimeError when the server does not answer as it should
    """
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S) as client:
        client.sendall(packet(0x10, b"\x00\x04MQTT\x04\x02\x00\x00" + text("stores-retained")))
        _expect(client, _CONNACK)
        for batch in _batches(count):
            sent = b"".join(
                packet(0x33, text(topic(n)) + (n % 65535 + 1).to_bytes(2, "big") + b'{"on": true}')
                for n in batch
            )
            client.sendall(sent)
            _expect(client, b"".join(_PUBACK + (n % 65535 + 1).to_bytes(2, "big") for n in batch))


def _batches(count: int) -> Iterator[range]:
    for first in range(0, count, _WINDOW):
        yield range(first, min(first + _WINDOW, count))


def is_retained(port: int, n: int) -> bool:
    """Whether a new subscription is sent the n-th retained message."""
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S) as client:
        client.sendall(packet(0x10, b"\x00\x04MQTT\x04\x02\x00\x00" + text("reads-retained")))
        _expect(client, _CONNACK)
        client.sendall(packet(0x82, b"\x00\x01" + text(topic(n)) + b"\x00") + packet(0xC0, b""))
        answer = b""
        while not answer.endswith(b"\xd0\x00"):
            part = client.recv(4096)
            if not part:
                raise RuntimeError("reading a retained message: the server ended the connection")
            answer += part
        return packet(0x31, text(topic(n)) + b'{"on": true}') in answer


def _expect(client: socket.socket, wanted: bytes) -> None:
    answer = b""
    while len(answer) < len(wanted):
        part = client.recv(len(wanted) - len(answer))
        if not part:
            break
        answer += part
    if answer != wanted:
        raise RuntimeError(f"the server answered {answer[:16]!r}, {wanted[:16]!r} was expected")

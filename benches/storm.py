"""Clients that connect all at once, again and again: `python -m benches.storm PORT CLIENTS RECONNECTS`.

Each waits for its CONNACK, holds its connection until all of its round have theirs, and comes again. Prints one JSON
object: connections, seconds, refused.
"""

from __future__ import annotations

import json
import resource
import selectors
import socket
import struct
import sys
import time

from benches.table import say

#: Without a CONNACK for so long nothing more is to be expected, seconds.
_PATIENCE_S = 60.0


def connect(client_id: str) -> bytes:
    """An MQTT 3.1.1 CONNECT with a clean session."""
    name = client_id.encode()
    body = b"\x00\x04MQTT\x04\x02\x00\x00" + struct.pack(">H", len(name)) + name
    assert len(body) < 128
    return bytes([0x10, len(body)]) + body


def storm(port: int, clients: int, reconnects: int) -> dict[str, float]:
    """Plays it. returns: connections with a CONNACK of success, seconds, others"""
    begin = time.monotonic()
    connected = refused = 0
    while connected + refused < reconnects:
        count = min(clients, reconnects - connected - refused)
        with selectors.DefaultSelector() as selector:
            sockets = []
            for n in range(count):
                client = socket.socket()
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", port))
                selector.register(client, selectors.EVENT_WRITE, n)
                sockets.append(client)
            waiting, heard = count, time.monotonic()
            while waiting:
                if time.monotonic() - heard > _PATIENCE_S:
                    raise SystemExit(f"storm: {waiting} clients wait in vain")
                for key, _ in selector.select(0.1):
                    client = key.fileobj
                    assert isinstance(client, socket.socket)
                    try:
                        if key.events == selectors.EVENT_WRITE:
                            client.sendall(connect(f"storm-{key.data}"))
                            selector.modify(client, selectors.EVENT_READ, key.data)
                            continue
                        good = client.recv(64) == b"\x20\x02\x00\x00"
                    except ConnectionError:
                        good = False
                    selector.unregister(client)
                    connected, refused = connected + good, refused + (not good)
                    waiting, heard = waiting - 1, time.monotonic()
            for client in sockets:
                client.close()
    return {"connections": connected, "seconds": time.monotonic() - begin, "refused": refused}


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    say(json.dumps(storm(*map(int, sys.argv[1:4]))))

"""An outside client that sends readings of its own into a loaded server and times when they can be seen.

Each reading has a device of its own and a temperature that raises an alarm. They are sent by the clock, whatever
became of those before, so that a slow moment counts with all that fall into it. Queryable: from its PUBLISH to the
answer of the first query that has the row, asked again and again, the query's own time included. Alarm: to the alarm's
message at a subscriber.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from benches.server import Server
from benches.subscribers import connect, packet, suback, subscribe, text

#: Above every reading of the load.
TEMPERATURE = 500
ALARM = f"""
[alarms.probe]
on     = "telemetry"
where  = "temperature > {TEMPERATURE - 100}"
notify = ["probe"]
[notify.probe]
url = "mqtt:alarms/{{alarm}}/{{device}}"
"""
#: From one reading to the next, and the longest wait for one to be seen, seconds.
EVERY_S, PATIENCE_S = 0.02, 30.0
#: Between an alarm and the next reading where they come one after the other, seconds.
PAUSE_S = 0.01


@dataclass
class Seen:
    """Milliseconds of every reading; `lost` counts those that were not seen in time."""

    queryable_ms: list[float] = field(default_factory=list)
    alarm_ms: list[float] = field(default_factory=list)
    lost: int = 0

    def add(self, other: Seen) -> None:
        """Takes another run's."""
        self.queryable_ms += other.queryable_ms
        self.alarm_ms += other.alarm_ms
        self.lost += other.lost


class Probe:
    """Two connections to the server, one that publishes and one that is sent alarms."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._publisher = _client(server.port, "bench-probe")
        self._subscriber = _client(server.port, "bench-alarms")
        self._subscriber.sendall(subscribe(["alarms/#"]))
        _expect(self._subscriber, suback(1))
        self._arrived: dict[str, float] = {}
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def run(self, secs: float) -> Seen:
        """Readings for so long, and what becomes of them."""
        sent: dict[str, float] = {}
        visible: dict[str, float] = {}
        publishing = threading.Thread(target=self._publish, args=(sent, secs))
        publishing.start()
        last = time.monotonic() + secs
        while publishing.is_alive() or (len(visible) < len(sent) and time.monotonic() < last + PATIENCE_S):
            # Somebody asks all the time: inside, where every reading counts, none waits for a question.
            unseen = [device for device in list(sent) if device not in visible]
            found, now = self._rows(unseen or ["probe"]), time.monotonic()
            visible.update(dict.fromkeys(found, now))
        publishing.join()
        while len(self._arrived) < len(sent) and time.monotonic() < last + PATIENCE_S:
            time.sleep(0.01)
        self._publisher.close()
        self._subscriber.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._subscriber.close()
        queryable, alarms = (
            [(seen[device] - begin) * 1e3 for device, begin in sent.items() if device in seen]
            for seen in (visible, self._arrived)
        )
        return Seen(queryable, alarms, 2 * len(sent) - len(queryable) - len(alarms))

    def _publish(self, sent: dict[str, float], secs: float) -> None:
        begin = time.monotonic()
        for number in range(int(secs / EVERY_S)):
            time.sleep(max(0.0, begin + number * EVERY_S - time.monotonic()))
            device = f"probe{number}"
            reading = json.dumps({"ts": int(time.time() * 1000), "temperature": TEMPERATURE})
            topic = text(f"dt/demo/{device}/telemetry")
            sent[device] = time.monotonic()
            self._publisher.sendall(packet(0x30, topic + reading.encode()))

    def _rows(self, devices: list[str]) -> list[str]:
        """Those of the devices that have a row."""
        names = ", ".join(f"'{device}'" for device in devices)
        return [
            device
            for (device,) in self._server.query(f"SELECT device FROM telemetry WHERE device IN ({names})")
        ]

    def _listen(self) -> None:
        """Notes when each alarm arrives: the topic is alarms/probe/DEVICE, the first message of a device counts."""
        rest = b""
        while part := self._subscriber.recv(1 << 16):
            now = time.monotonic()
            rest += part
            while (found := _first(rest)) is not None:
                body, rest = found
                size = int.from_bytes(body[:2], "big")
                device = body[2 : 2 + size].decode().rpartition("/")[2]
                self._arrived.setdefault(device, now)


class Alarms:
    """A client that raises alarms one after the other, each at a device of its own, and times their messages.

    name: of its devices, which no other has
    """

    def __init__(self, server: Server, name: str) -> None:
        self._name = name
        self._sent = 0
        self._publisher = _client(server.port, f"bench-probe-{name}")
        self._subscriber = _client(server.port, f"bench-alarms-{name}")
        self._subscriber.settimeout(PATIENCE_S)
        self._subscriber.sendall(subscribe(["alarms/probe/#"]))
        _expect(self._subscriber, suback(1))
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._publisher.close()
        self._subscriber.close()

    def publish(self, topic: str, payload: dict[str, float]) -> None:
        """One reading at QoS 0."""
        self._publisher.sendall(packet(0x30, text(topic) + json.dumps(payload).encode()))

    def run(self, done: Callable[[], bool]) -> list[float]:
        """Milliseconds of each alarm until `done` says so, asked after each."""
        found = []
        while not found or not done():
            device = f"{self._name}-{self._sent}"
            self._sent += 1
            begin = time.monotonic()
            reading = {"ts": int(time.time() * 1000), "temperature": TEMPERATURE}
            self.publish(f"dt/demo/{device}/telemetry", reading)
            while self._next_device() != device:
                pass
            found.append((time.monotonic() - begin) * 1e3)
            time.sleep(PAUSE_S)
        return found

    def _next_device(self) -> str:
        while (found := _first(self._rest)) is None:
            part = self._subscriber.recv(1 << 16)
            if not part:
                raise SystemExit("bench: the server closed the connection that alarms come by")
            self._rest += part
        body, self._rest = found
        size = int.from_bytes(body[:2], "big")
        return body[2 : 2 + size].decode().rpartition("/")[2]


def _first(buffer: bytes) -> tuple[bytes, bytes] | None:
    """Body of the first packet and what follows it; None until it is whole (MQTT 3.1.1 section 2.2.3)."""
    length = shift = 0
    for at, byte in enumerate(buffer[1:5], start=1):
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            end = at + 1 + length
            return (buffer[at + 1 : end], buffer[end:]) if len(buffer) >= end else None
    return None


def _client(port: int, client_id: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.sendall(connect(client_id))
    _expect(client, b"\x20\x02\x00\x00")
    client.settimeout(None)
    return client


def _expect(client: socket.socket, answer: bytes) -> None:
    found = b""
    while len(found) < len(answer) and (part := client.recv(len(answer) - len(found))):
        found += part
    if found != answer:
        raise SystemExit(f"bench: the server answered {found!r}, {answer!r} was expected")

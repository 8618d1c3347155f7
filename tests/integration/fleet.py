"""Clients whose sessions outlive their connections: hundreds in one thread, every packet under the test's control.

A publisher (fleet_publisher.py) numbers its messages, keeps what is not acknowledged and sends it again with its packet
id; a subscriber (fleet_subscriber.py) keeps what came and the packet ids of QoS 2 that are not released. Both remember
over the server's end, as the standards want of a client (MQTT 5.0, sections 4.1 and 4.4), and note in `Fleet.problems`
what can be seen on the spot. What must hold at the end of all is in `ledger.py`.
"""

from __future__ import annotations

import json
import selectors
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from tests.integration.peer import (
    CONNACK,
    DISCONNECT,
    PUBACK,
    PUBLISH,
    SUBACK,
    UNSUBACK,
    Packet,
    connect,
    packet,
)
from tests.integration.server import PATIENCE_S

if TYPE_CHECKING:
    from tests.integration.fleet_publisher import Publisher
    from tests.integration.fleet_subscriber import Subscriber

PUBREC, PUBREL, PUBCOMP = 5, 6, 7
KINDS = {
    CONNACK: "CONNACK",
    PUBLISH: "PUBLISH",
    PUBACK: "PUBACK",
    PUBREC: "PUBREC",
    PUBREL: "PUBREL",
    PUBCOMP: "PUBCOMP",
    SUBACK: "SUBACK",
    UNSUBACK: "UNSUBACK",
    DISCONNECT: "DISCONNECT",
}

#: Event time of the first message, ms; message n is n ms later.
START_MS = 1_790_000_000_000
EXPIRY_S = 100_000
_UNKNOWN_ID = 0x92
#: Properties of MQTT 5 that its messages have.
USER_PROPERTY, SUBSCRIPTION_ID, MESSAGE_EXPIRY = 0x26, 0x0B, 0x02


def matches(topic_filter: str, topic: str) -> bool:
    """MQTT 5.0, section 4.7, for topics without a leading `$`."""
    wanted, levels = topic_filter.split("/"), topic.split("/")
    if wanted[-1] == "#":
        wanted.pop()
        levels = levels[: len(wanted)] if len(levels) >= len(wanted) else []
    return len(wanted) == len(levels) and all(
        w in ("+", level) for w, level in zip(wanted, levels, strict=True)
    )


def split(buffer: bytearray) -> Iterator[Packet]:
    """Takes the whole packets out of the buffer."""
    start = 0
    try:
        while start + 2 <= len(buffer):
            size, at = 0, start + 1
            for shift in (0, 7, 14, 21):
                if at == len(buffer):
                    return
                size |= (buffer[at] & 0x7F) << shift
                at += 1
                if buffer[at - 1] < 0x80:
                    break
            if at + size > len(buffer):
                return
            found = Packet(buffer[start], bytes(buffer[at : at + size]))
            start = at + size
            yield found
    finally:
        del buffer[:start]


@dataclass(slots=True)
class Message:
    """One message; times are moments of the fleet.

    number: its place among all messages of the fleet, in the order in which they were made
    empty:  a retained message that clears its topic
    """

    number: int
    topic: str
    qos: int
    retain: bool
    empty: bool
    made: int
    acknowledged: int | None = None

    def payload(self) -> bytes:
        """A reading of the stream `telemetry` of the tests."""
        return b"" if self.empty else json.dumps({"ts": START_MS + self.number, "seq": self.number}).encode()


@dataclass(slots=True)
class Subscription:
    """One subscription from SUBSCRIBE to UNSUBACK; times are moments of the fleet.

    number: its subscription identifier, by which a delivery tells its filter
    """

    number: int
    topic_filter: str
    qos: int
    asked: int
    since: int | None = None
    dropped: int | None = None
    gone: int | None = None

    def plain(self) -> str:
        """The filter without `$share` and the share's name."""
        return (
            self.topic_filter.split("/", 2)[2]
            if self.topic_filter.startswith("$share/")
            else self.topic_filter
        )

    def fits(self, topic: str) -> bool:
        return matches(self.plain(), topic)

    def wants(self, message: Message) -> bool:
        """Whether a message whose topic fits must come: made after SUBACK, acknowledged before UNSUBSCRIBE."""
        if self.since is None or message.made < self.since or message.acknowledged is None:
            return False
        return self.dropped is None or message.acknowledged < self.dropped

    def allows(self, message: Message) -> bool:
        """Whether the message may come by it."""
        early = message.acknowledged is not None and message.acknowledged < self.asked
        late = self.gone is not None and message.made > self.gone
        return not early and not late and self.fits(message.topic)


@dataclass(slots=True)
class Share:
    """What the members of a shared subscription have got together."""

    seen: set[int] = field(default_factory=set)
    exactly: Counter[int] = field(default_factory=Counter)


class Fleet:
    """The clients, and the loop that lets them talk until a test has seen what it waits for.

    moment:   counts what happens: packets heard, messages made
    problems: what contradicts the standards, in words
    """

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.address = ("", 0)
        self.moment = 0
        self.messages: list[Message] = []
        self.problems: list[str] = []
        self.publishers: list[Publisher] = []
        self.subscribers: list[Subscriber] = []
        self.publishing = True
        self.serving = False
        self.selector = selectors.DefaultSelector()

    @property
    def clients(self) -> list[Client]:
        return [*self.publishers, *self.subscribers]

    def serve(self, address: tuple[str, int]) -> None:
        """The server is up, here."""
        self.address, self.serving = address, True

    def talk(
        self,
        until: Callable[[], bool],
        what: str,
        between: Callable[[], None] = lambda: None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Lets everybody talk; fails, naming `what`, when nothing that is awaited has come for `patience_s`."""
        end, heard = time.monotonic() + patience_s, self.moment
        while not until():
            for client in [each for each in self.clients if each.outbox]:
                client.flush()
            ready = self.selector.select(0.01)
            for key, _ in ready:
                key.data.read()
            if not ready:
                for subscriber in self.subscribers:
                    subscriber.acknowledge()
            between()
            if self.moment > heard:
                end, heard = time.monotonic() + patience_s, self.moment
            if time.monotonic() > end:
                raise AssertionError(
                    f"nothing more came within {patience_s:g} s of: {what}; {self.problems[:5]}"
                )

    def bury(self) -> None:
        """After the server's end: takes what it had still sent, and ends the connections."""
        self.serving = False
        for client in self.clients:
            client.bury()

    def close(self) -> None:
        for client in self.clients:
            client.leave(gently=False)
        self.selector.close()


class Client:
    """One client id, its session and, at times, its connection.

    level:           4 (MQTT 3.1.1) or 5
    receive_maximum: of MQTT 5; 0: not given
    """

    def __init__(self, fleet: Fleet, client_id: str, level: int, receive_maximum: int = 0) -> None:
        self.fleet, self.client_id, self.level = fleet, client_id, level
        self.receive_maximum = receive_maximum
        #: The server has said that it has this session; it may have it, since a CONNECT was under way at its end.
        self.promised = self.known = False
        #: CONNACK of this connection has come.
        self.welcomed = False
        self.socket: socket.socket | None = None
        self.inbox, self.outbox = bytearray(), bytearray()

    def join(self) -> None:
        """Connects, to go on with the session."""
        self.socket = socket.create_connection(self.fleet.address, timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.fleet.selector.register(self.socket, selectors.EVENT_READ, self)
        properties = b"\x11" + struct.pack(">I", EXPIRY_S)
        if self.receive_maximum:
            properties += b"\x21" + struct.pack(">H", self.receive_maximum)
        self.send(connect(self.level, 0, client=self.client_id, properties=properties))

    def leave(self, gently: bool = True) -> None:
        """Ends the connection, with a DISCONNECT or without a word; what was not read is lost."""
        if self.socket is None:
            return
        if gently:
            self.send(packet(0xE0))
            self.flush()
        self.fleet.selector.unregister(self.socket)
        self.socket.close()
        self.socket, self.welcomed = None, False
        self.known = True
        self.inbox.clear()
        self.outbox.clear()

    def bury(self) -> None:
        if self.socket is not None:
            self.socket.settimeout(PATIENCE_S)
            while self.socket is not None:
                self.read()

    def problem(self, words: str) -> None:
        self.fleet.problems.append(f"{self.client_id}: {words}")

    # ---- bytes

    def send(self, data: bytes | bytearray) -> None:
        self.outbox += data

    def flush(self) -> None:
        if self.socket is None:
            return
        try:
            del self.outbox[: self.socket.send(self.outbox)]
        except BlockingIOError:
            pass  # the server does not read: later
        except ConnectionError:
            self.outbox.clear()  # the end is read where all ends are read

    def read(self) -> None:
        assert self.socket is not None
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            if self.fleet.serving:
                self.problem("the server ended the connection")
            self.leave(gently=False)
            return
        self.inbox += data
        for each in split(self.inbox):
            self.fleet.moment += 1
            self.hear(each)

    # ---- packets

    def hear(self, heard: Packet) -> None:
        if heard.kind == CONNACK:
            self.connack(heard)
        elif heard.kind == DISCONNECT:
            if self.fleet.serving:
                self.problem(f"DISCONNECT 0x{heard.reason(self.level):02X} by the server")
        else:
            self.other(heard)

    def connack(self, heard: Packet) -> None:
        present, code = bool(heard.body[0] & 1), heard.body[1]
        if code:
            self.problem(f"CONNACK 0x{code:02X}")
        elif self.promised and not present:
            self.problem("session present is 0 instead of 1")
        elif present and not self.known:
            self.problem("session present is 1 at the first CONNECT")
        self.promised = self.welcomed = self.known = True
        self.resume(present)

    def resume(self, present: bool) -> None:
        """What follows CONNACK."""

    def other(self, heard: Packet) -> None:
        """Packets beside CONNACK and DISCONNECT."""

    def refused(self, heard: Packet) -> bool:
        """Whether an acknowledgement says no."""
        code = heard.body[2] if self.level == 5 and len(heard.body) > 2 else 0
        if code >= 0x80 and not (code == _UNKNOWN_ID and heard.kind == PUBCOMP):
            self.problem(f"{KINDS[heard.kind]} 0x{code:02X}")
            return True
        return False

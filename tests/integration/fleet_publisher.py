"""A publisher of a fleet: numbers its messages and does not forget them before they are acknowledged."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from tests.integration.fleet import KINDS, PUBCOMP, PUBREC, USER_PROPERTY, Client, Fleet, Message
from tests.integration.peer import PUBACK, Packet, packet, publish, text


class Publisher(Client):
    """Sends to its topics in turn, with at most `window` messages unacknowledged.

    topics: topic and QoS
    retain: its messages are retained, and some clear their topic

    It has only twice as many packet ids as it needs, so that the server has to be right about which are free.
    """

    def __init__(
        self,
        fleet: Fleet,
        client_id: str,
        level: int,
        topics: Sequence[tuple[str, int]],
        window: int = 10,
        retain: bool = False,
    ) -> None:
        super().__init__(fleet, client_id, level)
        self.topics, self.window, self.retain = topics, window, retain
        self.unacknowledged: dict[int, Message] = {}
        self.releasing: set[int] = set()
        self.packet_id = 0
        self.turn = 0
        fleet.publishers.append(self)

    def resume(self, present: bool) -> None:
        for packet_id, message in self.unacknowledged.items():
            if packet_id in self.releasing:
                self.send(packet(0x62, struct.pack(">H", packet_id)))
            else:
                self.send_message(packet_id, message, again=True)
        self.more()

    def has_room(self) -> bool:
        return self.welcomed and len(self.unacknowledged) < self.window

    def more(self) -> None:
        """Fills the window."""
        while self.fleet.publishing and self.fleet.serving and self.has_room():
            self.turn = (self.turn + 1) % len(self.topics)
            self.make(*self.topics[self.turn])

    def make(self, topic: str, qos: int) -> None:
        """One new message."""
        while True:
            self.packet_id = self.packet_id % (2 * self.window) + 1
            if self.packet_id not in self.unacknowledged:
                break
        fleet = self.fleet
        fleet.moment += 1
        empty = self.retain and fleet.random.random() < 0.2
        message = Message(len(fleet.messages), topic, qos, self.retain, empty, fleet.moment)
        fleet.messages.append(message)
        self.unacknowledged[self.packet_id] = message
        self.send_message(self.packet_id, message, again=False)

    def send_message(self, packet_id: int, message: Message, again: bool) -> None:
        number = str(message.number)
        properties = bytes([USER_PROPERTY]) + text("n") + text(number) if self.level == 5 else b""
        self.send(
            publish(
                self.level,
                message.topic,
                message.payload(),
                qos=message.qos,
                packet_id=packet_id,
                retain=message.retain,
                dup=again,
                properties=properties,
            )
        )

    def other(self, heard: Packet) -> None:
        packet_id = int.from_bytes(heard.body[:2], "big")
        message = self.unacknowledged.get(packet_id)
        if message is None:
            # A second acknowledgement of what was sent again is in order only within one connection: never here.
            self.problem(f"{KINDS[heard.kind]} for packet id {packet_id}, which is free")
            return
        if heard.kind == PUBREC and message.qos == 2:
            if not self.refused(heard):
                self.releasing.add(packet_id)
                self.send(packet(0x62, heard.body[:2]))
        elif heard.kind == (PUBACK, PUBCOMP)[message.qos - 1]:
            if not self.refused(heard):
                message.acknowledged = self.fleet.moment
            self.releasing.discard(packet_id)
            del self.unacknowledged[packet_id]
            self.more()
        else:
            self.problem(f"{KINDS[heard.kind]} for a message of QoS {message.qos}")

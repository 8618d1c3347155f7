"""A subscriber of a fleet: notes what comes, and what of it contradicts the standards."""

from __future__ import annotations

import json
import struct
from collections import Counter, defaultdict
from collections.abc import Sequence

from tests.integration.fleet import (
    KINDS,
    MESSAGE_EXPIRY,
    PUBREL,
    SUBSCRIPTION_ID,
    USER_PROPERTY,
    Client,
    Fleet,
    Share,
    Subscription,
)
from tests.integration.peer import PUBLISH, SUBACK, UNSUBACK, Packet, length, packet, subscribe, text


class Subscriber(Client):
    """Wants some filters, and notes what comes.

    filters:  filter and QoS of the first SUBSCRIBE
    laziness: how often acknowledgements wait for the next message, 0 to 1
    share:    what the members of its shared subscription have together; filters are `$share/...` then
    """

    def __init__(
        self,
        fleet: Fleet,
        client_id: str,
        level: int,
        filters: Sequence[tuple[str, int]],
        receive_maximum: int = 0,
        laziness: float = 0.0,
        share: Share | None = None,
    ) -> None:
        super().__init__(fleet, client_id, level, receive_maximum)
        self.laziness, self.share = laziness, share
        self.subscriptions: list[Subscription] = []
        #: By packet id: subscriptions that wait for SUBACK, and for UNSUBACK.
        self.asking: dict[int, Subscription] = {}
        self.dropping: dict[int, Subscription] = {}
        self.packet_id = 0
        #: Numbers in the order of arrival, repetitions too, with the QoS; per topic.
        self.heard: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        self.seen: set[int] = share.seen if share else set()
        self.exactly: Counter[int] = share.exactly if share else Counter()
        #: QoS 2: number of the message by packet id, from PUBLISH to PUBREL.
        self.unreleased: dict[int, int] = {}
        #: Packet ids of this connection that count against the receive maximum, and those that `answers` frees.
        self.unanswered: set[int] = set()
        self.answered: list[int] = []
        self.answers = bytearray()
        fleet.subscribers.append(self)
        for topic_filter, qos in filters:
            self.subscribe(topic_filter, qos)

    # ---- subscriptions

    def subscribe(self, topic_filter: str, qos: int) -> None:
        """Sends SUBSCRIBE, now or when it is connected, and again until SUBACK has come."""
        subscription = Subscription(len(self.subscriptions) % 100 + 1, topic_filter, qos, self.fleet.moment)
        self.subscriptions.append(subscription)
        self.packet_id += 1
        self.asking[self.packet_id] = subscription
        if self.welcomed:
            self.ask(self.packet_id)

    def unsubscribe(self, subscription: Subscription) -> None:
        """The same with UNSUBSCRIBE."""
        subscription.dropped = self.fleet.moment
        self.packet_id += 1
        self.dropping[self.packet_id] = subscription
        if self.welcomed:
            self.ask(self.packet_id)

    def ask(self, packet_id: int) -> None:
        if subscription := self.asking.get(packet_id):
            properties = bytes([SUBSCRIPTION_ID, subscription.number]) if self.level == 5 else b""
            wanted = (subscription.topic_filter, subscription.qos)
            self.send(subscribe(self.level, wanted, packet_id=packet_id, properties=properties))
        else:
            wanted_no_more = self.dropping[packet_id].topic_filter
            body = (
                struct.pack(">H", packet_id) + (length(0) if self.level == 5 else b"") + text(wanted_no_more)
            )
            self.send(packet(0xA2, body))

    def resume(self, present: bool) -> None:
        if not present:
            self.unreleased.clear()
        for packet_id in sorted([*self.asking, *self.dropping]):
            self.ask(packet_id)

    # ---- messages

    def other(self, heard: Packet) -> None:
        if heard.kind == PUBLISH:
            self.message(heard)
            return
        packet_id = int.from_bytes(heard.body[:2], "big")
        if heard.kind == SUBACK:
            subscription = self.asking.pop(packet_id)
            subscription.since = self.fleet.moment
            if heard.reason(self.level) != subscription.qos:
                self.problem(f"SUBACK 0x{heard.reason(self.level):02X} for QoS {subscription.qos}")
        elif heard.kind == UNSUBACK:
            self.dropping.pop(packet_id).gone = self.fleet.moment
            if self.level == 5 and heard.reason(5) not in (0, 0x11):
                self.problem(f"UNSUBACK 0x{heard.reason(5):02X}")
        elif heard.kind == PUBREL:
            self.unreleased.pop(packet_id, None)
            self.answers += packet(0x70, heard.body[:2])
            self.answered.append(packet_id)
            self.maybe_acknowledge()
        else:
            self.problem(f"{KINDS.get(heard.kind, heard.kind)} to a subscriber")

    def message(self, heard: Packet) -> None:
        size = int.from_bytes(heard.body[:2], "big")
        topic, rest = heard.body[2 : 2 + size].decode(), heard.body[2 + size :]
        qos, again = heard.first >> 1 & 3, bool(heard.first & 8)
        packet_id = 0
        if qos:
            packet_id, rest = int.from_bytes(rest[:2], "big"), rest[2:]
        properties: dict[int, list[object]] = {}
        if self.level == 5:
            properties, rest = take_properties(rest)
        number = json.loads(rest)["seq"]
        if qos == 2 and packet_id in self.unreleased:
            # Sent again: its PUBREC was not heard. It must be the same message, and flagged.
            if self.unreleased[packet_id] != number:
                self.problem(
                    f"packet id {packet_id} of {self.unreleased[packet_id]} has {number} before its release"
                )
            if not again:
                self.problem(f"QoS 2 message {number} came again without the DUP flag")
        else:
            self.note(topic, number, qos, properties)
        if qos == 2:
            self.unreleased[packet_id] = number
        if qos:
            self.unanswered.add(packet_id)
            if self.receive_maximum and len(self.unanswered) > self.receive_maximum:
                self.problem(
                    f"{len(self.unanswered)} messages at a time, receive maximum {self.receive_maximum}"
                )
            self.answers += packet(0x40 if qos == 1 else 0x50, struct.pack(">H", packet_id))
            if qos == 1:
                self.answered.append(packet_id)
        self.maybe_acknowledge()

    def note(self, topic: str, number: int, qos: int, properties: dict[int, list[object]]) -> None:
        message = self.fleet.messages[number]
        self.heard[topic].append((number, qos))
        self.seen.add(number)
        if qos == 2:
            self.exactly[number] += 1
        if topic != message.topic:
            self.problem(f"message {number} of {message.topic} came on {topic}")
        fitting = {each.number: each.qos for each in self.subscriptions if each.allows(message)}
        if qos not in {min(message.qos, granted) for granted in fitting.values()}:
            self.problem(
                f"message {number} of QoS {message.qos} on {topic} came with QoS {qos}, subscriptions {fitting}"
            )
        if self.level == 5:
            ids = properties.get(SUBSCRIPTION_ID, [])
            if not ids or not set(ids) <= fitting.keys():
                self.problem(
                    f"message {number} on {topic} has subscription identifiers {ids}, not of {fitting}"
                )
            told = properties.get(USER_PROPERTY, [])
            if told not in ([], [("n", str(number))]):
                self.problem(f"message {number} has user properties {told}")

    def maybe_acknowledge(self) -> None:
        if self.laziness == 0 or self.fleet.random.random() >= self.laziness:
            self.acknowledge()

    def acknowledge(self) -> None:
        """Sends the acknowledgements that waited."""
        self.send(self.answers)
        self.unanswered.difference_update(self.answered)
        self.answers.clear()
        self.answered.clear()

    def leave(self, gently: bool = True) -> None:
        super().leave(gently)
        self.unanswered.clear()
        self.answers.clear()
        self.answered.clear()


def take_properties(body: bytes) -> tuple[dict[int, list[object]], bytes]:
    """The properties at the front of `body`, those that messages of this fleet can have, and what follows them."""
    size, at = 0, 0
    for shift in (0, 7, 14, 21):
        size |= (body[at] & 0x7F) << shift
        at += 1
        if body[at - 1] < 0x80:
            break
    found: dict[int, list[object]] = defaultdict(list)
    rest = body[at : at + size]
    while rest:
        kind, rest = rest[0], rest[1:]
        if kind == SUBSCRIPTION_ID:
            assert rest[0] < 0x80, "this fleet has small subscription identifiers"
            found[kind].append(rest[0])
            rest = rest[1:]
        elif kind == MESSAGE_EXPIRY:
            found[kind].append(int.from_bytes(rest[:4], "big"))
            rest = rest[4:]
        elif kind == USER_PROPERTY:
            name = int.from_bytes(rest[:2], "big")
            value = int.from_bytes(rest[2 + name : 4 + name], "big")
            found[kind].append((rest[2 : 2 + name].decode(), rest[4 + name : 4 + name + value].decode()))
            rest = rest[4 + name + value :]
        else:
            raise AssertionError(f"a property 0x{kind:02X} that nobody sent")
    return found, body[at + size :]

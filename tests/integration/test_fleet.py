"""The fleet and its ledger see what is wrong: each fault that a server could have is played to a client once."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integration import peer
from tests.integration.fleet import SUBSCRIPTION_ID, Fleet, Message, Share, matches, split
from tests.integration.fleet_publisher import Publisher
from tests.integration.fleet_subscriber import Subscriber
from tests.integration.ledger import Due, disordered, doubled, repeated
from tests.integration.peer import packet, publish


@pytest.mark.parametrize(
    ("topic_filter", "topic", "fits"),
    [
        ("a/b", "a/b", True),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "a", True),
        ("a/+/c", "a/b/d", False),
        ("a/b", "a/b/c", False),
    ],
)
def test_filters_match(topic_filter: str, topic: str, fits: bool) -> None:
    assert matches(topic_filter, topic) == fits


@given(st.lists(st.binary(max_size=300), max_size=5), st.data())
def test_packets_are_whole_however_the_stream_is_cut(bodies: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(packet(0x30, body) for body in bodies)
    cut = data.draw(st.integers(0, len(stream)))
    buffer, found = bytearray(), []
    for part in (stream[:cut], stream[cut:]):
        buffer += part
        found += [each.body for each in split(buffer)]
    assert found == bodies
    assert not buffer


class Stage:
    """A subscriber of both QoS, and messages on topic `a` that were acknowledged after its SUBACK."""

    def __init__(
        self, level: int = 4, qos: int = 2, share: Share | None = None, receive_maximum: int = 0
    ) -> None:
        self.fleet = Fleet(1)
        self.level = level
        self.subscriber = Subscriber(
            self.fleet, "s", level, [("a", qos)], share=share, receive_maximum=receive_maximum
        )
        self.hear(self.subscriber, peer.CONNACK << 4, b"\0\0" + (b"\0" if level == 5 else b""))
        self.fleet.moment += 1
        [subscription] = self.subscriber.subscriptions
        subscription.since = self.fleet.moment
        self.subscriber.asking.clear()

    def hear(self, client: Subscriber, first: int, body: bytes) -> None:
        for each in split(bytearray(packet(first, body))):
            client.hear(each)

    def made(self, count: int, qos: int = 2) -> None:
        for _ in range(count):
            self.fleet.moment += 2
            message = Message(len(self.fleet.messages), "a", qos, False, False, self.fleet.moment - 1)
            message.acknowledged = self.fleet.moment
            self.fleet.messages.append(message)

    def deliver(
        self, number: int, qos: int = 2, packet_id: int = 1, dup: bool = False, ids: bytes = b"\x01"
    ) -> None:
        properties = b"".join(bytes([SUBSCRIPTION_ID, each]) for each in ids) if self.level == 5 else b""
        payload = json.dumps({"seq": number}).encode()
        data = publish(self.level, "a", payload, qos=qos, packet_id=packet_id, dup=dup, properties=properties)
        for each in split(bytearray(data)):
            self.subscriber.hear(each)

    def release(self, packet_id: int = 1) -> None:
        self.hear(self.subscriber, 0x62, packet_id.to_bytes(2, "big"))


def test_what_is_as_it_should_be_is_no_problem() -> None:
    stage = Stage(5)
    stage.made(3)
    for number in range(3):
        stage.deliver(number, packet_id=number + 1)
        stage.deliver(number, packet_id=number + 1, dup=True)
        stage.release(number + 1)
    assert Due(stage.fleet).done()
    assert (stage.fleet.problems, doubled(stage.fleet), disordered(stage.fleet)) == ([], [], [])


def test_a_missing_message() -> None:
    stage = Stage()
    stage.made(2)
    stage.deliver(1)
    due = Due(stage.fleet)
    assert not due.done()
    assert due.missing() == ["s: 1 acknowledged messages are missing: [0]"]


def test_a_message_of_qos_2_after_its_release_is_doubled() -> None:
    stage = Stage()
    stage.made(1)
    for packet_id in (1, 2):
        stage.deliver(0, packet_id=packet_id)
        stage.release(packet_id)
    assert doubled(stage.fleet) == ["s: QoS 2 message 0 came 2 times"]


def test_members_of_a_share_count_together() -> None:
    share = Share()
    stage = Stage(share=share)
    other = Subscriber(stage.fleet, "t", 4, [("a", 2)], share=share)
    other.subscriptions[0].since = stage.fleet.moment
    stage.made(2)
    stage.deliver(0)
    stage.release()
    assert Due(stage.fleet).missing() == ["s: 1 acknowledged messages are missing: [1]"]
    stage.subscriber = other
    stage.deliver(1)
    stage.release()
    assert Due(stage.fleet).done()
    stage.deliver(0)
    assert doubled(stage.fleet) == ["t: QoS 2 message 0 came 2 times"]


def test_an_order_that_is_not_kept() -> None:
    stage = Stage(qos=1)
    stage.made(3, qos=1)
    for number in (0, 1, 0, 1, 2):
        stage.deliver(number, qos=1)
    assert (disordered(stage.fleet), repeated(stage.fleet)) == ([], 2)
    stage.made(2, qos=1)
    for number in (4, 3):
        stage.deliver(number, qos=1)
    assert disordered(stage.fleet) == ["s: 4 came before 3 on a"]


def test_a_packet_id_that_is_not_free() -> None:
    stage = Stage()
    stage.made(2)
    stage.deliver(0)
    stage.deliver(1)
    assert "has 1 before its release" in stage.fleet.problems[0]


def test_a_repetition_without_dup() -> None:
    stage = Stage()
    stage.made(1)
    stage.deliver(0)
    stage.deliver(0)
    assert stage.fleet.problems == ["s: QoS 2 message 0 came again without the DUP flag"]


def test_a_session_that_is_gone() -> None:
    stage = Stage()
    stage.hear(stage.subscriber, peer.CONNACK << 4, b"\0\0")
    assert stage.fleet.problems == ["s: session present is 0 instead of 1"]


def test_a_session_that_nobody_began() -> None:
    fleet = Fleet(1)
    publisher = Publisher(fleet, "p", 4, [("a", 1)])
    for each in split(bytearray(b"\x20\x02\x01\x00")):
        publisher.hear(each)
    assert fleet.problems == ["p: session present is 1 at the first CONNECT"]


def test_more_at_a_time_than_the_receive_maximum() -> None:
    stage = Stage(5, receive_maximum=1)
    stage.made(2)
    stage.deliver(0, packet_id=1)
    stage.deliver(1, packet_id=2)
    assert stage.fleet.problems == ["s: 2 messages at a time, receive maximum 1"]


def test_a_qos_that_was_not_granted() -> None:
    stage = Stage(qos=1)
    stage.made(1)
    stage.deliver(0, qos=2)
    assert "came with QoS 2" in stage.fleet.problems[0]


def test_a_subscription_identifier_of_another_filter() -> None:
    stage = Stage(5)
    stage.made(1)
    stage.deliver(0, ids=b"\x02")
    assert "subscription identifiers [2]" in stage.fleet.problems[0]


def test_a_message_of_a_time_before_the_subscription() -> None:
    stage = Stage()
    stage.made(1)
    stage.subscriber.subscriptions[0].asked = stage.fleet.moment + 1
    stage.deliver(0)
    assert "came with QoS 2" in stage.fleet.problems[0]


def test_an_acknowledgement_of_nothing() -> None:
    fleet = Fleet(1)
    publisher = Publisher(fleet, "p", 4, [("a", 1)])
    for each in split(bytearray(b"\x40\x02\x00\x07")):
        publisher.hear(each)
    assert fleet.problems == ["p: PUBACK for packet id 7, which is free"]

"""What must hold for a fleet when all is said: every acknowledged message came to everybody who wants it, QoS 2 once,
in order; the table has it; the retained messages are the last ones."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict

from tests.integration.fleet import Fleet, Message
from tests.integration.peer import PUBLISH, Peer, publish, subscribe
from tests.integration.server import Server


class Due:
    """Messages that are still to come. `done` is cheap enough to be asked all the time."""

    def __init__(self, fleet: Fleet) -> None:
        topics: defaultdict[str, list[Message]] = defaultdict(list)
        for message in fleet.messages:
            topics[message.topic].append(message)
        self._due: dict[int, tuple[str, set[int], set[int]]] = {}
        for subscriber in fleet.subscribers:
            _, _, wanted = self._due.setdefault(
                id(subscriber.seen), (subscriber.client_id, subscriber.seen, set())
            )
            for subscription in subscriber.subscriptions:
                for topic in topics:
                    if subscription.fits(topic):
                        wanted.update(each.number for each in topics[topic] if subscription.wants(each))
        self.deliveries = sum(len(wanted) for _, _, wanted in self._due.values())
        self._left = list(self._due.values())

    def done(self) -> bool:
        while self._left and self._left[-1][2] <= self._left[-1][1]:
            self._left.pop()
        return not self._left

    def missing(self) -> list[str]:
        """In words."""
        return [
            f"{client}: {len(wanted - seen)} acknowledged messages are missing: {sorted(wanted - seen)[:5]}"
            for client, seen, wanted in self._due.values()
            if not wanted <= seen
        ]


def doubled(fleet: Fleet) -> list[str]:
    """Messages of QoS 2 that a subscriber, or the members of a share together, got more than once."""
    counts = {id(each.exactly): (each.client_id, each.exactly) for each in fleet.subscribers}
    return [
        f"{client}: QoS 2 message {number} came {times} times"
        for client, exactly in counts.values()
        for number, times in exactly.items()
        if times > 1
    ]


def disordered(fleet: Fleet) -> list[str]:
    """Messages that came before an earlier one of their topic (MQTT 5.0, section 4.6); repetitions do not count."""
    found = []
    for subscriber in fleet.subscribers:
        for topic, heard in subscriber.heard.items() if subscriber.share is None else ():
            first = list(dict.fromkeys(number for number, _ in heard))
            found += [
                f"{subscriber.client_id}: {later} came before {earlier} on {topic}"
                for later, earlier in itertools.pairwise(first)
                if later > earlier
            ]
    return found


def repeated(fleet: Fleet) -> int:
    """How many deliveries of QoS 1 were repetitions, which the standard allows."""
    return sum(
        sum(count - 1 for count in Counter(number for number, qos in heard if qos == 1).values())
        for subscriber in fleet.subscribers
        for heard in subscriber.heard.values()
    )


def wrong_rows(fleet: Fleet, server: Server) -> list[str]:
    """Acknowledged readings that are not in the table, and readings of QoS 2 that are there twice."""
    rows = dict(server.rows("SELECT seq, COUNT(*) FROM telemetry GROUP BY seq"))
    readings = [each for each in fleet.messages if not each.retain]
    missing = [each.number for each in readings if each.acknowledged is not None and each.number not in rows]
    twice = [each.number for each in readings if each.qos == 2 and rows.get(each.number, 0) > 1]
    words = [f"{len(missing)} acknowledged readings are not stored: {missing[:5]}"] if missing else []
    return words + ([f"{len(twice)} readings of QoS 2 are stored twice: {twice[:5]}"] if twice else [])


def wrong_retained(fleet: Fleet, server: Server) -> list[str]:
    """Topics whose retained message is older than the last acknowledged one, or is none of theirs.

    A message whose acknowledgement has not come may be retained or not.
    """
    topics: defaultdict[str, list[Message]] = defaultdict(list)
    for message in fleet.messages:
        if message.retain:
            topics[message.topic].append(message)
    found = retained(server, "state/#")
    wrong = [f"{topic} is retained, but nobody sent it" for topic in found if topic not in topics]
    for topic, messages in topics.items():
        last = max((at for at, each in enumerate(messages) if each.acknowledged is not None), default=-1)
        allowed = {each.payload() for each in messages[max(last, 0) :]} | ({b""} if last < 0 else set())
        if found.get(topic, b"") not in allowed:
            wrong.append(f"{topic}: {found.get(topic)!r} is retained instead of {sorted(allowed)[:3]}")
    return wrong


def retained(server: Server, topic_filter: str) -> dict[str, bytes]:
    """What a new subscription is sent."""
    found: dict[str, bytes] = {}
    with Peer(server.mqtt, 5) as reader:
        reader.login("reader-of-retained")
        reader.send(subscribe(5, (topic_filter, 0)) + subscribe(5, ("the/end", 0), packet_id=2))
        reader.send(publish(5, "the/end"))
        while True:
            answer = reader.read()
            assert answer is not None, "the server ended the connection of a reader"
            if answer.kind == PUBLISH:
                topic, payload = answer.message(5)
                if topic == "the/end":
                    return found
                found[topic] = payload

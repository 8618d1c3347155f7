"""Sessions under `kill -9` and power cuts: what was acknowledged to a publisher comes to every persistent subscriber.

Two hundred subscribers of both versions (fleet.py), QoS 1 and 2, alone and as members of shares: some always there,
some that come and go, some that stay away until the end; publishers that resume. The server is killed at random
moments of their talk, in the storm of their return too; with the forgetful file layer what it did not sync is taken
from it before it starts again. At the end nothing is missing, no message of QoS 2 is there twice, neither at a
subscriber nor in the table, and order, session present flags, packet ids and retained messages are right (ledger.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

import pytest

from tests.forgetful.layer import Layer
from tests.integration.fleet import Fleet, Share
from tests.integration.fleet_publisher import Publisher
from tests.integration.fleet_subscriber import Subscriber
from tests.integration.ledger import Due, disordered, doubled, repeated, wrong_retained, wrong_rows
from tests.integration.server import Server
from tests.preload import COMPILER

#: Small segments and a log that keeps little, so that sessions have to keep what the log drops.
CONFIG = """
[mqtt]
max_queued_messages = 1000000
max_queued_bytes = 1073741824
max_total_queued_bytes = 1073741824
sys_interval = "0s"
[log]
segment_bytes = 1048576
retention_bytes = 2097152
[store]
flush_interval = "500ms"
[query]
max_rows = 20000000
[streams.telemetry]
topic  = "dt/{site}/{device}/telemetry"
time   = "ts"
fields = { seq = "bigint" }
"""
SITES, DEVICES = 4, 8
SUBSCRIBERS = 200
#: pytest's `record_property`: what a run has seen, for its report (`--junit-xml`).
Record = Callable[[str, object], None]
NEEDS_COMPILER = pytest.mark.skipif(
    COMPILER is None, reason="no C compiler (cc) to build the forgetful layer with"
)


class Cast:
    """The fleet of these tests, and who of it is where.

    steady: always connected while the server is up
    moving: come and go
    absent: stay away from their SUBACK until the end
    """

    def __init__(self, seed: int) -> None:
        self.fleet = fleet = Fleet(seed)
        self.random = random = Random(seed + 1)
        for site in range(SITES):
            topics = [(f"dt/s{site}/d{device}/telemetry", 1 + device % 2) for device in range(DEVICES)]
            Publisher(fleet, f"publisher-{site}", 4 + site % 2, topics)
        for level in (4, 5):
            topics = [(f"state/{level}/{n}", 1 + n % 2) for n in range(10)]
            Publisher(fleet, f"keeper-{level}", level, topics, window=3, retain=True)
        shares = {site: Share() for site in range(SITES)}
        for n in range(SUBSCRIBERS):
            site, qos = n % SITES, 1 + n // 2 % 2
            if n % 10 < 2:
                filters = [f"$share/g{site}/dt/s{site}/+/telemetry"]
            elif n % 10 == 2:
                filters = [f"dt/s{site}/+/telemetry"]
            elif n % 40 == 3:
                filters = ["dt/#"]
            else:
                filters = [f"dt/s{site}/d{device}/telemetry" for device in random.sample(range(DEVICES), 2)]
            Subscriber(
                fleet,
                f"subscriber-{n}",
                4 + n % 2,
                [(each, qos) for each in filters],
                receive_maximum=random.choice((0, 1, 3, 50)) if n % 2 else 0,
                laziness=random.choice((0.0, 0.5, 0.9)),
                share=shares[site] if n % 10 < 2 else None,
            )
        parts = [fleet.subscribers[:], [], []]
        random.shuffle(parts[0])
        parts[1], parts[2] = parts[0][:90], parts[0][90:140]
        self.steady, self.moving, self.absent = parts[0][140:], parts[1], parts[2]

    def arrive(self) -> None:
        """Everybody connects who is not away, the subscribers first or the publishers."""
        there = [each for each in self.moving if self.random.random() < 0.5] + self.steady
        there += [each for each in self.absent if each.asking]
        self.random.shuffle(there)
        for client in self.random.choice(
            ([*self.fleet.publishers, *there], [*there, *self.fleet.publishers])
        ):
            client.join()

    def move(self) -> None:
        """Somebody comes or goes, changes its mind about a filter, or leaves for long."""
        for client in self.absent:
            if client.socket is not None and not client.asking:
                client.leave(self.random.random() < 0.5)
        if self.random.random() < 0.3:
            client = self.random.choice(self.moving)
            if client.socket is None:
                client.join()
            elif client.welcomed:
                client.leave(self.random.random() < 0.5)
        if self.random.random() < 0.1:
            client = self.random.choice(self.moving)
            if client.share is None and not client.asking and not client.dropping:
                self.change(client)

    def change(self, client: Subscriber) -> None:
        """Drops the filter that it has taken last, or takes one more."""
        last = client.subscriptions[-1]
        if len(client.subscriptions) > 2 and last.dropped is None:
            client.unsubscribe(last)
            return
        wanted = f"dt/s{self.random.randrange(SITES)}/d0/telemetry"
        if all(each.topic_filter != wanted or each.dropped is not None for each in client.subscriptions):
            client.subscribe(wanted, 1 + self.random.randrange(2))

    def gather(self) -> None:
        """Everybody who is not connected connects."""
        for client in self.fleet.clients:
            if client.socket is None:
                client.join()


@contextmanager
def cast(seed: int) -> Iterator[Cast]:
    made = Cast(seed)
    try:
        yield made
    finally:
        made.fleet.close()


def run(server: Server, ends: int, seed: int, between: Callable[[int], None]) -> str:
    """Kills the server `ends` times, then checks all that must hold. returns: what it has seen, in words"""
    with cast(seed) as players:
        fleet = players.fleet
        for end in range(ends):
            server.start()
            fleet.serve(server.mqtt)
            fleet.problems += wrong_retained(fleet, server)
            players.arrive()
            # In the midst of everybody's return, or later; the first time later, so that there is something to lose.
            goal = fleet.moment + 1 + int(players.random.expovariate(1 / players.random.choice((200, 3000))))
            goal += 3000 if end == 0 else 0
            fleet.talk(lambda goal=goal: fleet.moment >= goal, f"packets before kill {end}", players.move)
            server.kill()
            fleet.bury()
            between(end)
            assert fleet.problems == [], f"after kill {end}"
        server.start()
        fleet.serve(server.mqtt)
        fleet.problems += wrong_retained(fleet, server)
        settle(players)
        assert wrong_rows(fleet, server) == []
        assert server.get("/api/v1/books")["balanced"]
        check_nothing_dropped(server)

        # Once more after an orderly end: the sessions are there, and nothing of what they have had.
        fleet.serving = False
        server.stop()
        fleet.bury()
        server.start()
        fleet.serve(server.mqtt)
        settle(players)
        assert wrong_rows(fleet, server) == []
        assert wrong_retained(fleet, server) == []
        server.stop()
        return summary(fleet, ends)


def settle(players: Cast) -> None:
    """Everybody is there; all that is due comes, and behind it one last message on each topic: what came twice has
    come by then."""
    fleet = players.fleet
    fleet.publishing = False
    players.gather()
    fleet.talk(lambda: acknowledged(fleet), "acknowledgements of all messages")
    due = Due(fleet)
    try:
        fleet.talk(due.done, "all messages that are due")
    except AssertionError:
        assert due.missing() == []
        raise
    for publisher in fleet.publishers:
        for topic, qos in publisher.topics:
            fleet.talk(publisher.has_room, "room for one more message")
            publisher.make(topic, qos)
    fleet.talk(lambda: acknowledged(fleet), "acknowledgements of the last messages")
    due = Due(fleet)
    fleet.talk(due.done, "the last messages")
    fleet.talk(
        lambda: not any(each.unreleased for each in fleet.subscribers), "the release of QoS 2 messages"
    )
    assert fleet.problems == []
    assert doubled(fleet) == []
    assert disordered(fleet) == []


def acknowledged(fleet: Fleet) -> bool:
    return not any(each.unacknowledged for each in fleet.publishers)


def check_nothing_dropped(server: Server) -> None:
    lines = server.http.get("/metrics").text.splitlines()
    dropped = [each for each in lines if each.startswith("headwater_gateway_dropped_deliveries_total")]
    assert all(float(each.split()[-1]) == 0 for each in dropped), dropped


def summary(fleet: Fleet, ends: int) -> str:
    due = Due(fleet)
    return (
        f"{ends} ends of the server: {len(fleet.messages)} messages, {due.deliveries} deliveries due and there, "
        f"{repeated(fleet)} repetitions of QoS 1"
    )


def nothing(_end: int) -> None:
    """Between kill and start: the operating system still has everything that was written."""


@pytest.mark.parametrize("seed", [1, 2])
def test_three_kills(server: Callable[..., Server], record_property: Record, seed: int) -> None:
    record_property("seen", run(server(CONFIG), 3, seed, nothing))


@pytest.mark.chaos
@pytest.mark.parametrize("seed", [50])
def test_fifty_kills(server: Callable[..., Server], record_property: Record, seed: int) -> None:
    record_property("seen", run(server(CONFIG), 50, seed, nothing))


def power_cuts(server: Server, cuts: int, seed: int) -> str:
    layer = Layer(server.directory)
    server.environment |= layer.variables
    lost = 0

    def cut(end: int) -> None:
        # In turns: nothing unsynced survives, or a random part of it, torn and out of order.
        nonlocal lost
        report = layer.cut_power(None if end % 2 == 0 else seed * 1000 + end)
        lost += report.writes_lost + report.names_lost

    seen = run(server, cuts, seed, cut)
    assert lost, "no power cut took anything away, so the layer was not at work"
    return f"{seen}; {lost} writes and names taken away"


@NEEDS_COMPILER
@pytest.mark.parametrize("seed", [3])
def test_four_power_cuts(server: Callable[..., Server], record_property: Record, seed: int) -> None:
    record_property("seen", power_cuts(server(CONFIG), 4, seed))


@pytest.mark.chaos
@NEEDS_COMPILER
@pytest.mark.parametrize("seed", [51, 52])
def test_twenty_five_power_cuts(server: Callable[..., Server], record_property: Record, seed: int) -> None:
    record_property("seen", power_cuts(server(CONFIG), 25, seed))


@NEEDS_COMPILER
def test_without_syncs_a_power_cut_loses_what_was_acknowledged(server: Callable[..., Server]) -> None:
    """The test can fail: with `log.durability = "async"` the same cut leaves something to be found."""
    up = server(CONFIG)
    layer = Layer(up.directory)
    up.environment |= layer.variables
    with cast(4) as players:
        fleet = players.fleet
        up.start(["log.durability=async"])
        fleet.serve(up.mqtt)
        players.arrive()
        fleet.talk(lambda: fleet.moment > 5000, "packets", players.move)
        up.kill()
        fleet.bury()
        assert fleet.problems == []
        assert layer.cut_power().writes_lost > 0
        up.start()
        fleet.serve(up.mqtt)
        fleet.publishing = False
        players.gather()
        fleet.talk(lambda: all(each.welcomed for each in fleet.clients), "CONNACK")
        found = [*fleet.problems, *wrong_rows(fleet, up), *wrong_retained(fleet, up)]
        # What was synced before stays: sessions among it, since they came at the beginning.
        assert any("not stored" in each for each in found)
        assert any("is retained instead of" in each for each in found)

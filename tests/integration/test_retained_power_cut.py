"""Retained messages under power cuts: a subscription gets the last acknowledged one of each topic, or a later one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

import pytest

from tests.forgetful.layer import Layer
from tests.integration.fleet import Fleet
from tests.integration.fleet_publisher import Publisher
from tests.integration.ledger import wrong_retained
from tests.integration.server import Server
from tests.preload import COMPILER

pytestmark = pytest.mark.skipif(
    COMPILER is None, reason="no C compiler (cc) to build the forgetful layer with"
)

#: The log rolls and is trimmed behind the reader that keeps retained messages.
CONFIG = """
[log]
segment_bytes = 1048576
retention_bytes = 2097152
"""
KEEPERS, TOPICS = 8, 25


@contextmanager
def keepers(seed: int) -> Iterator[Fleet]:
    """Publishers of both versions that retain messages of both QoS, and clear some."""
    fleet = Fleet(seed)
    for n in range(KEEPERS):
        topics = [(f"state/{n}/{topic}", 1 + (topic + n // 2) % 2) for topic in range(TOPICS)]
        Publisher(fleet, f"keeper-{n}", 4 + n % 2, topics, window=20, retain=True)
    try:
        yield fleet
    finally:
        fleet.close()


def retain(server: Server, fleet: Fleet, more: int) -> None:
    """Until so many more packets have come; then the server is killed."""
    fleet.serve(server.mqtt)
    for publisher in fleet.publishers:
        publisher.join()
    goal = fleet.moment + more
    fleet.talk(lambda: fleet.moment >= goal, "acknowledgements of retained messages")
    server.kill()
    fleet.bury()


def power_cuts(server: Server, cuts: int, seed: int) -> None:
    layer, random = Layer(server.directory), Random(seed)
    server.environment |= layer.variables
    lost = 0
    with keepers(seed) as fleet:
        for cut in range(cuts):
            server.start()
            assert wrong_retained(fleet, server) == [], f"before cut {cut}"
            retain(server, fleet, 1 + int(random.expovariate(1 / 5000)))
            # In turns: nothing unsynced survives, or a random part of it, torn and out of order.
            report = layer.cut_power(None if cut % 2 == 0 else seed * 1000 + cut)
            lost += report.writes_lost + report.names_lost
        server.start()
        assert wrong_retained(fleet, server) == []
        server.stop()
        server.start()
        assert wrong_retained(fleet, server) == [], "after an orderly restart"
        known = [each for each in fleet.problems if "session present" not in each]
        assert known == []
        assert sum(each.acknowledged is not None for each in fleet.messages) > cuts * 100
    assert lost, "no power cut took anything away, so the layer was not at work"


@pytest.mark.parametrize("seed", [1])
def test_four_power_cuts(server: Callable[..., Server], seed: int) -> None:
    power_cuts(server(CONFIG), 4, seed)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", [50])
def test_fifty_power_cuts(server: Callable[..., Server], seed: int) -> None:
    power_cuts(server(CONFIG), 50, seed)


def test_without_syncs_a_power_cut_loses_retained_messages(server: Callable[..., Server]) -> None:
    """The test can fail: with `log.durability = "async"` the same cut takes acknowledged messages."""
    up = server(CONFIG)
    layer = Layer(up.directory)
    up.environment |= layer.variables
    with keepers(2) as fleet:
        up.start(["log.durability=async"])
        retain(up, fleet, 5000)
        assert layer.cut_power().writes_lost > 0
        up.start()
        assert wrong_retained(fleet, up)

"""Limits under a running server: what clients are told, what the metrics and the log say, and a storm of reconnects."""

from __future__ import annotations

import json
import re
import selectors
import socket
import time
from collections.abc import Callable

import pytest

from tests.integration import peer
from tests.integration.peer import PATIENCE_S, Peer
from tests.integration.server import Server, await_that

Starts = Callable[..., Server]

CONNECTION_RATE_EXCEEDED = 0x9F


def metric(up: Server, name: str) -> float:
    """The value of a metric with its labels, 0 where it is not there yet."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", up.http.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def reached(up: Server, limit: str) -> float:
    return metric(up, f'headwater_listener_limits_total{{limit="{limit}",listener="mqtt"}}')


def lines(up: Server, kind: str) -> list[dict[str, object]]:
    """Lines of the log of one kind."""
    found = (json.loads(line) for line in up.stderr().splitlines() if line.startswith("{"))
    return [line for line in found if line.get("kind") == kind]


def test_who_comes_too_often_is_refused_and_named(server: Starts) -> None:
    up = server().start(["mqtt.flapping_connects=2"])
    for _ in range(2):
        with Peer(up.mqtt, 5) as client:
            client.login("d1")
            client.send(peer.packet(0xE0))
            assert client.read() is None
    for level, code in ((5, CONNECTION_RATE_EXCEEDED), (4, 3)):
        with Peer(up.mqtt, level) as client:
            client.send(peer.connect(level, client="d1"))
            answer = client.read()
            assert answer is not None
            assert (answer.kind, answer.reason(level)) == (peer.CONNACK, code)
            assert client.read() is None
    with Peer(up.mqtt, 5) as client:
        client.login("d2")
    assert reached(up, "flapping_connects") == 2
    [line, *_] = await_that("a line of the log", lambda: lines(up, "connection-refused"))
    assert line["client"] == "d1"
    assert "flapping_connects" in str(line["detail"])
    assert "127.0.0.1" in str(line["origin"])
    events = up.get("/api/v1/clients/d1")["events"]
    assert events[0]["reason"] == "ConnectionRateExceeded"


def test_two_clients_with_one_id_are_stopped(server: Starts) -> None:
    up = server().start(["mqtt.max_takeovers=3"])
    holders: list[Peer] = []
    try:
        for _ in range(4):
            holders.append(Peer(up.mqtt, 5))
            holders[-1].login("d1")
        with Peer(up.mqtt, 5) as late:
            late.send(peer.connect(5, client="d1"))
            answer = late.read()
            assert answer is not None
            assert answer.reason(5) == CONNECTION_RATE_EXCEEDED
        assert holders[-1].ask(b"") == []
    finally:
        for each in holders:
            each.close()
    [line] = await_that("a line of the log", lambda: lines(up, "limit-reached"))
    assert "several clients use it" in str(line["detail"])


def test_a_client_above_its_rate_is_read_slower_and_loses_nothing(server: Starts) -> None:
    up = server().start(["mqtt.max_message_rate=50"])
    with Peer(up.mqtt, 4) as fast, Peer(up.mqtt, 4) as other:
        fast.login("fast")
        other.login("other")
        fast.send(b"".join(peer.publish(4, "a", b"x", qos=1, packet_id=n) for n in range(1, 121)))
        await_that("the limit", lambda: reached(up, "max_message_rate"))
        assert other.ask(b"") == []
        for n in range(1, 121):
            answer = fast.read()
            assert answer is not None
            assert (answer.kind, int.from_bytes(answer.body[:2], "big")) == (peer.PUBACK, n)
        assert up.get("/api/v1/clients/fast")["connected"]
    assert up.get("/api/v1/books")["balanced"]


def storm(address: tuple[str, int], clients: int, live: Callable[[], None]) -> int:
    """So many clients connect at once and stay until all have their CONNACK.

    live:    called again and again meanwhile
    returns: how often it was called while some were waiting
    """
    with selectors.DefaultSelector() as selector:
        sockets = []
        for n in range(clients):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(address)
            selector.register(client, selectors.EVENT_WRITE, n)
            sockets.append(client)
        waiting, calls = clients, 0
        end = time.monotonic() + PATIENCE_S * 2
        while waiting:
            assert time.monotonic() < end, f"{waiting} clients of the storm had no CONNACK"
            for key, _ in selector.select(0.05):
                client = key.fileobj
                assert isinstance(client, socket.socket)
                if key.events == selectors.EVENT_WRITE:
                    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                    client.sendall(peer.connect(4, client=f"storm-{key.data}"))
                    selector.modify(client, selectors.EVENT_READ, key.data)
                    continue
                assert client.recv(64) == b"\x20\x02\x00\x00", "CONNACK of success"
                selector.unregister(client)
                waiting -= 1
            live()
            calls += waiting > 0
        for client in sockets:
            client.close()
    return calls


@pytest.mark.parametrize("clients", [200])
def test_a_storm_of_reconnects_is_served_at_the_accept_limit_and_live_clients_go_on(
    server: Starts, clients: int
) -> None:
    up = server().start(["mqtt.max_connect_rate=100"])
    with Peer(up.mqtt, 4) as live:
        live.login("live")

        def publish() -> None:
            assert live.ask(peer.publish(4, "dt/hall/live/telemetry", b'{"seq": 1}', qos=1)) == [
                "PUBACK 0x00"
            ]

        for _ in range(3):
            assert storm(up.mqtt, clients, publish) > 0
            await_that(
                "the storm is over", lambda: up.get("/api/v1/clients", search="storm-")["clients"] == []
            )
    assert reached(up, "max_connect_rate") > 0
    assert metric(up, "headwater_gateway_accepted_total") == 3 * clients + 1
    assert any("max_connect_rate" in str(line["detail"]) for line in lines(up, "limit-reached"))

"""Sparkplug B against a running server: births, aliases, gaps, and rebirth requests that an edge node receives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.gateway import sparkplug as sp
from tests.integration.server import Server, await_that

CONFIG = """
[streams.nodes]
topic  = "spBv1.0/{group}/{message}/{edge}"
format = "sparkplug-b"
fields = { bd_seq = { type = "bigint", path = "bdSeq" }, uptime = "bigint" }
[streams.devices]
topic  = "spBv1.0/{group}/{message}/{edge}/{device}"
format = "sparkplug-b"
fields = { temperature = { type = "double", path = "Inputs/Temperature" }, state = "string" }
"""
NOW_MS = 1_732_000_000_000


class Edge:
    """An edge node with one device, as the specification has it; answers rebirth requests only when told."""

    def __init__(self, server: Server) -> None:
        self.requests: list[Any] = []
        self.acknowledged = 0
        self.sent = 0
        self.seq = 0
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id="edge", protocol=paho.MQTTv5)
        subscribed: list[int] = []
        self.client.on_subscribe = lambda *_: subscribed.append(1)
        self.client.on_message = lambda _client, _data, message: self.requests.append(
            (message.topic, sp.Payload.FromString(message.payload))
        )
        self.client.on_publish = self._on_publish
        self.client.connect(*server.mqtt)
        self.client.loop_start()
        self.client.subscribe("spBv1.0/plant/NCMD/edge1")
        await_that("subscription", lambda: subscribed)

    def _on_publish(self, _client: Any, _data: Any, _mid: int, reason: Any, _properties: Any) -> None:
        assert not reason.is_failure, reason
        self.acknowledged += 1

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def publish(self, message: str, payload: Any, device: str | None = None) -> None:
        """Publishes with the next seq and waits until it is stored."""
        if message != "NDEATH":
            payload.seq = self.seq
            self.seq = (self.seq + 1) % 256
        self.sent += 1
        topic = f"spBv1.0/plant/{message}/edge1" + (f"/{device}" if device else "")
        self.client.publish(topic, payload.SerializeToString(), qos=1)
        await_that("acknowledgement", lambda: self.acknowledged == self.sent)

    def birth(self, bd_seq: int) -> None:
        self.seq = 0
        node = sp.Payload(timestamp=NOW_MS)
        node.metrics.add(name="bdSeq", datatype=sp.INT64, long_value=bd_seq)
        node.metrics.add(name="uptime", alias=1, datatype=sp.INT32, int_value=0)
        self.publish("NBIRTH", node)
        device = sp.Payload(timestamp=NOW_MS)
        device.metrics.add(name="Inputs/Temperature", alias=2, datatype=sp.DOUBLE, double_value=20.0)
        device.metrics.add(name="state", alias=3, datatype=sp.STRING, string_value="on")
        self.publish("DBIRTH", device, "d1")

    def data(self, at_s: int, temperature: float) -> None:
        payload = sp.Payload(timestamp=NOW_MS + at_s * 1000)
        payload.metrics.add(alias=2, double_value=temperature)
        self.publish("DDATA", payload, "d1")


@pytest.fixture
def server(tmp_path: Path):
    with Server(tmp_path / "data", CONFIG) as server:
        yield server.start()


def temperatures(server: Server) -> list[list[Any]]:
    return server.rows("SELECT message, device, temperature, state FROM devices ORDER BY ts, received_at")


def test_a_life_of_an_edge_node(server: Server) -> None:
    edge = Edge(server)
    edge.birth(0)
    edge.data(1, 21.5)
    uptime = sp.Payload(timestamp=NOW_MS)
    uptime.metrics.add(alias=1, int_value=(-5) % 2**32)
    edge.publish("NDATA", uptime)
    assert temperatures(server) == [["DBIRTH", "d1", 20.0, "on"], ["DDATA", "d1", 21.5, None]]
    assert server.rows("SELECT uptime FROM nodes WHERE message = 'NDATA'") == [[-5]]
    assert not edge.requests

    # A message is lost: what came is stored, and the edge node is asked, once.
    edge.seq += 1
    edge.data(2, 22.5)
    edge.seq += 1
    edge.data(3, 23.5)
    await_that("a rebirth request", lambda: edge.requests)
    [(topic, request)] = edge.requests
    assert topic == "spBv1.0/plant/NCMD/edge1"
    [metric] = request.metrics
    assert (metric.name, metric.datatype, metric.boolean_value) == (
        "Node Control/Rebirth",
        sp.BOOLEAN,
        True,
    )
    assert [row[2] for row in temperatures(server)] == [20.0, 21.5, 22.5, 23.5]

    # After a start no alias is known: named values are stored, the message is a dead letter, and the node is asked.
    edge.close()
    server.stop()
    server.start()
    edge = Edge(server)
    edge.seq = 9
    mixed = sp.Payload(timestamp=NOW_MS + 4000)
    mixed.metrics.add(alias=2, double_value=24.5)
    mixed.metrics.add(name="state", datatype=sp.STRING, string_value="late")
    edge.publish("DDATA", mixed, "d1")
    await_that("a rebirth request", lambda: edge.requests)
    assert temperatures(server)[-1] == ["DDATA", "d1", None, "late"]
    assert server.rows("SELECT stream, reason FROM dead_letters") == [["devices", "unknown-metric"]]
    edge.birth(1)
    edge.data(5, 25.5)
    assert temperatures(server)[-1] == ["DDATA", "d1", 25.5, None]
    assert len(edge.requests) == 1

    # Its death is a row of its own.
    death = sp.Payload()
    death.metrics.add(name="bdSeq", datatype=sp.INT64, long_value=1)
    edge.publish("NDEATH", death)
    assert server.rows("SELECT edge, bd_seq FROM nodes WHERE message = 'NDEATH'") == [["edge1", 1]]
    assert server.get("/api/v1/books")["balanced"]
    edge.close()

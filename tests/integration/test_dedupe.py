"""Readings that come again are stored once, by whatever way, also after a kill; the books show them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.peer import Peer, publish
from tests.integration.server import Server

CONFIG = """
[store]
flush_interval = "200ms"
[streams.telemetry]
topic  = "dt/{site}/{device}/telemetry"
time   = "ts"
fields = { temperature = "double" }
dedupe = ["device", "ts"]
[alarms.hot]
on    = "telemetry"
where = "temperature > 80"
"""
TOPIC = "dt/x/d1/telemetry"


def reading(ts: int, temperature: float = 21.5) -> bytes:
    return json.dumps({"ts": 1732000000 + ts, "temperature": temperature}).encode()


def count(server: Server) -> int:
    found: int = server.value("SELECT count(*) FROM telemetry")
    return found


def test_a_resend_after_a_lost_acknowledgement(tmp_path: Path) -> None:
    with Server(tmp_path / "data", CONFIG).start() as server:
        with Peer(server.mqtt, 5) as device:
            device.login("d1")
            device.send(publish(5, TOPIC, reading(1), qos=1))
            # The acknowledgement is lost with the connection: it is never read.
        with Peer(server.mqtt, 5) as device:
            device.login("d1")
            sent = [(TOPIC, reading(1))] * 3 + [
                (TOPIC, reading(2, 90.0)),
                ("dt/other/d1/telemetry", reading(2, 91.0)),
            ]
            for packet_id, (topic, payload) in enumerate(sent, 1):
                device.send(publish(5, topic, payload, qos=1, packet_id=packet_id, dup=packet_id == 1))
            for packet_id in range(1, 6):
                answer = device.read()
                assert answer is not None
                assert (answer.kind, answer.body[:2]) == (4, packet_id.to_bytes(2, "big"))
        assert count(server) == 2
        # Of an array the duplicates alone are left out; HTTP meets MQTT.
        body = [{"device": "d1", "ts": 1732000000 + at, "temperature": 1} for at in range(1, 5)]
        assert server.http.post("/api/v1/ingest/telemetry?site=x", json=body).json() == {"rows": 4}
        assert count(server) == 4
        server.kill()
        server.start()
        body = [{"device": "d1", "ts": 1732000000 + at, "temperature": 1} for at in range(1, 6)]
        assert server.http.post("/api/v1/ingest/telemetry?site=x", json=body).status_code == 200
        assert count(server) == 5
        books = server.get("/api/v1/books")
        assert books["balanced"]
        assert books["rows"]["telemetry"]["duplicates"] == 4
        assert 'headwater_dedupe_duplicates_total{stream="telemetry"} 4' in server.http.get("/metrics").text
        [alarm] = server.await_alarms(bool)
        assert alarm["key"] == {"device": "d1"}


def test_columns_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    with Server(tmp_path / "data", CONFIG.replace('["device", "ts"]', '["ts"]')) as server:
        process = server.spawn()
        assert process.wait(60) == 1
        assert "dedupe: name the stream's key 'device' too" in server.stderr()

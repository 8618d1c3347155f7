"""Dead letters are found, explained and, once the settings are right, replayed: each once, whatever happens."""

from __future__ import annotations

import contextlib
import json
import threading
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import httpx

from headwater.client import Client
from tests.integration.peer import PUBACK, Peer, publish
from tests.integration.server import Server, await_that

RIGHT = """
[store]
flush_interval = "200ms"
[streams.telemetry]
topic  = "dt/{site}/{device}/telemetry"
time   = "ts"
fields = { temperature = "double" }
"""
#: What devices send is not CBOR.
WRONG = RIGHT.replace("time ", 'format = "cbor"\ntime ')


def send(server: Server, client: str, messages: list[tuple[str, bytes]]) -> list[int]:
    """Reason codes of the acknowledgements."""
    with Peer(server.mqtt, 5) as device:
        device.login(client)
        for packet_id, (topic, payload) in enumerate(messages, 1):
            device.send(publish(5, topic, payload, qos=1, packet_id=packet_id))
        codes = []
        for _ in messages:
            answer = device.read()
            assert answer is not None
            assert answer.kind == PUBACK
            codes.append(answer.body[2] if len(answer.body) > 2 else 0)
        return codes


def reading(ts: int, temperature: Any = 21.5) -> bytes:
    return json.dumps({"ts": 1732000000 + ts, "temperature": temperature}).encode()


def configure(server: Server, config: str) -> None:
    server.file.write_text(config, encoding="utf-8")


def books(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.get("/api/v1/books")
    assert found["balanced"], found
    return found


def test_replayed_once_after_a_fix_across_kills(tmp_path: Path) -> None:
    with Server(tmp_path / "data", WRONG).start() as server:
        messages = [(f"dt/x/d{at % 7}/telemetry", reading(at)) for at in range(500)]
        # Equal letters, which are as many readings; and one that no settings make good.
        messages += [("dt/x/d1/telemetry", reading(900))] * 3 + [("dt/x/d1/telemetry", b"\xff\xfe")]
        assert set(send(server, "plc", messages)) == {0x99}
        assert server.value("SELECT COUNT(*) FROM dead_letters") == 504
        with Client(str(server.http.base_url)) as client:
            assert client.replay()["replayed"] == 0
        server.kill()
        configure(server, RIGHT)
        server.start()
        with Client(str(server.http.base_url)) as client:
            first = client.replay(topic="dt/+/d1/#", client="plc")
            ones = sum(1 for topic, _ in messages[:-1] if topic == "dt/x/d1/telemetry")
            assert (first["replayed"], first["readings"]) == (ones, ones)
            assert [each["n"] for each in first["refused"]] == [1]
        server.kill()
        server.start()
        with Client(str(server.http.base_url)) as client:
            assert client.replay(since="2020-01-01T00:00:00Z")["replayed"] == 503 - ones
            assert client.replay()["replayed"] == 0
            rows = server.rows("SELECT device, epoch(ts), temperature FROM telemetry")
            expected = [[topic.split("/")[2], json.loads(body)["ts"], 21.5] for topic, body in messages[:-1]]
            assert sorted(rows) == sorted(expected)
            [left] = client.deadletters(replayed="false")
            assert (left["client"], left["reason"]) == ("plc", "invalid-cbor")
            assert client.deadletter_counts(replayed="true")[0]["n"] == 503
        # Arrival is the letters', not that of the replay.
        late = "SELECT COUNT(*) FROM telemetry WHERE received_at NOT IN (SELECT ts FROM dead_letters)"
        assert server.value(late) == 0
        assert books(server)["rows"]["telemetry"]["decoded"] == 503


def test_letters_that_do_not_fit_into_a_segment_together_are_replayed_apart(tmp_path: Path) -> None:
    right = RIGHT.replace("{ temp", '{ note = "string", temp') + "[log]\nsegment_bytes = 1048576\n"
    with Server(tmp_path / "data", right.replace("time ", 'format = "cbor"\ntime ')).start() as server:
        random = Random(3)
        for part in range(10):
            notes = [random.randbytes(2000).hex() for _ in range(30)]
            payloads = [json.dumps({"ts": 1732000000 + part, "note": note}).encode() for note in notes]
            assert set(send(server, "plc", [("dt/x/d/telemetry", each) for each in payloads])) == {0x99}
        server.kill()
        configure(server, right)
        server.start()
        with Client(str(server.http.base_url)) as client:
            done = client.replay()
        assert (done["replayed"], done["readings"], done["refused"]) == (300, 300, [])
        server.await_ready()
        assert server.value("SELECT COUNT(DISTINCT note) FROM telemetry") == 300
        books(server)


def test_killed_while_it_replays(tmp_path: Path) -> None:
    with Server(tmp_path / "data", WRONG).start() as server:
        for batch in range(12):
            messages = [("dt/x/d1/telemetry", reading(batch * 1000 + at)) for at in range(1000)]
            send(server, "plc", messages)
        configure(server, RIGHT)
        for _ in range(3):
            server.kill()
            server.start()
            before = server.value("SELECT COUNT(*) FROM telemetry")
            thread = threading.Thread(target=lambda: _ignoring(server))
            thread.start()
            # On a fast machine an earlier round may have replayed all.
            more = f"SELECT COUNT(*) > {before} OR {before} = 12000 FROM telemetry"
            await_that("rows of the replay", partial(server.value, more))
            server.kill()
            thread.join()
            server.start()
        with Client(str(server.http.base_url)) as client:
            client.replay()
            assert client.deadletter_counts(replayed="false") == []
        assert server.value("SELECT COUNT(DISTINCT ts) FROM telemetry") == 12_000
        assert server.value("SELECT COUNT(*) FROM telemetry") == 12_000


def _ignoring(server: Server) -> None:
    with contextlib.suppress(httpx.TransportError), httpx.Client(timeout=60) as client:
        client.post(f"{server.http.base_url}/api/v1/deadletters/replay", content=b"")


def test_pages_and_filters(tmp_path: Path) -> None:
    with Server(tmp_path / "data", RIGHT).start() as server:
        for number in range(25):
            send(server, f"c{number % 2}", [(f"dt/x/d{number}/telemetry", b"no json")])
        found, path = [], "/api/v1/deadletters?limit=10&client=c0"
        while True:
            answer = server.http.get(path)
            assert answer.status_code == 200, answer.text
            found += answer.json()
            if "next" not in answer.links:
                break
            path = answer.links["next"]["url"]
        assert [each["topic"] for each in found] == [f"dt/x/d{n}/telemetry" for n in range(24, -1, -2)]
        assert len({each["id"] for each in found}) == 13
        assert len(server.get("/api/v1/deadletters", topic="dt/x/d7/#")) == 1
        assert server.get("/api/v1/deadletters", until="2020-01-01T00:00:00Z") == []
        assert server.http.get("/api/v1/deadletters", params={"topic": "dt/#/x"}).status_code == 400
        assert server.http.get("/api/v1/deadletters", params={"since": "yesterday"}).status_code == 422


def test_why_a_message_is_not_there(tmp_path: Path) -> None:
    with Server(tmp_path / "data", RIGHT).start() as server:

        def why(client: str) -> tuple[dict[str, Any], str]:
            found = server.get(f"/api/v1/clients/{client}/why")
            return found, " ".join(found["answer"])

        assert "look for its CONNECT" in why("ghost")[1]
        send(server, "a/b", [("dt/x/d1/telemetry", reading(1, "hot")), ("other/a/b", b"x")])
        # Its DISCONNECT is not acknowledged.
        await_that("the server sees that the client has gone", lambda: not why("a/b")[0]["connected"])
        _, answer = why("a/b")
        assert "type-conflict" in answer
        assert "dt/x/d1/telemetry" in answer
        assert "deadletters replay" in answer
        with Peer(server.mqtt, 5) as device:
            device.login("d9")
            device.send(publish(5, "lost/d9", b"x", qos=1))
            assert device.read() is not None
            found, answer = why("d9")
            assert found["connected"]
            assert "lost/d9 matched no stream" in answer
            # A second connection of the same id takes over.
            with Peer(server.mqtt, 5) as other:
                other.login("d9")
                found, answer = why("d9")
                assert found["events"][0]["kind"] == "session-taken-over"
                assert "session-taken-over" in answer

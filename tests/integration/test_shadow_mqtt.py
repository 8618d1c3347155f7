"""Device shadows over MQTT and REST: one store, the topics and documents of AWS IoT."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration import peer
from tests.integration.peer import Peer
from tests.integration.server import TELEMETRY, Server


class Thing:
    """A device that knows its shadow's topics, and nothing else."""

    def __init__(self, server: Server, thing: str, shadow: str = "", level: int = 5) -> None:
        self.base = f"$aws/things/{thing}/shadow" + (f"/name/{shadow}" if shadow else "")
        self.device = Peer(server.mqtt, level)
        self.device.login(f"{thing}-{shadow}-{level}")
        self.level = level
        self.packet_id = 0

    def __enter__(self) -> Thing:
        return self

    def __exit__(self, *_: object) -> None:
        self.device.close()

    def subscribe(self, *ends: str) -> Thing:
        self.device.send(peer.subscribe(self.level, *((f"{self.base}/{end}", 1) for end in ends)))
        answer = self.device.read()
        assert answer is not None
        assert answer.kind == peer.SUBACK
        assert answer.reason(self.level) == 1
        return self

    def send(self, operation: str, document: object = None) -> None:
        payload = b"" if document is None else json.dumps(document).encode()
        self.packet_id += 1
        self.device.send(
            peer.publish(self.level, f"{self.base}/{operation}", payload, qos=1, packet_id=self.packet_id)
        )

    def next(self) -> tuple[str, Any]:
        """The next message: the end of its topic and its document."""
        while True:
            answer = self.device.read()
            assert answer is not None, "the server hung up"
            if answer.kind != peer.PUBLISH:
                continue
            topic, payload = answer.message(self.level)
            assert topic.startswith(self.base + "/")
            if answer.first & 6:
                at = 2 + int.from_bytes(answer.body[:2], "big")
                self.device.send(peer.packet(0x40, answer.body[at : at + 2]))
            return topic.removeprefix(self.base + "/"), json.loads(payload)

    def take(self, *ends: str) -> dict[str, Any]:
        """Exactly one message of each of these topics, in any order."""
        found = dict(self.next() for _ in ends)
        assert found.keys() == set(ends), found
        return found


@pytest.fixture
def up(server: Callable[..., Server]) -> Server:
    return server(TELEMETRY).start()


@pytest.mark.parametrize("level", [4, 5], ids=["3.1.1", "5"])
@pytest.mark.parametrize("shadow", ["", "config"], ids=["classic", "named"])
def test_update_get_delta_and_delete(up: Server, level: int, shadow: str) -> None:
    now = int(time.time())
    with Thing(up, "lamp", shadow, level).subscribe("get/+", "update/#", "delete/+") as thing:
        thing.send("get", {"clientToken": "t0"})
        rejected = thing.take("get/rejected")["get/rejected"]
        assert rejected["code"] == 404
        assert rejected["clientToken"] == "t0"

        thing.send("update", {"state": {"desired": {"on": True, "dim": {"to": 3}}}, "clientToken": "t1"})
        answers = thing.take("update", "update/accepted", "update/delta", "update/documents")
        accepted = answers["update/accepted"]
        assert accepted["state"] == {"desired": {"on": True, "dim": {"to": 3}}}
        assert accepted["version"] == 1
        assert accepted["clientToken"] == "t1"
        assert abs(accepted["timestamp"] - now) < 120, "seconds, not milliseconds"
        assert accepted["metadata"]["desired"]["dim"]["to"].keys() == {"timestamp"}
        assert answers["update/delta"]["state"] == {"on": True, "dim": {"to": 3}}
        assert answers["update/delta"]["version"] == 1
        documents = answers["update/documents"]
        assert documents["current"]["state"] == {"desired": {"on": True, "dim": {"to": 3}}}

        # Reported follows in part: the delta is what still differs.
        thing.send("update", {"state": {"reported": {"on": True, "dim": {"to": 2}}}, "version": 1})
        answers = thing.take("update", "update/accepted", "update/delta", "update/documents")
        assert answers["update/delta"]["state"] == {"dim": {"to": 3}}
        assert "clientToken" not in answers["update/accepted"]
        assert answers["update/documents"]["previous"]["version"] == 1

        # Nothing differs: no delta. A version that is not the shadow's is refused.
        thing.send("update", {"state": {"reported": {"dim": {"to": 3}}}})
        thing.take("update", "update/accepted", "update/documents")
        thing.send("update", {"state": {"reported": {"dim": {"to": 4}}}, "version": 1, "clientToken": "old"})
        rejected = thing.take("update", "update/rejected")["update/rejected"]
        assert (rejected["code"], rejected["clientToken"]) == (409, "old")

        thing.send("get")
        got = thing.take("get/accepted")["get/accepted"]
        assert got["state"] == {
            "desired": {"on": True, "dim": {"to": 3}},
            "reported": {"on": True, "dim": {"to": 3}},
        }
        assert got["version"] == 3

        thing.send("delete")
        assert thing.take("delete/accepted")["delete/accepted"]["version"] == 3
        thing.send("update", {"state": {"reported": {"a": 1}}})
        answers = thing.take("update", "update/accepted", "update/documents")
        assert answers["update/accepted"]["version"] == 4, "a version goes on after a delete"


def test_mqtt_and_rest_share_one_store_and_it_survives_a_kill(up: Server) -> None:
    with Thing(up, "t1").subscribe("update/accepted", "update/delta") as thing:
        thing.send("update", {"state": {"reported": {"by": "mqtt"}}})
        thing.take("update/accepted")
        answer = up.http.get("/things/t1/shadow").json()
        assert (answer["state"], answer["version"]) == ({"reported": {"by": "mqtt"}}, 1)
        posted = up.http.post("/things/t1/shadow", json={"state": {"desired": {"by": "rest"}}})
        assert (posted.status_code, posted.json()["version"]) == (200, 2)
        answers = thing.take("update/accepted", "update/delta")
        assert answers["update/delta"]["state"] == {"by": "rest"}
        assert answers["update/accepted"]["state"] == {"desired": {"by": "rest"}}
    up.kill()
    up.start()
    answer = up.http.get("/things/t1/shadow").json()
    assert answer["version"] == 2
    assert answer["state"]["delta"] == {"by": "rest"}
    assert up.http.delete("/things/t1/shadow").json()["version"] == 2
    gone = up.http.get("/things/t1/shadow")
    assert gone.status_code == 404
    assert gone.headers["x-amzn-ErrorType"] == "ResourceNotFoundException"
    up.stop()


def test_bad_requests_are_rejected_with_their_token(up: Server) -> None:
    with Thing(up, "t2").subscribe("update/rejected") as thing:
        for document, code in (
            ({"clientToken": "a"}, 400),
            ({"state": {"desired": [1]}, "clientToken": "a"}, 400),
            ({"state": {"wanted": {}}, "clientToken": "a"}, 400),
            ({"state": {"desired": {"text": "x" * 9000}}, "clientToken": "a"}, 413),
        ):
            thing.send("update", document)
            topic, rejected = thing.next()
            assert topic == "update/rejected"
            assert rejected["code"] == code, rejected
            assert rejected["clientToken"] == "a"

"""Who may connect and what they may do, as clients see it: paho against a running server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from paho.mqtt.client import MQTTv5, MQTTv311

from headwater.gateway import password
from tests.gateway.answering import Answering
from tests.integration import peer
from tests.integration.client import MqttClient
from tests.integration.server import TELEMETRY, Server, await_that

POLICIES = """
[policies.device]
document = '''{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Action": "iot:Connect", "Resource": "client/*"},
  {"Effect": "Deny",  "Action": "iot:Connect", "Resource": "client/banned"},
  {"Effect": "Allow", "Action": ["iot:Publish", "iot:Receive"], "Resource": "topic/dt/${tenant}/*"},
  {"Effect": "Deny",  "Action": "iot:Receive", "Resource": "topic/dt/*/secret"},
  {"Effect": "Allow", "Action": "iot:RetainPublish", "Resource": "topic/dt/${tenant}/kept"},
  {"Effect": "Allow", "Action": "iot:Subscribe", "Resource": "topicfilter/dt/${tenant}/*"}]}'''
[policies.nothing]
document = '''{"Version": "2012-10-17", "Statement":
  {"Effect": "Deny", "Action": "iot:*", "Resource": "*"}}'''
"""

PASSWORDS = """
[auth]
policies = ["device"]
timeout = "60s"
[auth.password]
file = "{}"
"""

Make = Callable[..., Server]


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("users") / "users.json"
    password.set_user(path, "ann", "right", tenant="acme")
    password.set_user(path, "bob", "b", tenant="acme", policies=["nothing"])
    password.set_user(path, "eve", "e", policies=["absent"])
    return path


def metric(server: Server, name: str) -> dict[str, float]:
    lines = server.http.get("/metrics").text.splitlines()
    found = (line.rpartition(" ") for line in lines if line.startswith(name) and not line.startswith("#"))
    return {left: float(right) for left, _, right in found}


def test_passwords(server: Make, users: Path) -> None:
    running = server(TELEMETRY + PASSWORDS.format(users) + POLICIES).start()
    for version, codes in ((MQTTv5, {"wrong": 0x86, "policy": 0x87}), (MQTTv311, {"wrong": 4, "policy": 5})):
        for user, secret, client_id, code in (
            ("ann", "right", "d1", 0),
            ("ann", "wrong", "d1", codes["wrong"]),
            ("nobody", "right", "d1", codes["wrong"]),
            (None, None, "d1", codes["wrong"]),
            ("ann", "right", "banned", codes["policy"]),
            ("bob", "b", "d1", codes["policy"]),
            ("eve", "e", "d1", codes["policy"]),
        ):
            with MqttClient(running.mqtt, client_id, version, user, secret) as client:
                assert client.connack == code, (version, user, secret, client_id)
    logins = metric(running, "headwater_logins_total")
    assert logins['headwater_logins_total{result="allowed",source="password"}'] == 2
    assert logins['headwater_logins_total{result="refused",source="none"}'] == 4
    assert (
        metric(running, 'headwater_denied_total{action="connect"')['headwater_denied_total{action="connect"}']
        == 6
    )
    why = running.get("/api/v1/clients/d1/why")
    assert "wrong password of user 'ann'" in json.dumps(why)


def test_what_a_policy_denies(server: Make, users: Path) -> None:
    running = server(TELEMETRY + PASSWORDS.format(users) + POLICIES).start()
    with MqttClient(running.mqtt, "d1", MQTTv5, "ann", "right") as client:
        assert client.subscribe("dt/acme/#", "dt/other/#", "#", "$share/g/#") == [1, 0x87, 0x87, 0x87]
        # A shared subscription is judged by the filter behind its name.
        assert client.subscribe("$share/g/dt/acme/x") == [1]
        assert client.publish("dt/acme/a", b"1") == 0
        assert client.publish("dt/other/a", b"2") == 0x87
        assert client.publish("dt/acme/secret", b"3") == 0
        assert client.publish("dt/acme/a", b"4", retain=True) == 0x87
        assert client.publish("dt/acme/kept", b"5", retain=True) == 0
        received = client.received_until("dt/acme/kept")
        assert [topic for topic, _ in received] == ["dt/acme/a", "dt/acme/kept"]
    denied = metric(running, "headwater_denied_total")
    assert denied['headwater_denied_total{action="publish"}'] == 2
    assert denied['headwater_denied_total{action="subscribe"}'] == 3
    assert denied['headwater_denied_total{action="receive"}'] == 1
    # MQTT 3.1.1 has no word for a refused message but the connection's end.
    with MqttClient(running.mqtt, "d2", MQTTv311, "ann", "right") as client:
        assert client.subscribe("dt/acme/#", "#") == [1, 0x80]
        client.send("dt/other/a", b"2")
        client.await_end()
    assert running.get("/api/v1/books")["balanced"]


def test_a_will_is_a_publish(server: Make, users: Path) -> None:
    running = server(TELEMETRY + PASSWORDS.format(users) + POLICIES).start()
    for topic, retain, denied in (
        ("dt/other/gone", False, True),
        ("dt/acme/gone", True, True),
        ("dt/acme/gone", False, False),
        ("dt/acme/kept", True, False),
    ):
        with MqttClient(running.mqtt, "d1", MQTTv5, "ann", "right", will=(topic, retain)) as client:
            assert client.connack == (0x87 if denied else 0), topic


def test_tokens(server: Make, tmp_path: Path) -> None:
    key, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    keys = tmp_path / "keys.json"
    public = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    keys.write_text(json.dumps({"keys": [{**public, "kid": "k", "alg": "ES256"}]}), encoding="utf-8")
    config = f'[auth]\npolicies = ["device"]\n[auth.jwt]\nkeys = "{keys}"\n'
    running = server(TELEMETRY + config + POLICIES).start()

    def token(signer: Any = key, algorithm: str = "ES256", **claims: Any) -> str:
        claims = {"sub": "ann", "tenant": "acme", "exp": int(time.time()) + 600} | claims
        return jwt.encode(claims, signer, algorithm, headers={"kid": "k"})

    for secret, code in (
        (token(), 0),
        (token(client_id="d1"), 0),
        (token(client_id="d2"), 0x87),
        (token(exp=int(time.time()) - 60), 0x86),
        (token(other), 0x86),
        (token(None, "none"), 0x86),
        ("no token", 0x86),
    ):
        with MqttClient(running.mqtt, "d1", MQTTv5, "x", secret) as client:
            assert client.connack == code, secret
            if code == 0:
                assert client.publish("dt/acme/a", b"1") == 0
                assert client.publish("dt/other/a", b"1") == 0x87


def test_the_webhook(server: Make) -> None:
    def decide(question: Any) -> tuple[int, bytes]:
        allow = question["password"] == "right"
        return 200, json.dumps({"allow": allow, "tenant": "acme", "policies": ["device"]}).encode()

    with Answering(decide) as service:
        config = (
            f'[auth]\ntimeout = "1s"\n[auth.webhook]\nurl = "{service.url}"\ntimeout = "30s"\ncache = "0s"\n'
        )
        running = server(TELEMETRY + config + POLICIES).start()
        for secret, code in (("right", 0), ("wrong", 0x87)):
            with MqttClient(running.mqtt, "d1", MQTTv5, "ann", secret) as client:
                assert client.connack == code
        # It does not answer in time: auth.timeout is over before the webhook's own.
        service.open.clear()
        with MqttClient(running.mqtt, "d1", MQTTv5, "ann", "right") as client:
            assert client.connack == 0x88
        with MqttClient(running.mqtt, "d1", MQTTv311, "ann", "right") as client:
            assert client.connack == 3
        service.open.set()
        await_that(
            "nobody waits",
            lambda: metric(running, "headwater_logins_waiting")["headwater_logins_waiting"] == 0,
        )
    # It is dead.
    with MqttClient(running.mqtt, "d1", MQTTv5, "ann", "right") as client:
        assert client.connack == 0x88


def test_a_slow_webhook_holds_up_nobody_else(server: Make, users: Path) -> None:
    with Answering(lambda _question: (200, b'{"allow": true}')) as service:
        service.open.clear()
        config = (
            PASSWORDS.format(users) + f'[auth.webhook]\nurl = "{service.url}"\nworkers = 1\nmax_waiting = 1\n'
        )
        running = server(TELEMETRY + config + POLICIES).start(
            ["auth.timeout=60s", "auth.webhook.timeout=60s"]
        )
        waiting = [MqttClient(running.mqtt, f"w{n}", MQTTv5, "stranger", "s", wait=False) for n in range(2)]
        await_that("the webhook is asked", lambda: service.requests)
        await_that(
            "the other waits for it",
            lambda: metric(running, "headwater_logins_waiting")["headwater_logins_waiting"] == 2,
        )
        with MqttClient(running.mqtt, "d1", MQTTv5, "ann", "right") as client:
            assert client.connack == 0
            assert client.publish("dt/acme/a", b"1") == 0
        with MqttClient(running.mqtt, "w9", MQTTv5, "stranger", "s") as client:
            assert client.connack == 0x89
        service.open.set()
        for client in waiting:
            client.await_connack()
            assert client.connack == 0
            client.close()


def test_who_waits_is_bounded(server: Make) -> None:
    with Answering(lambda _question: (200, b'{"allow": true}')) as service:
        service.open.clear()
        config = f'[auth]\npolicies = ["device"]\nmax_waiting = 2\n[auth.webhook]\nurl = "{service.url}"\n'
        running = server(TELEMETRY + config + POLICIES).start(
            ["auth.timeout=60s", "auth.webhook.timeout=60s"]
        )
        waiting = [MqttClient(running.mqtt, f"w{n}", MQTTv5, "x", "y", wait=False) for n in range(2)]
        await_that(
            "both wait", lambda: metric(running, "headwater_logins_waiting")["headwater_logins_waiting"] == 2
        )
        with MqttClient(running.mqtt, "w9", MQTTv5, "x", "y") as client:
            assert client.connack == 0x89
        service.open.set()
        for client in waiting:
            client.await_connack()
            assert client.connack == 0
            client.close()
        with MqttClient(running.mqtt, "w9", MQTTv5, "x", "y") as client:
            assert client.connack == 0


def test_packets_behind_a_connect_wait_for_its_answer(server: Make, users: Path) -> None:
    """A client need not wait for CONNACK (MQTT 5.0, section 3.1.4); of one that is refused nothing is acted on."""
    running = server(TELEMETRY + PASSWORDS.format(users) + POLICIES).start()
    early = peer.publish(5, "dt/acme/early", b"1", qos=1)
    for secret, answers in (
        ("right", [(peer.CONNACK, 0), (peer.PUBACK, 0)]),
        ("wrong", [(peer.CONNACK, 0x86)]),
    ):
        with peer.Peer(running.mqtt, 5) as client:
            client.send(peer.connect(5, 0xC2, after=peer.text("ann") + peer.text(secret)) + early)
            found = [client.read() for _ in answers]
            assert [(each.kind, each.reason(5)) for each in found if each is not None] == answers
            if secret == "wrong":
                assert client.read() is None
    assert running.get("/api/v1/books")["messages"]["received"] == 1


def test_a_wrong_policy_and_a_missing_file_end_the_start(server: Make, users: Path, tmp_path: Path) -> None:
    bad = POLICIES.replace('"topic/dt/${tenant}/kept"', '"topics/x"')
    for config, expected in (
        (
            PASSWORDS.format(users) + bad,
            'policy "device", statement 5, Resource: found "topics/x"; write client/',
        ),
        (PASSWORDS.format(tmp_path / "absent.json") + POLICIES, "absent.json: no such file"),
        (PASSWORDS.format(users), "auth.policies: 'device' is no [policies.*] section"),
        (POLICIES, "nobody has it, since without a source of identities"),
    ):
        failing = server(TELEMETRY + config)
        assert failing.spawn().wait(60) == 1
        assert expected in failing.stderr()

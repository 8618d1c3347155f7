"""How long clients may stay, on a running server: tokens end, users and certificates go, policies change."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from paho.mqtt.client import MQTTv5, MQTTv311

from headwater.ca import Authority
from headwater.gateway import password
from tests.integration import peer
from tests.integration.client import MqttClient
from tests.integration.server import TELEMETRY, Server, await_that
from tests.integration.test_listeners import TlsPeer, address, trusting
from tests.integration.test_security import metric

Make = Callable[..., Server]

STATEMENTS = """{{"Version": "2012-10-17", "Statement": [
  {{"Effect": "Allow", "Action": "iot:Connect", "Resource": "client/*"}},
  {{"Effect": "Allow", "Action": ["iot:Publish", "iot:Receive"], "Resource": "topic/dt/{}/*"}},
  {{"Effect": "Allow", "Action": "iot:Subscribe", "Resource": "topicfilter/*"}}]}}"""


def ended(server: Server) -> dict[str, float]:
    found = metric(server, "headwater_access_ended_total")
    return {why: found[f'headwater_access_ended_total{{why="{why}"}}'] for why in ("expired", "revoked")}


def why_of(server: Server, client: str) -> str:
    return json.dumps(server.get(f"/api/v1/clients/{client}/why"))


def test_a_token_ends_its_connection(server: Make, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    keys = tmp_path / "keys.json"
    public = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    keys.write_text(json.dumps({"keys": [{**public, "kid": "k", "alg": "ES256"}]}), encoding="utf-8")
    policy = tmp_path / "policy.json"
    policy.write_text(STATEMENTS.format("*"), encoding="utf-8")
    running = server(
        f'{TELEMETRY}[auth]\npolicies = ["device"]\n[auth.jwt]\nkeys = "{keys}"\nleeway = "0s"\n'
        f'[policies.device]\nfile = "{policy}"\n'
    ).start()

    def token(seconds: int) -> str:
        return jwt.encode(
            {"sub": "ann", "exp": int(time.time()) + seconds}, key, "ES256", headers={"kid": "k"}
        )

    with (
        MqttClient(running.mqtt, "long", MQTTv5, "x", token(600)) as long,
        MqttClient(running.mqtt, "short", MQTTv5, "x", token(3)) as short,
        MqttClient(running.mqtt, "old", MQTTv311, "x", token(3)) as old,
    ):
        assert [each.connack for each in (long, short, old)] == [0, 0, 0]
        assert short.await_end() == 0xA0
        old.await_end()
        await_that("both are counted", lambda: ended(running) == {"expired": 2, "revoked": 0})
        assert "token or certificate has expired" in why_of(running, "short")
        assert long.publish("dt/a/x", b"1") == 0


def test_who_is_removed_or_changed_is_closed(server: Make, tmp_path: Path) -> None:
    users, policy = tmp_path / "users.json", tmp_path / "policy.json"
    for user in ("ann", "bob", "eve"):
        password.set_user(users, user, user)
    policy.write_text(STATEMENTS.format("*"), encoding="utf-8")
    running = server(
        f'{TELEMETRY}[auth]\npolicies = ["device"]\n[auth.password]\nfile = "{users}"\n'
        f'[policies.device]\nfile = "{policy}"\n'
    ).start()
    with (
        MqttClient(running.mqtt, "a", MQTTv5, "ann", "ann") as ann,
        MqttClient(running.mqtt, "b", MQTTv5, "bob", "bob") as bob,
        MqttClient(running.mqtt, "e", MQTTv311, "eve", "eve") as eve,
    ):
        assert [each.connack for each in (ann, bob, eve)] == [0, 0, 0]
        password.remove_user(users, "ann")
        assert ann.await_end() == 0x87
        password.set_user(users, "eve", "another")
        eve.await_end()
        await_that("both are counted", lambda: ended(running) == {"expired": 0, "revoked": 2})
        assert "its line 'ann' of the source password has changed or is gone".replace("'", '\\"') in why_of(
            running, "a"
        )
        # Other policies hold at once for who is connected.
        assert bob.publish("dt/a/x", b"1") == 0
        policy.write_text(STATEMENTS.format("b"), encoding="utf-8")
        await_that("the policy holds", lambda: bob.publish("dt/a/x", b"1") == 0x87)
        assert bob.publish("dt/b/x", b"1") == 0
        # One that cannot be read changes nothing, and is told.
        policy.write_text("{", encoding="utf-8")
        await_that("it is told", lambda: "policies not read again" in running.stderr())
        assert bob.publish("dt/b/x", b"1") == 0


def test_a_device_that_is_revoked_is_closed(server: Make, tmp_path: Path) -> None:
    """With our own authority nothing but `headwater ca revoke` is needed: the listener reads its list."""
    running = server(TELEMETRY).start(["mqtts.port=0", "mqtts.client_certificate=required"])
    authority = Authority(running.directory / "ca")
    where, ca = address(running, "mqtts"), running.directory / "ca" / "ca.pem"

    def trusted(device: str) -> ssl.SSLContext:
        issued = authority.issue(device, tmp_path)
        context = trusting(ca)
        context.load_cert_chain(issued.certificate, issued.key)
        return context

    with (
        TlsPeer(where, trusted("good"), level=5) as living,
        TlsPeer(where, trusted("bad"), level=5) as ending,
    ):
        living.login("good")
        ending.login("bad")
        authority.revoke("bad")
        answer = ending.read()
        assert answer is not None
        assert (answer.kind, answer.reason(5)) == (peer.DISCONNECT, 0x87)
        assert ending.read() is None
        assert living.ask(peer.publish(5, "elsewhere", b"1", qos=1)) == ["PUBACK 0x00"]
    await_that("it is counted", lambda: ended(running) == {"expired": 0, "revoked": 1})

"""Tenants: every way from one to another is tried, and none is open."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from headwater.gateway import password
from tests.integration.client import MqttClient
from tests.integration.server import TELEMETRY, Server

#: The policy of docs/security.md.
POLICY = """
[auth]
policies = ["tenant"]
timeout = "60s"
[auth.password]
file = "{}"
[policies.tenant]
[policies.tenant.document]
Version = "2012-10-17"
[[policies.tenant.document.Statement]]
Effect = "Allow"
Action = "iot:Connect"
Resource = "client/${{tenant}}:*"
[[policies.tenant.document.Statement]]
Effect = "Allow"
Action = ["iot:Publish", "iot:RetainPublish", "iot:Receive"]
Resource = "topic/t/${{tenant}}/*"
[[policies.tenant.document.Statement]]
Effect = "Allow"
Action = "iot:Subscribe"
Resource = "topicfilter/t/${{tenant}}/*"
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("tenants")
    users = directory / "users.json"
    for user, tenant in (("a", "acme"), ("b", "beta"), ("wild", "+"), ("deep", "acme/x"), ("none", "")):
        password.set_user(users, user, user, tenant=tenant)
    with Server(directory / "data", TELEMETRY + POLICY.format(users)).start() as server:
        yield server


Connect = Callable[..., MqttClient]


@pytest.fixture
def connect(running: Server) -> Iterator[Connect]:
    """Connects as a user, `connect("a", "acme:1")`."""
    made: list[MqttClient] = []

    def connect(user: str, client_id: str, will: tuple[str, bool] | None = None) -> MqttClient:
        made.append(MqttClient(running.mqtt, client_id, user=user, secret=user, will=will))
        return made[-1]

    yield connect
    for client in made:
        client.close()


def test_within_a_tenant_everything_works(connect: Connect) -> None:
    one, other = connect("a", "acme:1"), connect("a", "acme:2")
    assert one.subscribe("t/acme/#") == [1]
    assert one.subscribe("$share/g/t/acme/#") == [1]
    assert other.publish("t/acme/x", b"1") == 0
    # By each of its subscriptions.
    assert one.received_until("t/acme/x") == [("t/acme/x", b"1")]
    assert one.received_until("t/acme/x") == [("t/acme/x", b"1")]


@pytest.mark.parametrize(
    "topic",
    ["t/beta/x", "t/beta", "t/acme", "t/acmex/y", "x", "t//x", "$aws/things/d/shadow/update", "T/acme/x"],
)
@pytest.mark.parametrize("retain", [False, True])
def test_no_publish_leaves_its_tenant(connect: Connect, topic: str, retain: bool) -> None:
    victim = connect("b", "beta:1")
    assert victim.subscribe("t/beta/#") == [1]
    attacker = connect("a", "acme:1")
    assert attacker.publish(topic, b"evil", retain=retain) == 0x87
    # Whatever had been let through would come before what the tenant says itself.
    assert victim.publish("t/beta/last", b"own") == 0
    assert victim.received_until("t/beta/last") == [("t/beta/last", b"own")]


@pytest.mark.parametrize(
    "topic_filter",
    [
        "#",
        "+/#",
        "t/#",
        "t/+/#",
        "t/+/x",
        "+/beta/#",
        "t/beta/#",
        "t/beta/x",
        "$share/g/t/beta/#",
        "$share/g/#",
        "$share/t/acme/#",
        "$share/acme/t/+/x",
        "$SYS/#",
        "$aws/#",
    ],
)
def test_no_subscription_reaches_another_tenant(connect: Connect, topic_filter: str) -> None:
    victim, attacker = connect("b", "beta:1"), connect("a", "acme:1")
    assert victim.publish("t/beta/x", b"kept", retain=True) == 0
    [code] = attacker.subscribe(topic_filter)
    assert code == 0x87
    assert attacker.subscribe("t/acme/#") == [1]
    assert victim.publish("t/beta/x", b"secret", retain=True) == 0
    assert attacker.publish("t/acme/last", b"own") == 0
    received = attacker.received_until("t/acme/last")
    assert [topic for topic, _ in received if not topic.startswith("t/acme/")] == []


@pytest.mark.parametrize("retain", [False, True])
def test_no_will_speaks_for_another_tenant(connect: Connect, retain: bool) -> None:
    assert connect("a", "acme:1", will=("t/beta/x", retain)).connack == 0x87
    assert connect("a", "acme:1", will=("t/acme/x", retain)).connack == 0


def test_no_client_id_of_another_tenant_can_be_used(connect: Connect) -> None:
    victim = connect("b", "beta:1")
    for client_id in ("beta:1", "beta:2", "acme", "acmex:1", ":1", "x"):
        assert connect("a", client_id).connack == 0x87, client_id
    # It is still up.
    assert victim.publish("t/beta/x", b"1") == 0


def test_a_tenant_whose_name_is_a_wildcard_or_a_path_has_nothing(connect: Connect) -> None:
    for user, client_id in (("wild", "+:1"), ("deep", "acme/x:1")):
        client = connect(user, client_id)
        assert client.connack == 0
        assert client.subscribe("t/+/x", "t/+/#", "t/acme/x/#", "#") == [0x87] * 4
        assert client.publish("t/acme/x/y", b"1") == 0x87
    # Without a tenant nothing is allowed at all.
    assert connect("none", ":1").connack == 0x87

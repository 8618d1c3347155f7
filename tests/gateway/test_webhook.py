"""The webhook: what it is asked, what its answers mean, and that it fails closed."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from headwater.gateway.identity import Identity, Login, Reason, Refusal
from headwater.gateway.webhook import Webhook
from headwater.security import WebhookSettings
from tests.gateway.answering import Answering


def answer(**fields: Any) -> tuple[int, bytes]:
    return 200, json.dumps(fields).encode()


@pytest.fixture
def service() -> Iterator[Answering]:
    with Answering(lambda _body: answer(allow=True)) as service:
        yield service


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def webhook(service: Answering, clock: Clock | None = None, **settings: Any) -> Webhook:
    options = {"url": service.url, **settings}
    return Webhook(WebhookSettings(**options), clock or Clock())


def test_it_is_told_everything_about_the_login(service: Answering) -> None:
    source = webhook(service, token="secret")
    source.identify(Login(7, "d1", "ann", b"pw", "ab" * 32, "cn", "10.0.0.1:5", "mqtts"))
    source.identify(Login(8, "d2", None, b"\xff"))
    source.close()
    first, second = service.requests
    assert first == (
        {
            "client_id": "d1",
            "user_name": "ann",
            "password": "pw",
            "peer": "10.0.0.1:5",
            "listener": "mqtts",
            "certificate": {"fingerprint": "ab" * 32, "common_name": "cn"},
        },
        "Bearer secret",
    )
    assert (second[0]["password"], second[0]["password_base64"], second[0]["certificate"]) == (
        None,
        "/w==",
        None,
    )


def test_what_it_says_is_the_identity(service: Answering) -> None:
    source = webhook(service)
    assert source.identify(Login(1, "d1", "ann")) == Identity("ann", "", (), {}, "d1")
    service.answer = lambda _body: answer(
        allow=True, user="u", tenant="t", policies=["p"], attributes={"line": "7"}
    )
    assert source.identify(Login(2, "d2")) == Identity("u", "t", ("p",), {"line": "7"}, "d2")
    service.answer = lambda _body: answer(allow=False, reason="not paid")
    refused = source.identify(Login(3, "d3"))
    assert refused == Refusal(Reason.NOT_AUTHORIZED, "the webhook refuses: not paid")
    source.close()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"{}"),
        (204, b""),
        (302, b'{"allow": true}'),
        (200, b""),
        (200, b"yes"),
        (200, b"[]"),
        (200, b'{"allow": "true"}'),
        (200, b'{"allow": 1}'),
        (200, b'{"allow": true, "policies": "p"}'),
        (200, b'{"allow": true, "user": 5}'),
        (200, b'{"allow": true, "until": "tomorrow"}'),
        (200, b'{"allow": true, "until": true}'),
        (200, b'{"allow": true, "attributes": {"a": 1}}'),
        (200, json.dumps({"allow": True, "x": "y" * 70_000}).encode()),
    ],
)
def test_whatever_else_it_answers_is_a_refusal(service: Answering, status: int, body: bytes) -> None:
    service.answer = lambda _body: (status, body)
    source = webhook(service)
    refused = source.identify(Login(1, "d1"))
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.SERVER_UNAVAILABLE
    assert service.url in refused.text
    source.close()


def test_a_slow_and_a_dead_service_refuse(service: Answering) -> None:
    service.open.clear()
    source = webhook(service, timeout="50ms")
    refused = source.identify(Login(1, "d1"))
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.SERVER_UNAVAILABLE
    service.close()
    refused = source.identify(Login(1, "d1"))
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.SERVER_UNAVAILABLE
    source.close()


def test_an_answer_holds_for_the_same_login_and_no_other(service: Answering) -> None:
    clock = Clock()
    source = webhook(service, clock, cache="60s")
    same = [Login(n, "d1", "ann", b"pw", peer=f"10.0.0.1:{n}") for n in range(3)]
    others = [
        Login(9, "d2", "ann", b"pw", peer="10.0.0.1:1"),
        Login(9, "d1", "bob", b"pw", peer="10.0.0.1:1"),
        Login(9, "d1", "ann", b"px", peer="10.0.0.1:1"),
        Login(9, "d1", "ann", None, peer="10.0.0.1:1"),
        Login(9, "d1", "ann", b"pw", peer="10.0.0.2:1"),
        Login(9, "d1", "ann", b"pw", "ab" * 32, peer="10.0.0.1:1"),
    ]
    for login in same:
        source.identify(login)
    assert len(service.requests) == 1
    for login in others:
        source.identify(login)
    assert len(service.requests) == 1 + len(others)
    clock.now = 60.0
    source.identify(same[0])
    assert len(service.requests) == 2 + len(others)
    source.close()


def test_an_answer_says_until_when(service: Answering) -> None:
    clock = Clock()
    source = Webhook(WebhookSettings(url=service.url, cache="60s"), clock, lambda: 1000 + clock.now)
    service.answer = lambda _body: answer(allow=True, until=1010)
    for _ in range(2):
        found = source.identify(Login(1, "d1", "ann"))
        assert isinstance(found, Identity)
        assert found.until == 1010
    assert len(service.requests) == 1
    # No longer than that it is kept, and what is over lets nobody in.
    clock.now = 10.0
    refused = source.identify(Login(1, "d1", "ann"))
    assert isinstance(refused, Refusal)
    assert (refused.reason, len(service.requests)) == (Reason.NOT_AUTHORIZED, 2)
    source.close()


def test_refusals_are_kept_shortly_and_failures_not_at_all(service: Answering) -> None:
    clock = Clock()
    source = webhook(service, clock, cache="60s")
    service.answer = lambda _body: answer(allow=False)
    for _ in range(2):
        source.identify(Login(1, "d1"))
    assert len(service.requests) == 1
    clock.now = 5.0
    service.answer = lambda _body: (500, b"")
    for _ in range(2):
        source.identify(Login(1, "d1"))
    assert len(service.requests) == 3
    service.answer = lambda _body: answer(allow=True)
    assert isinstance(source.identify(Login(1, "d1")), Identity)
    source.close()


def test_the_cache_is_bounded(service: Answering) -> None:
    source = webhook(service, max_cached=2)
    for name in ("a", "b", "c", "a"):
        source.identify(Login(1, name))
        assert len(source._cache) <= 2
    assert len(service.requests) == 4
    source.close()


@pytest.mark.parametrize("url", ["http://example.org/", "ftp://localhost/", "localhost", "http://10.0.0.1/"])
def test_passwords_do_not_travel_in_the_open(url: str) -> None:
    with pytest.raises(ValueError, match="write https"):
        WebhookSettings(url=url)

"""Tokens: valid, expired, early, forged, and the tricks of RFC 8725."""

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from headwater.errors import IdentityError
from headwater.gateway.identity import Identity, Login, Reason, Refusal, Verdict
from headwater.gateway.tokens import Tokens
from headwater.security import JwtSettings
from tests.gateway.answering import Answering

KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def entry(key: Any, key_id: str) -> dict[str, Any]:
    algorithm: Any = ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else RSAAlgorithm
    name = "ES256" if algorithm is ECAlgorithm else "RS256"
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": key_id, "alg": name, "use": "sig"}


def keys(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"keys": list(entries)}).encode()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    path.write_bytes(keys(entry(KEY, "one"), entry(RSA, "two")))
    return path


def token(
    claims: dict[str, Any], key: Any = KEY, algorithm: str = "ES256", key_id: str | None = "one"
) -> bytes:
    claims = {"sub": "ann", "exp": int(time.time()) + 3600} | claims
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key, algorithm, headers={"kid": key_id} if key_id else None).encode()


@pytest.fixture
def says(file: Path) -> Callable[..., Verdict | None]:
    def says(password: bytes | None, client_id: str = "d1", **settings: Any) -> Verdict | None:
        return Tokens(JwtSettings(keys=str(file), **settings)).identify(Login(1, client_id, "x", password))

    return says


Says = Callable[..., Verdict | None]


def test_claims_are_the_identity(says: Says) -> None:
    claims = {"tenant": "acme", "policies": ["device"], "line": "7", "number": 5}
    found = says(token(claims))
    assert isinstance(found, Identity)
    assert (found.user, found.tenant, found.policies, found.thing) == ("ann", "acme", ("device",), "")
    assert found.attributes["line"] == "7"
    assert "number" not in found.attributes


def test_a_token_says_until_when_a_connection_may_live(says: Says) -> None:
    end = int(time.time()) + 100
    found = says(token({"exp": end}), leeway="5s")
    assert isinstance(found, Identity)
    assert (found.until, found.line) == (end + 5.0, None)


def test_claims_have_the_names_of_the_settings(says: Says) -> None:
    claims = {"sub": None, "https://acme/user": "bob", "app": {"org": "acme"}}
    found = says(token(claims), user_claim="https://acme/user", tenant_claim="app.org")
    assert isinstance(found, Identity)
    assert (found.user, found.tenant) == ("bob", "acme")


def test_a_client_id_in_the_token_is_the_only_one(says: Says) -> None:
    found = says(token({"client_id": "d1"}))
    assert isinstance(found, Identity)
    assert found.thing == "d1"
    refused = says(token({"client_id": "d2"}))
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.NOT_AUTHORIZED
    assert "is for client id 'd2', not 'd1'" in refused.text


def test_rsa_by_its_own_key(says: Says) -> None:
    assert isinstance(says(token({}, RSA, "RS256", "two")), Identity)
    assert isinstance(says(token({}, RSA, "RS256", None)), Identity)


@pytest.mark.parametrize(
    ("password", "expected"),
    [
        (lambda: token({"exp": int(time.time()) - 60}), "expired"),
        (lambda: token({"exp": None}), "exp"),
        (lambda: token({"nbf": int(time.time()) + 60}), "not yet valid"),
        (lambda: token({}, OTHER), "Signature verification failed"),
        (lambda: token({}, key_id="three"), "no key 'three'"),
        (lambda: token({}, RSA, "RS256", "one"), "no key 'one' for RS256"),
        (lambda: token({}, RSA, "PS256", "two"), "algorithm 'PS256' is none of"),
        (lambda: token({}, "0" * 64, "HS256"), "algorithm 'HS256' is none of"),
        (lambda: token({})[:-4] + b"AAAA", "Signature verification failed"),
    ],
    ids=[
        "expired",
        "no-exp",
        "early",
        "forged",
        "unknown-key",
        "other-algorithm",
        "not-pinned",
        "hmac",
        "cut",
    ],
)
def test_what_is_wrong_with_a_token_refuses_it(
    says: Says, password: Callable[[], bytes], expected: str
) -> None:
    refused = says(password())
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.BAD_USER_NAME_OR_PASSWORD
    assert expected in refused.text


def part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", ""])
def test_no_signature_is_no_token(says: Says, algorithm: str) -> None:
    claims = {"sub": "ann", "exp": int(time.time()) + 3600}
    forged = f"{part({'alg': algorithm, 'kid': 'one'})}.{part(claims)}."
    assert isinstance(says(forged.encode()), Refusal)


def test_a_public_key_is_no_secret_of_hmac(says: Says) -> None:
    """The classic confusion: signed by HMAC with the public key as its secret."""
    import hashlib
    import hmac

    pem = RSA.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    claims = {"sub": "ann", "exp": int(time.time()) + 3600}
    for algorithm in ("HS256", "RS256"):
        message = f"{part({'alg': algorithm, 'kid': 'two'})}.{part(claims)}"
        mac = (
            base64.urlsafe_b64encode(hmac.digest(pem, message.encode(), hashlib.sha256)).decode().rstrip("=")
        )
        assert isinstance(says(f"{message}.{mac}".encode()), Refusal)


def test_issuer_and_audience_are_required_where_set(says: Says) -> None:
    good = token({"iss": "i", "aud": "a"})
    assert isinstance(says(good, issuer="i", audience="a"), Identity)
    for settings in ({"issuer": "x"}, {"audience": "x"}):
        assert isinstance(says(good, **settings), Refusal)
        assert isinstance(says(token({}), **settings), Refusal)
    # An audience that nobody asked about decides nothing.
    assert isinstance(says(good), Identity)


@pytest.mark.parametrize(
    "password", [None, b"", b"secret", b"a.b.c", b"ey.\xff.x", b"eyx.y.z", b"e" * 20_000]
)
def test_what_is_no_token_is_left_to_others(says: Says, password: bytes | None) -> None:
    assert says(password) is None


def test_the_token_may_be_the_user_name(file: Path) -> None:
    source = Tokens(JwtSettings(keys=str(file), token="user_name"))
    assert isinstance(source.identify(Login(1, "d1", token({}).decode())), Identity)
    assert source.identify(Login(1, "d1", "ann", token({}))) is None


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"sub": None}, "no user: claim 'sub' is None"),
        ({"tenant": 5}, "tenant is 5"),
        ({"policies": "p"}, "policies is 'p'"),
    ],
)
def test_claims_that_cannot_be_used_are_refused(says: Says, claims: dict[str, Any], expected: str) -> None:
    refused = says(token(claims))
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.NOT_AUTHORIZED
    assert expected in refused.text


@pytest.mark.parametrize(
    "content", [None, b"", b"{}", b'{"keys": []}', b'{"keys": [1]}', b'{"keys": [{"kty": "oct", "k": "AA"}]}']
)
def test_keys_that_cannot_be_used_are_refused_at_the_start(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(IdentityError, match=str(path)):
        Tokens(JwtSettings(keys=str(path)))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_keys_of_a_url_are_cached_and_read_early_for_a_new_one() -> None:
    clock = Clock()
    with Answering(lambda _body: (200, keys(entry(KEY, "one")))) as service:
        source = Tokens(JwtSettings(keys=service.url, refresh="60s"), clock)
        login = Login(1, "d1", "x", token({}))
        for _ in range(3):
            assert isinstance(source.identify(login), Identity)
        assert len(service.requests) == 1
        service.answer = lambda _body: (200, keys(entry(OTHER, "new")))
        rotated = Login(1, "d1", "x", token({}, OTHER, key_id="new"))
        # Strangers cannot make us ask again and again.
        assert isinstance(source.identify(rotated), Refusal)
        clock.now = 10.0
        assert isinstance(source.identify(rotated), Identity)
        assert isinstance(source.identify(login), Refusal)
        assert len(service.requests) == 2
        # What was read holds while the service is away.
        service.answer = lambda _body: (500, b"")
        clock.now = 100.0
        assert isinstance(source.identify(rotated), Identity)
        assert len(service.requests) == 3


def test_without_keys_everybody_is_told_to_come_again() -> None:
    with Answering(lambda _body: (500, b"")) as service:
        refused = Tokens(JwtSettings(keys=service.url)).identify(Login(1, "d1", "x", token({})))
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.SERVER_UNAVAILABLE
    assert "HTTP status 500" in refused.text


def test_keys_do_not_come_by_a_road_where_they_could_be_exchanged() -> None:
    with pytest.raises(ValueError, match="write https"):
        JwtSettings(keys="http://example.org/keys")

"""Certificates by their fingerprint."""

import json
from pathlib import Path
from typing import Any

import pytest

from headwater.errors import IdentityError
from headwater.gateway.fingerprints import Certificates
from headwater.gateway.identity import Identity, Login, Reason, Refusal
from headwater.security import CertificateSettings

KNOWN, INACTIVE, UNKNOWN = ("a" * 64, "b" * 64, "c" * 64)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "certificates.json"
    records = {
        KNOWN: {"name": "d1", "tenant": "acme", "policies": ["device"]},
        INACTIVE: {"name": "d2", "status": "inactive"},
    }
    path.write_text(json.dumps({"version": 1, "certificates": records}), encoding="utf-8")
    return path


def login(fingerprint: str | None, common_name: str | None = "cn", client_id: str = "d1") -> Login:
    return Login(1, client_id, fingerprint=fingerprint, common_name=common_name)


def test_the_holder_is_found_by_fingerprint(table: Path) -> None:
    source = Certificates(CertificateSettings(), table)
    assert source.identify(login(KNOWN)) == Identity("d1", "acme", ("device",), {}, "d1")
    other = source.identify(login(KNOWN, client_id="d9"))
    assert isinstance(other, Identity)
    assert other.thing == ""
    assert source.identify(login(None)) is None


@pytest.mark.parametrize(
    ("fingerprint", "expected"), [(INACTIVE, "is inactive"), (UNKNOWN, "is not in the table")]
)
def test_others_are_refused(table: Path, fingerprint: str, expected: str) -> None:
    refused = Certificates(CertificateSettings(), table).identify(login(fingerprint))
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.NOT_AUTHORIZED
    assert expected in refused.text


def test_what_the_authority_signed_may_be_enough(table: Path, tmp_path: Path) -> None:
    for path in (table, tmp_path / "absent.json"):
        source = Certificates(CertificateSettings(unknown="accept"), path)
        assert source.identify(login(UNKNOWN, client_id="cn")) == Identity("cn", "", (), {}, "cn")
        assert isinstance(source.identify(login(UNKNOWN, common_name=None)), Refusal)
    assert isinstance(
        Certificates(CertificateSettings(unknown="accept"), table).identify(login(INACTIVE)), Refusal
    )


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ({"A" * 64: {"name": "x"}}, "is no fingerprint"),
        ({KNOWN: {}}, "name must be a text"),
        ({KNOWN: {"name": "x", "status": "on"}}, "status is active, inactive or revoked"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, records: dict[str, Any], expected: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"version": 1, "certificates": records}), encoding="utf-8")
    with pytest.raises(IdentityError, match=expected):
        Certificates(CertificateSettings(file=path), tmp_path / "other")


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="no such file"):
        Certificates(CertificateSettings(), tmp_path / "absent.json")

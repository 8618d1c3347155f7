"""The certificate authority: what it signs, what it enters in the table, what it revokes."""

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from headwater.ca import Authority
from headwater.errors import IdentityError
from headwater.gateway.fingerprints import Certificates
from headwater.gateway.identity import Identity, Login, Refusal
from headwater.security import CertificateSettings

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path / "ca", lambda: NOW)
    made.init()
    return made


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def revoked(tmp_path: Path) -> x509.CertificateRevocationList:
    crl = x509.load_pem_x509_crl((tmp_path / "ca" / "crl.pem").read_bytes())
    assert crl.is_signature_valid(load(tmp_path / "ca" / "ca.pem").public_key())  # type: ignore[arg-type]
    return crl


def test_a_device_certificate_is_signed_for_its_client_id_alone(authority: Authority, tmp_path: Path) -> None:
    issued = authority.issue("d1", tmp_path / "out", days=10)
    certificate, signer = load(issued.certificate), load(tmp_path / "ca" / "ca.pem")
    certificate.verify_directly_issued_by(signer)
    [name] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert name.value == "d1"
    assert certificate.not_valid_after_utc == NOW + timedelta(days=10)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert issued.fingerprint == certificate.fingerprint(hashes.SHA256()).hex()
    key = serialization.load_pem_private_key(issued.key.read_bytes(), None)
    assert key.public_key() == certificate.public_key()
    for secret in (issued.key, tmp_path / "ca" / "ca-key.pem", authority.table):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_a_certificate_lasts_no_longer_than_its_authority(authority: Authority, tmp_path: Path) -> None:
    later = Authority(tmp_path / "ca", lambda: NOW + timedelta(days=3000))
    issued = later.issue("d1", tmp_path, days=3650)
    assert (
        load(issued.certificate).not_valid_after_utc == load(tmp_path / "ca" / "ca.pem").not_valid_after_utc
    )


def test_what_is_issued_is_known_until_it_is_revoked(authority: Authority, tmp_path: Path) -> None:
    issued = authority.issue("d1", tmp_path, tenant="acme", policies=["device"])
    second = authority.issue("d1", tmp_path / "second")
    other = authority.issue("d2", tmp_path)

    def says(fingerprint: str) -> object:
        source = Certificates(CertificateSettings(file=authority.table), authority.table)
        return source.identify(Login(1, "d1", fingerprint=fingerprint, common_name="d1"))

    assert says(issued.fingerprint) == Identity("d1", "acme", ("device",), {}, "d1")
    assert len(revoked(tmp_path)) == 0
    assert authority.revoke(issued.fingerprint) == [issued.fingerprint]
    assert isinstance(says(issued.fingerprint), Refusal)
    assert isinstance(says(second.fingerprint), Identity)
    # By client id, all that are left.
    assert authority.revoke("d1") == [second.fingerprint]
    assert authority.revoke("d1") == []
    numbers = {load(each.certificate).serial_number for each in (issued, second)}
    assert {entry.serial_number for entry in revoked(tmp_path)} == numbers
    assert isinstance(says(other.fingerprint), Identity)


def test_a_list_that_is_renewed_holds_the_same_for_longer(authority: Authority, tmp_path: Path) -> None:
    authority.issue("d1", tmp_path)
    authority.revoke("d1")
    before = revoked(tmp_path)
    Authority(tmp_path / "ca", lambda: NOW + timedelta(days=5)).renew_crl()
    after = revoked(tmp_path)
    assert before.next_update_utc is not None
    assert after.next_update_utc == before.next_update_utc + timedelta(days=5)
    assert [(each.serial_number, each.revocation_date_utc) for each in after] == [
        (each.serial_number, each.revocation_date_utc) for each in before
    ]


def test_nothing_is_overwritten(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"ca\.pem exists already"):
        authority.init()
    authority.issue("d1", tmp_path)
    table = authority.table.read_text(encoding="utf-8")
    with pytest.raises(IdentityError, match=r"d1\.pem: it exists already"):
        authority.issue("d1", tmp_path)
    assert authority.table.read_text(encoding="utf-8") == table


@pytest.mark.parametrize("name", ["", "a/b", "..\0", "a b", "x" * 65, "ü"])
def test_a_client_id_that_cannot_be_a_common_name_is_refused(
    authority: Authority, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ValueError, match="a common name has 1 to 64"):
        authority.issue(name, tmp_path)
    assert json.loads(authority.table.read_text(encoding="utf-8"))["certificates"] == {}


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"ca\.pem is missing; `headwater ca init` makes one"):
        Authority(tmp_path).issue("d1", tmp_path / "out")
    Authority(tmp_path).init()
    with pytest.raises(IdentityError, match="has no certificate of this fingerprint or client id"):
        Authority(tmp_path).revoke("d1")

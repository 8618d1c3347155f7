"""One directory, two users: the listeners' own certificate and `headwater ca`, whichever comes first."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from headwater.ca import Authority
from headwater.errors import ConfigError, IdentityError
from headwater.gateway.certificates import OwnFiles, own_files
from headwater.gateway.fingerprints import Certificates
from headwater.gateway.identity import Identity, Login
from headwater.security import CertificateSettings

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def consistent(files: OwnFiles) -> None:
    ca, server = load(files.ca), load(files.certificate)
    server.verify_directly_issued_by(ca)
    assert load_pem_private_key(files.key.read_bytes(), None).public_key() == server.public_key()
    assert files.crl is not None
    crl = x509.load_pem_x509_crl(files.crl.read_bytes())
    assert crl.is_signature_valid(ca.public_key())  # type: ignore[arg-type]


@pytest.mark.parametrize("first", ["listener", "ca"])
def test_both_use_one_authority_whoever_makes_it(tmp_path: Path, first: str) -> None:
    directory = tmp_path / "ca"
    authority = Authority(directory, lambda: NOW)
    if first == "ca":
        authority.init()
    made = own_files(directory, NOW)
    consistent(made)
    before = made.ca.read_bytes()
    with pytest.raises(IdentityError, match=r"ca\.pem exists already, and `headwater ca issue` uses it"):
        authority.init()
    # The table is there before anything is issued, so a source of identities can be configured at once.
    source = Certificates(CertificateSettings(), authority.table)
    issued = authority.issue("server", tmp_path / "keys")
    load(issued.certificate).verify_directly_issued_by(load(made.ca))
    source._file._looked = float("-inf")  # type: ignore[union-attr]
    found = source.identify(Login(1, "server", fingerprint=issued.fingerprint, common_name="server"))
    assert isinstance(found, Identity)
    authority.revoke("server")
    again = own_files(directory, NOW)
    assert (again.ca.read_bytes(), again) == (before, made)
    consistent(again)
    assert made.crl is not None
    assert len(x509.load_pem_x509_crl(made.crl.read_bytes())) == 1


def test_a_device_is_issued_nothing_into_the_authoritys_own_directory(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca", lambda: NOW)
    authority.init()
    with pytest.raises(IdentityError, match="the authority's own directory"):
        authority.issue("server", tmp_path / "x" / ".." / "ca")
    assert not (tmp_path / "ca" / "server.pem").exists()


def test_the_servers_certificate_is_renewed_in_time_and_with_its_authority(tmp_path: Path) -> None:
    made = own_files(tmp_path, NOW)
    first = made.certificate.read_bytes()
    own_files(tmp_path, NOW + timedelta(days=300))
    assert made.certificate.read_bytes() == first
    own_files(tmp_path, NOW + timedelta(days=380))
    second = made.certificate.read_bytes()
    assert second != first
    # The authority is moved away and another made: what the former signed helps nobody.
    for name in ("ca.pem", "ca-key.pem"):
        (tmp_path / name).rename(tmp_path / f"former-{name}")
    Authority(tmp_path, lambda: NOW).init()
    consistent(own_files(tmp_path, NOW))
    assert made.certificate.read_bytes() != second


def test_what_an_earlier_version_left_out_is_made(tmp_path: Path) -> None:
    made = own_files(tmp_path, NOW)
    before = made.ca.read_bytes()
    for name in ("certificates.json", "crl.pem"):
        (tmp_path / name).unlink()
    consistent(own_files(tmp_path, NOW))
    assert (tmp_path / "certificates.json").exists()
    assert made.ca.read_bytes() == before


def test_an_authority_whose_key_is_elsewhere_serves_without_a_list(tmp_path: Path) -> None:
    made = own_files(tmp_path, NOW)
    (tmp_path / "ca-key.pem").unlink()
    (tmp_path / "crl.pem").unlink()
    assert own_files(tmp_path, NOW).crl is None
    made.certificate.unlink()
    with pytest.raises(ConfigError, match=r"ca-key\.pem is missing"):
        own_files(tmp_path, NOW)


def test_a_key_without_its_certificate_is_not_overwritten(tmp_path: Path) -> None:
    own_files(tmp_path, NOW)
    key = (tmp_path / "ca-key.pem").read_bytes()
    (tmp_path / "ca.pem").unlink()
    with pytest.raises(ConfigError, match=r"ca-key\.pem is there and its certificate ca\.pem is not"):
        own_files(tmp_path, NOW)
    assert (tmp_path / "ca-key.pem").read_bytes() == key

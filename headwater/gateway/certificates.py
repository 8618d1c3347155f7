"""Certificates of our own, for TLS listeners that name none: an authority and a server certificate below `ca/`.

`ca.pem` is what clients must trust. It says nothing to machines that do not have it, so a fleet in the field usually
brings certificates of its own.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from headwater import durable
from headwater.errors import ConfigError

#: How long our certificates count, and how early a server's is renewed. Ours.
_CA_LIFE: Final = dt.timedelta(days=3650)
_SERVER_LIFE: Final = dt.timedelta(days=397)
_RENEWAL: Final = dt.timedelta(days=30)
#: Devices whose clocks are behind accept a new certificate all the same.
_CLOCK_SKEW: Final = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class OwnFiles:
    """PEM files below a data directory's `ca/`."""

    ca: Path
    certificate: Path
    key: Path


def own_files(directory: Path, now: dt.datetime) -> OwnFiles:
    """Our authority and its certificate for a server on this machine; what is missing or soon over is made.

    directory: `ca/` of the data directory
    now:       UTC
    raises:    ConfigError when a file there cannot be read or written
    """
    files = OwnFiles(directory / "ca.pem", directory / "server.pem", directory / "server-key.pem")
    try:
        durable.make_directory(directory)
        if not files.ca.exists():
            _make_authority(files.ca, directory / "ca-key.pem", now)
        if not _lasts(files.certificate, files.key, now):
            _make_server(files, directory / "ca-key.pem", now)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"making certificates in {directory}: {error}; repair or remove what is there, or name a certificate "
            f"and a key of your own"
        ) from error
    return files


def _make_authority(certificate: Path, key_file: Path, now: dt.datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Headwater CA {os.urandom(4).hex()}")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    made = (
        _begun(name, name, key.public_key(), key.public_key(), now, now + _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(key_file, _pem(key), secret=True)
    _write(certificate, made.public_bytes(serialization.Encoding.PEM))


def _make_server(files: OwnFiles, ca_key_file: Path, now: dt.datetime) -> None:
    authority = x509.load_pem_x509_certificate(files.ca.read_bytes())
    ca_key = serialization.load_pem_private_key(ca_key_file.read_bytes(), None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{ca_key_file} holds no elliptic-curve key")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = dict.fromkeys(["localhost", socket.gethostname()])
    addresses = [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
    made = (
        _begun(name, authority.subject, key.public_key(), ca_key.public_key(), now, now + _SERVER_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, False, False, False, False), critical=True
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([*map(x509.DNSName, names), *map(x509.IPAddress, addresses)]),
            critical=False,
        )
        .sign(ca_key, hashes.SHA256())
    )
    _write(files.key, _pem(key), secret=True)
    _write(files.certificate, made.public_bytes(serialization.Encoding.PEM))


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    now: dt.datetime,
    end: dt.datetime,
) -> x509.CertificateBuilder:
    """What every certificate has. source: RFC 5280, section 4"""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _lasts(certificate: Path, key: Path, now: dt.datetime) -> bool:
    if not (certificate.exists() and key.exists()):
        return False
    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc > now + _RENEWAL


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes, secret: bool = False) -> None:
    """Durably, and a secret for nobody else to read."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    durable.publish(temporary, path)

"""A certificate of our own for TLS listeners that name none: `ca/server.pem`, by the authority of devices beside it.

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
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from headwater.ca import Authority, private_pem, write_public
from headwater.errors import ConfigError, IdentityError
from headwater.gateway.recordfile import write_private

#: How long a server's certificate counts, and how early it is renewed. Ours.
_LIFE: Final = dt.timedelta(days=397)
_RENEWAL: Final = dt.timedelta(days=30)


@dataclass(frozen=True, slots=True)
class OwnFiles:
    """PEM files below a data directory's `ca/`. crl: None where its authority's key is not here to sign one"""

    ca: Path
    certificate: Path
    key: Path
    crl: Path | None


def own_files(directory: Path, now: dt.datetime) -> OwnFiles:
    """Our authority and its certificate for a server on this machine; what is missing or soon over is made.

    directory: `ca/` of the data directory
    now:       UTC
    raises:    ConfigError when a file there cannot be read or written
    """
    authority = Authority(directory, lambda: now)
    certificate, key = directory / "server.pem", directory / "server-key.pem"
    try:
        authority.complete(f"Headwater CA {os.urandom(4).hex()}")
        if not _lasts(authority, certificate, key, now):
            _make(authority, certificate, key)
    except (OSError, ValueError, IdentityError) as error:
        raise ConfigError(
            f"making certificates in {directory}: {error}; repair or remove what is there, or name a certificate "
            f"and a key of your own"
        ) from error
    crl = authority.crl if authority.crl.exists() else None
    return OwnFiles(directory / "ca.pem", certificate, key, crl)


def _make(authority: Authority, certificate: Path, key_file: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    names = dict.fromkeys(["localhost", socket.gethostname()])
    addresses = [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
    alternatives = x509.SubjectAlternativeName([*map(x509.DNSName, names), *map(x509.IPAddress, addresses)])
    made = authority.certify(
        "localhost", key.public_key(), _LIFE, ExtendedKeyUsageOID.SERVER_AUTH, [alternatives]
    )
    write_private(key_file, private_pem(key))
    write_public(certificate, made)


def _lasts(authority: Authority, certificate: Path, key: Path, now: dt.datetime) -> bool:
    if not (certificate.exists() and key.exists()):
        return False
    held = x509.load_pem_x509_certificate(certificate.read_bytes())
    return held.not_valid_after_utc > now + _RENEWAL and authority.issued(held)

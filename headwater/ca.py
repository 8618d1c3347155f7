"""A certificate authority in a directory: device certificates, a revocation list, and the table of who holds which.

ca/ca.pem             the certificate of the authority, for devices and listeners
ca/ca-key.pem         its private key, readable by its owner alone
ca/crl.pem            revoked certificates (RFC 5280, section 5)
ca/certificates.json  holders by SHA-256 fingerprint, the table of `[auth.certificates]`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from headwater import durable
from headwater.errors import IdentityError
from headwater.gateway.fingerprints import KIND
from headwater.gateway.identity import identity_of
from headwater.gateway.recordfile import changing, read, write_private

#: Common names that become file names and MQTT client ids; at most 64 characters by RFC 5280, appendix A.
_COMMON_NAME: Final = re.compile(r"[A-Za-z0-9_.:@-]{1,64}")
#: How long the authority's own certificate and a revocation list hold.
_AUTHORITY_DAYS: Final = 3650
_CRL_DAYS: Final = 30
#: Devices whose clocks are behind accept a new certificate all the same.
_EARLIER: Final = timedelta(days=1)


def utc_now() -> datetime:
    """The time now."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that has been issued: its files, and the fingerprint by which it is known."""

    certificate: Path
    key: Path
    fingerprint: str


class Authority:
    """The authority of a directory: of devices, and of listeners that have no certificate of another.

    directory: where its files are, or will be
    clock:     the time, UTC
    """

    def __init__(self, directory: Path, clock: Callable[[], datetime] = utc_now) -> None:
        self._directory = directory
        self._clock = clock
        self._certificate = directory / "ca.pem"
        self._key = directory / "ca-key.pem"
        self.crl = directory / "crl.pem"
        self.table = directory / "certificates.json"

    def init(self, name: str = "Headwater CA") -> Path:
        """Makes key, certificate, an empty revocation list and an empty table; overwrites nothing.

        raises: IdentityError
        """
        for file in (self._certificate, self._key):
            if file.exists():
                raise IdentityError(
                    f"making a certificate authority in {self._directory}: {file.name} exists already, and "
                    "`headwater ca issue` uses it; for another one name another directory, or move this one away, "
                    "after which no certificate that it signed is accepted"
                )
        self.complete(name)
        return self._certificate

    def complete(self, name: str = "Headwater CA") -> None:
        """Makes what is missing of key and certificate, table and revocation list; a list that another authority has
        signed is written anew. Safe beside another process that does the same.

        raises: IdentityError
        """
        if self._certificate.exists() and self.table.exists() and self._has_list():
            return
        with changing(self.table, KIND) as records:
            if not self._certificate.exists():
                self._make(name)
            if not self._has_list():
                self._write_crl(records)

    def _has_list(self) -> bool:
        """Whether the revocation list is there and this authority's, or nobody here could sign one."""
        if not self._key.exists():
            return True
        try:
            signer = x509.load_pem_x509_certificate(self._certificate.read_bytes()).public_key()
            listed = x509.load_pem_x509_crl(self.crl.read_bytes())
            return isinstance(signer, ec.EllipticCurvePublicKey) and listed.is_signature_valid(signer)
        except FileNotFoundError:
            return False
        except (OSError, ValueError, TypeError) as error:
            raise IdentityError(f"reading the certificate authority in {self._directory}: {error}") from error

    def _make(self, name: str) -> None:
        if self._key.exists():
            raise IdentityError(
                f"making a certificate authority in {self._directory}: {self._key.name} is there and its certificate "
                f"{self._certificate.name} is not; bring it back, or move the key away"
            )
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = self._clock()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _EARLIER)
            .not_valid_after(now + timedelta(days=_AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        write_private(self._key, private_pem(key))
        write_public(self._certificate, certificate)

    def issue(
        self,
        client_id: str,
        directory: Path,
        days: int = 365,
        tenant: str = "",
        policies: list[str] | None = None,
    ) -> Issued:
        """A device's key and certificate, common name = client id, and its line in the table.

        directory: gets `CLIENT_ID.pem` and `CLIENT_ID.key`; nothing is overwritten; not the authority's own, in which
                   these names could be its own files'
        raises:    IdentityError; ValueError: a client id that cannot be a common name, tenant or policies too long
        """
        if not _COMMON_NAME.fullmatch(client_id):
            raise ValueError(
                f"client id {client_id!r}: a common name has 1 to 64 letters, digits and _ . : @ -"
            )
        record: dict[str, object] = {"name": client_id}
        if tenant:
            record["tenant"] = tenant
        if policies:
            record["policies"] = policies
        identity_of(record, client_id, f"certificate of {client_id!r}")
        if directory.resolve() == self._directory.resolve():
            raise IdentityError(
                f"writing the certificate of {client_id!r} into {directory}: that is the authority's own directory; "
                "name another with --out"
            )
        files = directory / f"{client_id}.pem", directory / f"{client_id}.key"
        for file in files:
            if file.exists():
                raise IdentityError(f"writing {file}: it exists already; name another directory with --out")
        key = ec.generate_private_key(ec.SECP256R1())
        life = timedelta(days=days)
        certificate = self.certify(client_id, key.public_key(), life, ExtendedKeyUsageOID.CLIENT_AUTH)
        end = certificate.not_valid_after_utc
        fingerprint = certificate.fingerprint(hashes.SHA256()).hex()
        record |= {
            "status": "active",
            "serial": f"{certificate.serial_number:x}",
            "not_after": end.isoformat(timespec="seconds"),
        }
        # First the table: a certificate that nobody knows helps nobody, the reverse would be a riddle.
        with changing(self.table, KIND) as records:
            records[fingerprint] = record
        try:
            durable.make_directory(directory)
        except OSError as error:
            raise IdentityError(f"making {directory}: {error.strerror}") from error
        write_private(files[1], private_pem(key))
        write_public(files[0], certificate)
        return Issued(files[0], files[1], fingerprint)

    def certify(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        life: timedelta,
        usage: x509.ObjectIdentifier,
        more: Sequence[x509.ExtensionType] = (),
    ) -> x509.Certificate:
        """A certificate of this authority, which enters no table. source: RFC 5280, section 4

        name:   the common name
        life:   from now, as long as the authority's own at most
        usage:  what the key is for: client or server authentication
        more:   further extensions
        raises: IdentityError
        """
        authority, authority_key = self._load()
        now = self._clock()
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(authority.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _EARLIER)
            .not_valid_after(min(now + life, authority.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
        )
        for each in more:
            builder = builder.add_extension(each, critical=False)
        return builder.sign(authority_key, hashes.SHA256())

    def issued(self, certificate: x509.Certificate) -> bool:
        """Whether a certificate is by this authority. raises: IdentityError; OSError: its own cannot be read"""
        try:
            certificate.verify_directly_issued_by(
                x509.load_pem_x509_certificate(self._certificate.read_bytes())
            )
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def revoke(self, name: str) -> list[str]:
        """Revokes by fingerprint, or all certificates of a client id, in the table and in the list.

        returns: fingerprints that are revoked now and were not before
        raises:  IdentityError: no such certificate
        """
        self._load()
        revoked = []
        with changing(self.table, KIND) as records:
            found = [
                (fingerprint, record)
                for fingerprint, record in records.items()
                if name in (fingerprint, record.get("name"))
            ]
            if not found:
                raise IdentityError(
                    f"revoking {name!r}: {self.table} has no certificate of this fingerprint or client id"
                )
            for fingerprint, record in found:
                if record.get("status") != "revoked":
                    record["status"] = "revoked"
                    record["revoked_at"] = self._clock().isoformat(timespec="seconds")
                    revoked.append(fingerprint)
            self._write_crl(records)
        return revoked

    def _write_crl(self, records: dict[str, dict[str, object]]) -> None:
        authority, key = self._load()
        now = self._clock()
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(authority.subject)
            .last_update(now - _EARLIER)
            .next_update(now + timedelta(days=_CRL_DAYS))
            .add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
            )
        )
        for record in records.values():
            if record.get("status") == "revoked" and "serial" in record:
                entry = (
                    x509.RevokedCertificateBuilder()
                    .serial_number(int(str(record["serial"]), 16))
                    .revocation_date(datetime.fromisoformat(str(record.get("revoked_at") or now.isoformat())))
                    .build()
                )
                builder = builder.add_revoked_certificate(entry)
        write_public(self.crl, builder.sign(key, hashes.SHA256()))

    def renew_crl(self) -> Path:
        """Writes the revocation list anew, valid from now on. raises: IdentityError"""
        try:
            records = read(self.table, KIND)
        except FileNotFoundError:
            records = {}
        self._write_crl(records)
        return self.crl

    def _load(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        try:
            certificate = x509.load_pem_x509_certificate(self._certificate.read_bytes())
            key = serialization.load_pem_private_key(self._key.read_bytes(), password=None)
        except FileNotFoundError as error:
            raise IdentityError(
                f"reading the certificate authority in {self._directory}: {Path(str(error.filename)).name} is missing; "
                "`headwater ca init` makes one"
            ) from None
        except (OSError, ValueError, TypeError) as error:
            raise IdentityError(f"reading the certificate authority in {self._directory}: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise IdentityError(
                f"reading {self._key}: found no elliptic-curve key, which `headwater ca init` makes"
            )
        return certificate, key


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as its file holds it, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write_public(path: Path, what: x509.Certificate | x509.CertificateRevocationList) -> None:
    """A PEM file, whole or not at all. raises: IdentityError"""
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.write_bytes(what.public_bytes(serialization.Encoding.PEM))
        durable.publish(temporary, path)
    except OSError as error:
        raise IdentityError(f"writing {path}: {error.strerror}") from error

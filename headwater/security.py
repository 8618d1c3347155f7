"""Who may connect and what they may do, as sections of the configuration: `[auth]` and `[policies.NAME]`."""

from __future__ import annotations

import json
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, PrivateAttr, SecretStr, field_validator, model_validator

from headwater.declarations import DurationUs, Section

#: Names that a policy may have.
POLICY_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _safe_url(url: str, what: str) -> str:
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return url
    if parts.scheme == "http" and parts.hostname and is_loopback(parts.hostname):
        return url
    raise ValueError(
        f"{url!r}: write https://..., since {what} would be read on the way; http only to this machine"
    )


class PasswordSettings(Section):
    """Users with passwords."""

    file: Path = Field(description="File that `headwater passwd` writes; changes count within a second.")
    max_remembered: int = Field(
        100_000,
        ge=0,
        description="Right passwords remembered as keyed hashes, so that reconnecting clients need no argon2.",
    )


class JwtSettings(Section):
    """Signed tokens."""

    keys: str = Field(description="JSON Web Key Set: a file, or an https URL.")
    algorithms: list[
        Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
    ] = Field(["RS256", "ES256", "EdDSA"], min_length=1, description="Algorithms accepted, and no other.")
    token: Literal["password", "user_name"] = Field(
        "password", description="Field of CONNECT with the token."
    )
    issuer: str | None = Field(None, description="Required `iss`.")
    audience: str | None = Field(None, description="Required `aud`.")
    leeway: DurationUs = Field(10_000_000, description="How far clocks may differ at `exp` and `nbf`.")
    refresh: DurationUs = Field(
        600_000_000, description="Keys are read again after this, and early for an unknown key id."
    )
    timeout: DurationUs = Field(3_000_000, gt=0, description="Longest wait for the URL of the keys.")
    user_claim: str = Field("sub", description="Claim with the user.")
    tenant_claim: str = Field("tenant", description="Claim with the tenant; may be absent.")
    client_id_claim: str = Field(
        "client_id", description="Claim with the client id; where a token has it, no other may be used."
    )
    policies_claim: str = Field(
        "policies", description="Claim with names of policies; absent: `auth.policies`."
    )

    @property
    def url(self) -> str | None:
        """The URL of the keys, None where they are in a file."""
        return self.keys if "://" in self.keys else None

    @field_validator("keys")
    @classmethod
    def _safe(cls, keys: str) -> str:
        return _safe_url(keys, "keys could be exchanged and passwords") if "://" in keys else keys


class WebhookSettings(Section):
    """An HTTP service that knows who may connect."""

    url: str = Field(description="Gets one POST for each login that no other source decides; https.")
    token: SecretStr | None = Field(None, description="Sent as `Authorization: Bearer`.")
    timeout: DurationUs = Field(
        2_000_000,
        gt=0,
        description="Longest wait for its whole answer; then the client is refused with 0x88.",
    )
    workers: int = Field(8, ge=1, le=256, description="Requests at a time.")
    max_waiting: int = Field(
        1000, ge=1, description="Logins that wait for a request; further ones are refused with 0x89."
    )
    cache: DurationUs = Field(
        60_000_000, description="How long an answer holds for the same login; 0s: asked each time."
    )
    max_cached: int = Field(100_000, ge=1, description="Answers kept; the oldest go first.")

    @field_validator("url")
    @classmethod
    def _safe(cls, url: str) -> str:
        return _safe_url(url, "passwords")


class CertificateSettings(Section):
    """Client certificates, looked up by their SHA-256 fingerprint."""

    file: Path | None = Field(
        None,
        description="Table of certificates that `headwater ca issue` writes; default `ca/certificates.json`.",
    )
    unknown: Literal["refuse", "accept"] = Field(
        "refuse",
        description="A certificate that the listener's CA signed and the table lacks; `accept`: its common name is the "
        "user, with `auth.policies`.",
    )


class AuthSettings(Section):
    """Who may connect. Without a source everybody is anonymous and may do everything, on loopback only."""

    password: PasswordSettings | None = Field(None, description="Section of its own, see below.")
    jwt: JwtSettings | None = Field(None, description="Section of its own, see below.")
    webhook: WebhookSettings | None = Field(None, description="Section of its own, see below.")
    certificates: CertificateSettings | None = Field(None, description="Section of its own, see below.")
    policies: list[str] = Field(
        default_factory=list, description="Policies of identities whose source names none."
    )
    timeout: DurationUs = Field(
        5_000_000, ge=100_000, description="A CONNECT that waits longer for its answer is refused with 0x88."
    )
    workers: int = Field(2, ge=1, le=64, description="Threads that check passwords, tokens and certificates.")
    max_waiting: int = Field(
        10_000, ge=1, description="CONNECTs that wait for an answer; further ones are refused with 0x89."
    )
    max_waiting_bytes: int = Field(16 << 20, ge=1 << 16, description="The same in bytes.")

    @property
    def configured(self) -> bool:
        """Whether there is a source, so that nobody is anonymous."""
        return any((self.password, self.jwt, self.webhook, self.certificates))

    @model_validator(mode="after")
    def _policies_have_a_source(self) -> Self:
        if self.policies and not self.configured:
            raise ValueError(
                "policies: nobody has them, since without a source everybody is anonymous and may do everything; add "
                "[auth.password], [auth.jwt], [auth.certificates] or [auth.webhook]"
            )
        return self


class PolicySettings(Section):
    """A policy: an AWS-style document, in a file or here."""

    file: Path | None = Field(None, description="JSON file, read again when it changes.")
    document: str | dict[str, Any] | None = Field(
        None, description="The document itself: JSON text, or the same as a TOML table."
    )
    _json: str = PrivateAttr("")

    @model_validator(mode="after")
    def _read(self) -> Self:
        if (self.file is None) == (self.document is None):
            raise ValueError('write either file = "policy.json" or document = ...')
        if self.file is not None:
            try:
                self._json = self.file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"reading policy {self.file}: {error}") from None
        elif isinstance(self.document, str):
            self._json = self.document
        else:
            self._json = json.dumps(self.document)
        return self

    @property
    def text(self) -> str:
        """The document as JSON, not checked."""
        return self._json

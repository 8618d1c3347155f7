"""Who a client is: what a CONNECT shows, and what a source of identities says about it.

A source looks at a login and gives an `Identity`, a `Refusal`, or None where the login is not of its kind. The first
one that has an opinion decides; where none has, the client is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Protocol

#: Longest name, tenant, policy name or attribute value that an identity may have, bytes; ours.
MAX_TEXT: Final = 256
#: Most policies, and most attributes, of one identity; ours.
MAX_ITEMS: Final = 32


class Reason(IntEnum):
    """Why a client is refused: reason codes of MQTT 5.0, section 3.2.2.2."""

    BAD_USER_NAME_OR_PASSWORD = 0x86
    NOT_AUTHORIZED = 0x87
    SERVER_UNAVAILABLE = 0x88
    SERVER_BUSY = 0x89


@dataclass(frozen=True, slots=True)
class Login:
    """A CONNECT that waits for its answer.

    id:          names it to the gateway
    fingerprint: SHA-256 of the client certificate (DER), lower-case hex, which the listener has verified; None: no
                 certificate
    common_name: of the certificate's subject
    peer:        `host:port` that the connection comes from
    listener:    `mqtt`, `mqtts`, `ws` or `wss`
    """

    id: int
    client_id: str
    user_name: str | None = None
    password: bytes | None = field(default=None, repr=False)
    fingerprint: str | None = None
    common_name: str | None = None
    peer: str = ""
    listener: str = "mqtt"


@dataclass(frozen=True, slots=True)
class Line:
    """What a line of a file said.

    version: of the file; grows with each change
    mark:    a hash of the line; 0: there was none of this name
    """

    name: str
    version: int
    mark: int


@dataclass(frozen=True, slots=True)
class Identity:
    """Who it is.

    policies:   names; none: those of `auth.policies`
    attributes: values of `${attributes.NAME}`
    thing:      the client id, where the source vouches for it, as `${iot:Connection.Thing.ThingName}`
    until:      seconds since the Unix epoch, UTC, at which the client's connections end; None: they do not
    line:       where it stands; the client's connections end when it says something else. None: in no file
    """

    user: str
    tenant: str = ""
    policies: tuple[str, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    thing: str = ""
    until: float | None = None
    line: Line | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not. text: for the operator's log; the client is told the reason alone."""

    reason: Reason
    text: str


Verdict = Identity | Refusal


class Source(Protocol):
    """Where identities come from. `identify` is called from several threads at a time and must not raise."""

    @property
    def name(self) -> str:
        """The section of the configuration: `password`, `jwt`, `certificates`, `webhook`."""

    def identify(self, login: Login) -> Verdict | None:
        """Who it is, why not, or None: not a login of this kind."""

    def changed(self) -> tuple[int, dict[str, int]] | None:
        """Version of its file and the mark of each line by name, once for each change; None: no change, or no file."""

    def close(self) -> None:
        """Lets go of connections."""


def identity_of(record: Mapping[str, object], user: str, what: str) -> Identity:
    """An identity of a record with `tenant`, `policies` and `attributes`, as files and services write them.

    what:   names the record in errors
    raises: ValueError: what is wrong with which key
    """
    tenant = record.get("tenant") or ""
    policies = record.get("policies") or []
    attributes = record.get("attributes") or {}
    if not isinstance(tenant, str):
        raise ValueError(f"{what}: tenant is {tenant!r}, it must be a text")
    if not isinstance(policies, list) or not all(isinstance(name, str) for name in policies):
        raise ValueError(f"{what}: policies is {policies!r}, it must be a list of names")
    if not isinstance(attributes, dict) or not all(isinstance(value, str) for value in attributes.values()):
        raise ValueError(f"{what}: attributes is {attributes!r}, it must be a table of texts")
    if len(policies) > MAX_ITEMS or len(attributes) > MAX_ITEMS:
        raise ValueError(f"{what}: at most {MAX_ITEMS} policies and {MAX_ITEMS} attributes")
    for text in (user, tenant, *policies, *attributes, *attributes.values()):
        if len(text.encode()) > MAX_TEXT:
            raise ValueError(f"{what}: {text[:40]!r}... has more than {MAX_TEXT} bytes")
    return Identity(user, tenant, tuple(policies), attributes)

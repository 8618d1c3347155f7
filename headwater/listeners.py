"""Listeners of devices: the sections `[mqtts]`, `[ws]` and `[wss]` and the tables `[[mqtt.listeners]]`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from headwater.declarations import Section

#: Listeners that have a section of their own.
SECTIONS: Final = frozenset({"mqtts", "ws", "wss"})
#: Names that `run.json` uses for something else.
_TAKEN: Final = SECTIONS | {"mqtt", "coap", "coaps", "http", "pid"}
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")


#: What MQTT goes over.
Transport = Literal["tcp", "tls", "ws", "wss"]


#: Of the setting `max_connect_rate`, which each listener has.
CONNECT_RATE: Final = Field(
    None,
    ge=0,
    le=1_000_000,
    description="Connections accepted a second; more wait in the kernel's queue. 0: no bound; absent: 1000, on "
    "loopback no bound.",
)


class ListenerSection(Section):
    """A section with `host` and `port`; `port` may also be written `host:port`."""

    @model_validator(mode="before")
    @classmethod
    def _split_host_port(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("port"), str) and ":" in values["port"]:
            host, _, port = values["port"].rpartition(":")
            values = {**values, "host": host.strip("[]"), "port": port}
        return values


class _Address(ListenerSection):
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int | None = Field(
        None, ge=0, le=65535, description="TCP port; 0 picks a free one; absent: no such listener."
    )
    proxy_protocol: bool = Field(
        False,
        description="Every connection begins with a header of the PROXY protocol, version 2, from a load balancer.",
    )
    max_connections: int | None = Field(
        None, gt=0, description="Connections of this listener at a time; `mqtt.max_connections` bounds all."
    )
    max_connect_rate: int | None = CONNECT_RATE


class _Tls(Section):
    certificate: Path | None = Field(
        None, description="PEM file, the server's certificate first; absent: one by an authority of our own."
    )
    key: Path | None = Field(None, description="PEM file with the certificate's private key.")
    client_certificate: Literal["none", "optional", "required"] | None = Field(
        None, description="Whether clients show one; default `required` with `client_ca`, else `none`."
    )
    client_ca: Path | None = Field(
        None, description="PEM file with the authorities that issue clients' certificates; absent: our own."
    )
    crl: Path | None = Field(
        None,
        description="PEM file with the revocation lists of all authorities of `client_ca`; absent: of our own "
        "authority its list, of others none.",
    )

    @model_validator(mode="after")
    def _files_belong_together(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            missing = "key" if self.key is None else "certificate"
            raise ValueError(f"certificate and key belong together, {missing} is missing")
        if self.clients == "none" and (self.client_ca or self.crl):
            raise ValueError(
                'client_ca and crl mean nothing with client_certificate = "none"; leave them out'
            )
        return self

    @property
    def clients(self) -> Literal["none", "optional", "required"]:
        """`client_certificate`, or what follows from the files where it is absent."""
        if self.client_certificate is not None:
            return self.client_certificate
        return "required" if self.client_ca or self.crl else "none"


class _Web(Section):
    origins: list[str] = Field(
        default_factory=list,
        description="Origins (`https://example.com`) whose pages may connect beside those of the same host; `*`: all.",
    )


class _Open(Section):
    insecure: bool = Field(
        False,
        description="Allows a listener beyond loopback that lacks TLS or authentication.",
    )


class MqttsSettings(_Tls, _Open, _Address):
    """MQTT over TLS."""


class WsSettings(_Web, _Open, _Address):
    """MQTT over WebSocket, at the path `/mqtt`."""


class WssSettings(_Web, _Tls, _Open, _Address):
    """MQTT over secure WebSocket, at the path `/mqtt`."""


class ListenerSettings(_Web, _Tls, _Open, _Address):
    """A further listener."""

    name: str = Field(description="Names it in `run.json`, metrics and events.")
    transport: Transport = Field(description="What MQTT goes over.")
    port: int = Field(ge=0, le=65535, description="TCP port; 0 picks a free one.")

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("a name is lower-case letters, digits, - and _, at most 32")
        if name in _TAKEN:
            raise ValueError(
                f"{name!r} names a listener or an entry of run.json already; choose another name"
            )
        return name

    @model_validator(mode="after")
    def _fits_its_transport(self) -> Self:
        unfit = set() if self.has_tls else set(_Tls.model_fields)
        if self.transport not in ("ws", "wss"):
            unfit |= set(_Web.model_fields)
        for key in sorted(unfit & self.model_fields_set):
            raise ValueError(f"{key} means nothing with transport = {self.transport!r}; leave it out")
        return self

    @property
    def has_tls(self) -> bool:
        return self.transport in ("tls", "wss")


def listeners(
    mqtts: MqttsSettings, ws: WsSettings, wss: WssSettings, further: list[ListenerSettings]
) -> list[ListenerSettings]:
    """Every listener beside `mqtt.port`: of the sections with a port, named as they are, then the further ones."""
    sections: list[tuple[str, Transport, MqttsSettings | WsSettings | WssSettings]] = [
        ("mqtts", "tls", mqtts),
        ("ws", "ws", ws),
        ("wss", "wss", wss),
    ]
    found = []
    for name, transport, section in sections:
        if section.port is not None:
            values = {key: getattr(section, key) for key in type(section).model_fields}
            # The name is taken, by this section.
            found.append(ListenerSettings.model_construct(name=name, transport=transport, **values))
    return [*found, *further]

"""The MQTT listeners: native threads that take messages, make them durable through the log and acknowledge them."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from headwater import _native
from headwater.declarations import StreamSettings
from headwater.gateway.limits import limits
from headwater.gateway.retained import StoredMessage
from headwater.listeners import ListenerSettings
from headwater.log.embedded import EmbeddedLog, InferredField
from headwater.mqtt_settings import MqttSettings
from headwater.records import Schema

#: Settings that become limits of each listener.
_OF_LISTENERS = (
    "max_connect_rate",
    "max_message_rate",
    "max_byte_rate",
    "flapping_connects",
    "max_takeovers",
)
#: Topics whose messages are also logged raw, because a service of ours answers them.
RAW_FILTERS = ("$aws/things/+/shadow/#",)


#: Packets as they come and go: `take(timeout_s)` gives lines and how many were lost; `close()` ends it.
Trace = _native.Trace


class Gateway:
    """A running gateway.

    listeners: beside `mqtt.port`
    directory: where certificates of our own are kept, for listeners that name none
    streams:   settings and registered schema by stream name
    logins:    where CONNECT packets wait for an answer; None: everybody is anonymous and may do everything
    loads_retained: what was retained before the start comes by `restore`, until `retained_loaded`
    sessions:  directory of sessions that outlive the process; None, or where `durable_sessions` is off: they end
               with it
    raises:    ListenError when an address is taken, ConfigError for a stream that cannot be compiled or a certificate
               that cannot be used, DataDirectoryError for sessions that are damaged
    """

    def __init__(
        self,
        log: EmbeddedLog,
        settings: MqttSettings,
        listeners: Sequence[ListenerSettings],
        directory: Path,
        streams: Mapping[str, tuple[StreamSettings, Schema]],
        logins: _native.Logins | None = None,
        loads_retained: bool = False,
        sessions: Path | None = None,
    ) -> None:
        options = settings.model_dump(exclude={"insecure", "listeners", "durable_sessions", *_OF_LISTENERS})
        options["limits"] = limits(settings, settings.host, settings.max_connect_rate)
        options["listeners"] = [
            {
                **_native_listener(each, directory),
                "limits": limits(settings, each.host, each.max_connect_rate),
            }
            for each in listeners
        ]
        options["threads"] = settings.threads or os.cpu_count() or 1
        options["loads_retained"] = loads_retained
        options["sessions"] = sessions if settings.durable_sessions else None
        options["raw_filters"] = list(RAW_FILTERS)
        self._log = log
        self._native = _native.Gateway(log.native, options, self._bindings(streams), logins)

    def rebind(self, changed: Mapping[str, tuple[StreamSettings, Schema]], gone: Sequence[str]) -> None:
        """Fills these streams too, or by these settings from now on, and no more those that are gone.

        Every message that is read after the return goes by the new streams; those that stay lose nothing.

        raises: ConfigError, and nothing has changed; LogFullError: call it again
        """
        self._native.rebind(self._log.native, self._bindings(changed), list(gone))

    def _bindings(self, streams: Mapping[str, tuple[StreamSettings, Schema]]) -> list[dict[str, Any]]:
        return [
            declaration(name, stream, schema, self._log.inferred(schema.stream) if stream.infer else ())
            for name, (stream, schema) in streams.items()
        ]

    def address(self) -> str:
        """`host:port` of the plain listener, as bound."""
        return self._native.address()

    def listeners(self) -> list[dict[str, Any]]:
        """Every listener, the plain one first: `name`, `transport`, `address`, and counts since the start."""
        return self._native.listeners()

    def restore(self, messages: Sequence[StoredMessage]) -> None:
        """Takes over messages of before the start, unless their topics have newer ones or were cleared since."""
        self._native.restore(messages)

    def retained_loaded(self) -> None:
        """All of them have come: subscriptions that wait for them get theirs."""
        self._native.retained_loaded()

    def reload(self) -> list[tuple[str, str | None]]:
        """Reads certificates, authorities and revocation lists anew.

        returns: each TLS listener with what was wrong with its files, or None; it goes on with what it has then

        Connections live on, except those of clients whose certificates are good no more.
        """
        return self._native.reload()

    def counters(self) -> dict[str, Any]:
        """The books of messages, one balanced snapshot, and counts of connections."""
        return self._native.counters()

    def ack_latency(self) -> dict[str, float]:
        """`p50_ms`, `p99_ms`, `max_ms`, `count`: from PUBLISH read to PUBACK handed to the socket."""
        return self._native.ack_latency()

    def unmatched(self) -> list[dict[str, Any]]:
        """Topics that no stream matched, most frequent first, each with a suggested stream."""
        return self._native.unmatched()

    def connected(self, client_id: str) -> bool:
        """Whether a client of this id is connected, or has a session that waits for it."""
        return self._native.connected(client_id)

    def clients(
        self, search: str = "", connected: bool | None = None, after: int = 0, limit: int = 100
    ) -> tuple[list[dict[str, Any]], int | None]:
        """Clients that are connected or have a session, in no particular order, and where the next page begins.

        search:    the beginning of the client id, or a pattern with `*` and `?`
        connected: only those that are, or only those that are away
        after:     where the page before said that this one begins
        """
        return self._native.clients(search, connected, after, limit)

    def client(self, client_id: str) -> dict[str, Any] | None:
        """What a client has and what waits for it; None where it is not connected and has no session."""
        return self._native.client(client_id)

    def last_close(self, client_id: str) -> tuple[int, str] | None:
        """When (ms since the epoch) the client's last connection ended and how: `client`, `lost` or a reason code."""
        return self._native.last_close(client_id)

    def kick(self, client_id: str, session: bool = False) -> str:
        """Ends a client's connection with 0x98, and its session where that is asked for.

        returns: `connection`, `session` (it was away), `away` (and keeps its session) or `unknown`
        """
        return self._native.kick(client_id, session)

    def trace(self, kind: Literal["client", "topic"], text: str) -> Trace:
        """Packets of a client id, or PUBLISH packets whose topic a filter matches, from now on. raises: TraceError"""
        return self._native.trace(kind, text)

    def events(self) -> list[dict[str, Any]]:
        """What operators should know, oldest first: refused connections, takeovers, protocol errors."""
        return self._native.events()

    def stop(self, drain_s: float) -> None:
        """Stops accepting, acknowledges what becomes durable within `drain_s`, closes every connection."""
        self._native.stop(drain_s)


def _native_listener(settings: ListenerSettings, directory: Path) -> dict[str, Any]:
    """A listener's settings with every file named."""
    values = settings.model_dump(exclude={"insecure", "max_connect_rate"})
    values["client_certificate"] = settings.clients
    if settings.has_tls:
        needs_ca = settings.clients != "none" and settings.client_ca is None
        if settings.certificate is None or needs_ca:
            # Few listeners need it, and all starts would wait for its libraries.
            from headwater.gateway.certificates import own_files

            own = own_files(directory, dt.datetime.now(dt.UTC))
            if settings.certificate is None:
                values |= {"certificate": own.certificate, "key": own.key}
            if needs_ca:
                values |= {"client_ca": own.ca, "crl": settings.crl or own.crl}
    return values


def declaration(
    name: str, stream: StreamSettings, schema: Schema, inferred: Sequence[InferredField] = ()
) -> dict[str, Any]:
    """A stream's declaration as the native decoder takes it.

    inferred: fields that messages have shown so far, where the stream infers them
    """
    fields = [
        (field, settings.type.value, settings.path or field) for field, settings in stream.fields.items()
    ]
    return {
        "schema": schema.id,
        "name": name,
        "topic": stream.topic,
        "format": stream.format,
        "time": stream.time.path if stream.time else None,
        "time_unit": stream.time.unit if stream.time else "auto",
        "fields": [*fields, *inferred],
        "infer": stream.infer,
        "protobuf": stream.protobuf.compiled if stream.protobuf else None,
    }


def decode(
    log: EmbeddedLog,
    name: str,
    stream: StreamSettings,
    schema: Schema,
    payload: bytes,
    received_at_us: int,
) -> tuple[Schema, pa.RecordBatch]:
    """Readings of an HTTP body, decoded by the same code as MQTT payloads.

    Without a topic the captured levels are taken from string fields of the same names.

    schema:  the stream's newest
    returns: the schema, a wider one where the stream infers its fields and the payload shows new ones; one row per
             reading, the schema's columns
    raises:  RecordError: what is wrong with the payload, or a reading without its key
    """
    captured = [(level, "string", level) for level in stream.captures]
    while True:
        inferred = log.inferred(schema.stream) if stream.infer else ()
        spec = declaration(name, stream, schema, inferred)
        spec["topic"] = "http"
        spec["fields"] = captured + spec["fields"]
        new = _native.undeclared(spec, payload) if stream.infer else []
        if not new:
            schema = log.newest(schema) if stream.infer else schema
            batch = _native.decode(spec, payload, received_at_us)
            return schema, batch.select([column.name for column in schema.columns])
        log.infer(schema, new)

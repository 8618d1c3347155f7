"""A fleet of simulated devices that plays telemetry, with labelled faults, over real MQTT.

The devices live in Rust (`crates/core/src/load`) on threads of their own; this is their face: options with
defaults, faults and fields written as text, reports. Everything a device says follows from the seed: reading
n of device d is the same bytes in every run with the same options and start time.

    simulate(FleetOptions(devices=100, duration_s=20, faults=(parse_fault("spike:d000007:temperature:10:1"),)))
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from headwater import _native
from headwater.declarations import parse_duration_us
from headwater.errors import ConfigError

#: The fleet in Rust, for the load generator too (`headwater/bench.py`).
NativeFleet = _native.Fleet

_DEVICE: Final = re.compile(r"d?(\d{1,8})")
_FAULT_FORM: Final = "KIND:DEVICE:FIELD:START:DURATION[:MAGNITUDE], such as spike:d000007:temperature:30:1"
_FIELD_FORM: Final = (
    "NAME:MEAN:SIGMA[:AMPLITUDE[:PERIOD[:DECIMALS]]], such as temperature:21.5:0.5 or humidity:45:1.5:5:24h:1"
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_POLL_S: Final = 0.05


class FaultKind(StrEnum):
    """What can go wrong with a device; the unit of the magnitude and its default stand behind it."""

    SPIKE = "spike"  # one reading, sigma, 6
    SHIFT = "shift"  # sigma, 3
    DRIFT = "drift"  # sigma per hour of event time, FleetOptions.drift_sigma_per_h
    STUCK = "stuck"  # the value before the start is repeated
    DROPOUT = "dropout"  # nothing is sent
    CLOCK_SKEW = "clock_skew"  # seconds that `ts` is off, FleetOptions.clock_skew_s

    @property
    def has_field(self) -> bool:
        """Whether it strikes one field; otherwise the device as a whole."""
        return self not in {FaultKind.DROPOUT, FaultKind.CLOCK_SKEW}


@dataclass(frozen=True, slots=True)
class Field:
    """How a field behaves: mean + amplitude * sin(2 pi t / period_s) + sigma * normal, t since the epoch.

    sigma:    standard deviation in the field's own unit; faults are multiples of it
    decimals: digits after the point in the payload, 0 to 9
    """

    name: str
    mean: float
    sigma: float
    amplitude: float = 0.0
    period_s: float = 86_400.0
    decimals: int = 2


#: A room sensor: degrees Celsius, percent, volts.
ROOM_SENSOR: Final = (
    Field("temperature", 21.5, 0.5, amplitude=2.0, decimals=2),
    Field("humidity", 45.0, 1.5, amplitude=5.0, decimals=1),
    Field("battery", 3.7, 0.01, decimals=3),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault to plant. Times are seconds of event time after the fleet's start.

    device:     index of the device, from 0; d000007 is 7
    field:      None exactly for dropout and clock skew
    duration_s: a spike is one reading, whatever its duration
    magnitude:  in the unit of the kind; None: the kind's default
    """

    kind: FaultKind
    device: int
    field: str | None
    start_s: float
    duration_s: float
    magnitude: float | None = None

    def __str__(self) -> str:
        """The text that `parse_fault` reads."""
        magnitude = "" if self.magnitude is None else f":{self.magnitude!r}"
        field = self.field or ""
        return f"{self.kind}:d{self.device:06}:{field}:{self.start_s!r}:{self.duration_s!r}{magnitude}"


@dataclass(frozen=True, slots=True)
class Label:
    """A planted fault as a detector should find it: the device's readings with start_us <= ts < end_us.

    start_us, end_us: event time, microseconds UTC; of clock skew: the time a right clock would have shown
    magnitude, unit:  None for stuck and dropout
    readings:         readings touched and sent so far (dropout: left out so far)
    """

    device: str
    field: str | None
    kind: FaultKind
    start_us: int
    end_us: int
    magnitude: float | None
    unit: str | None
    readings: int

    def json(self) -> str:
        """One line of JSON with the fields of this class."""
        return json.dumps(asdict(self), separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class FleetReport:
    """What a fleet did so far. At QoS 1 sent = acked + refused + in_flight, at any moment.

    sent:               messages, each counted once however often it was sent again
    acked, refused:     by PUBACK, refused with a reason code of 0x80 or more; 0 at QoS 0
    resent:             repetitions with DUP after a reconnect
    left_out:           readings that dropouts swallowed
    bytes:              of PUBLISH packets, repetitions included
    connections_behind: connections with readings due that the window or the server's absence holds back
    refused_connections, protocol_errors: CONNACKs that refused; connections given up for the server's errors
    ack_*_ms:           from PUBLISH to PUBACK; 0 before the first
    elapsed_s:          to now, or to the end of the fleet's work
    finished:           everything asked for was sent and, at QoS 1, answered
    last_error:         why a connection was last lost or refused
    """

    sent: int
    acked: int
    refused: int
    in_flight: int
    resent: int
    left_out: int
    bytes: int
    connections: int
    connections_up: int
    connections_behind: int
    reconnects: int
    refused_connections: int
    protocol_errors: int
    ack_p50_ms: float
    ack_p99_ms: float
    ack_max_ms: float
    elapsed_s: float
    finished: bool
    last_error: str | None
    labels: tuple[Label, ...]

    @property
    def messages_per_s(self) -> float:
        """Messages sent per second of `elapsed_s`."""
        return self.sent / self.elapsed_s if self.elapsed_s > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOptions:
    """What a fleet plays, and to whom.

    rate_per_device:  messages per second; 0: as fast as `window` un-acknowledged messages per connection allow
    threads:          0: one per core
    topic:            topic name with `{site}` and `{device}`; device d stands at site d mod `sites`
    client_prefix:    client ids are this and the connection's number; two fleets at one server need two
    faulty_fraction:  share of the devices that get one random fault each, of `fault_kinds`
    clock_skew_s:     behind by default: a clock that is ahead moves the watermark of everyone
    duration_s:       readings due before this are played, then the fleet is finished; None: endless
    messages:         of the whole fleet, spread evenly; None: endless
    start_time:       event time of the first reading, with a time zone; None: now
    time_scale:       seconds of event time per second of playing; at rate 0 milliseconds per reading
    drain_s:          how long stopping waits for outstanding acknowledgements
    """

    host: str = "127.0.0.1"
    port: int = 1883
    protocol: Literal["3.1.1", "5"] = "5"
    devices: int = 1_000
    rate_per_device: float = 1.0
    devices_per_connection: int = 1
    qos: int = 1
    window: int = 100
    threads: int = 0
    seed: int = 1
    topic: str = "dt/{site}/{device}/telemetry"
    client_prefix: str = "sim-"
    sites: int = 10
    fields: tuple[Field, ...] = ROOM_SENSOR
    faults: tuple[Fault, ...] = ()
    faulty_fraction: float = 0.0
    fault_kinds: tuple[FaultKind, ...] = tuple(FaultKind)
    drift_sigma_per_h: float = 0.1
    clock_skew_s: float = -120.0
    duration_s: float | None = None
    messages: int | None = None
    start_time: datetime | None = None
    time_scale: float = 1.0
    keep_alive_s: int = 60
    user_name: str | None = None
    password: bytes | None = None
    drain_s: float = 5.0


class Fleet:
    """A running fleet: `report` at any time, `stop` once. As a context manager it stops at the end."""

    def __init__(self, options: FleetOptions) -> None:
        """Starts it. Connections come up in the background; a server that is away is tried for ever.

        raises: ConfigError for options that cannot be played, OSError for too many connections
        """
        try:
            self._native: _native.Fleet | None = _native.Fleet(_native_options(options))
        except (ValueError, OverflowError, TypeError) as error:
            raise ConfigError(f"cannot start a fleet: {error}") from error
        self._last: FleetReport | None = None

    def report(self) -> FleetReport:
        """A snapshot; after `stop` the final one."""
        if self._native is None and self._last is not None:
            return self._last
        assert self._native is not None
        return _report(self._native.report())

    def stop(self) -> FleetReport:
        """Sends nothing new, waits up to `drain_s` for acknowledgements, disconnects."""
        if self._native is not None:
            self._last = _report(self._native.stop())
            self._native = None
        return self.report()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def simulate(
    options: FleetOptions,
    *,
    labels: Path | None = None,
    progress: Callable[[FleetReport], None] | None = None,
    progress_interval_s: float = 1.0,
    connect_timeout_s: float = 10.0,
    stop: threading.Event | None = None,
) -> FleetReport:
    """Plays a fleet until it is finished, `stop` is set or Ctrl-C is pressed, and gives its final report.

    labels:            written at the end, one JSON object a line: the fields of `Label`
    progress:          called about every `progress_interval_s` seconds, on this thread
    connect_timeout_s: how long to wait for the first connection
    raises:            ConfigError, OSError; ConnectionError when no connection came up in time
    """
    stop = stop or threading.Event()
    fleet = Fleet(options)
    try:
        started = next_progress = time.monotonic()
        was_up = False
        while not stop.wait(_POLL_S):
            report, now = fleet.report(), time.monotonic()
            was_up = was_up or report.connections_up > 0 or report.sent > 0
            if report.finished:
                break
            if not was_up and now - started > connect_timeout_s:
                why = report.last_error or "no answer"
                raise ConnectionError(
                    f"no device could connect to {options.host}:{options.port} within "
                    f"{connect_timeout_s:g} s: {why}; is the server running there?"
                )
            if progress is not None and now >= next_progress:
                next_progress = now + progress_interval_s
                progress(report)
    except KeyboardInterrupt:
        pass
    finally:
        final = fleet.stop()
    if labels is not None:
        write_labels(labels, final.labels)
    return final


def write_labels(path: Path, labels: Iterable[Label]) -> None:
    """Writes labels as JSON lines, replacing the file."""
    path.write_text("".join(f"{label.json()}\n" for label in labels), encoding="utf-8")


def parse_fault(text: str) -> Fault:
    """Reads KIND:DEVICE:FIELD:START:DURATION[:MAGNITUDE]; FIELD is empty or - for dropout and clock_skew.

    START and DURATION are seconds or durations such as 5m. Raises ConfigError naming the part that is wrong.

    >>> parse_fault("spike:d000007:temperature:30:1").device
    7
    """
    parts = text.strip().split(":")
    if len(parts) not in {5, 6}:
        raise ConfigError(f"fault {text!r} has {len(parts)} part(s); write {_FAULT_FORM}")
    kind_text = parts[0].strip().replace("-", "_")
    if kind_text not in list(FaultKind):
        near = get_close_matches(kind_text, list(FaultKind), n=1)
        hint = f"did you mean {near[0]}?" if near else f"kinds are {', '.join(FaultKind)}"
        raise ConfigError(f"fault {text!r}: unknown kind {parts[0]!r}; {hint}")
    kind = FaultKind(kind_text)
    device = _DEVICE.fullmatch(parts[1].strip())
    if device is None:
        raise ConfigError(f"fault {text!r}: {parts[1]!r} is no device; write d000007 or 7")
    field = parts[2].strip()
    if field == "-":
        field = ""
    if kind.has_field and not field:
        raise ConfigError(f"fault {text!r}: {kind} strikes one field, but none is named; write {_FAULT_FORM}")
    if not kind.has_field and field:
        raise ConfigError(f"fault {text!r}: {kind} strikes the whole device; leave {field!r} out")
    if len(parts) == 6 and kind in {FaultKind.STUCK, FaultKind.DROPOUT}:
        raise ConfigError(f"fault {text!r}: {kind} has no magnitude; leave {parts[5]!r} out")
    return Fault(
        kind=kind,
        device=int(device[1]),
        field=field or None,
        start_s=_seconds(text, "START", parts[3]),
        duration_s=_seconds(text, "DURATION", parts[4]),
        magnitude=_number(text, "MAGNITUDE", parts[5]) if len(parts) == 6 else None,
    )


def parse_field(text: str) -> Field:
    """Reads NAME:MEAN:SIGMA[:AMPLITUDE[:PERIOD[:DECIMALS]]]. Raises ConfigError naming the part that is wrong.

    >>> parse_field("humidity:45:1.5:5:24h:1").period_s
    86400.0
    """
    parts = text.strip().split(":")
    if not 3 <= len(parts) <= 6 or not parts[0].strip():
        raise ConfigError(f"field {text!r}: write {_FIELD_FORM}")
    decimals = _number(text, "DECIMALS", parts[5]) if len(parts) > 5 else 2.0
    if not decimals.is_integer():
        raise ConfigError(f"field {text!r}: DECIMALS is {parts[5]!r}; give a whole number from 0 to 9")
    return Field(
        name=parts[0].strip(),
        mean=_number(text, "MEAN", parts[1]),
        sigma=_number(text, "SIGMA", parts[2]),
        amplitude=_number(text, "AMPLITUDE", parts[3]) if len(parts) > 3 else 0.0,
        period_s=_seconds(text, "PERIOD", parts[4]) if len(parts) > 4 else 86_400.0,
        decimals=int(decimals),
    )


def _number(text: str, part: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if number - number != 0:  # true of NaN and of infinities
        raise ConfigError(f"{text!r}: {part} is {value!r}; give a number")
    return number


def _seconds(text: str, part: str, value: str) -> float:
    try:
        duration_us = parse_duration_us(value)
    except ValueError:
        return _number(text, part, value)
    assert isinstance(duration_us, int)
    return duration_us / 1e6


def _native_options(options: FleetOptions) -> dict[str, Any]:
    """The options as the native class takes them: plain values, the address resolved, times as numbers."""
    plain = asdict(options)
    del plain["host"], plain["port"], plain["start_time"]
    plain["address"] = resolve(options.host, options.port)
    plain["generator"] = None
    plain["fault_kinds"] = [str(kind) for kind in options.fault_kinds]
    plain["fields"] = [asdict(field) for field in options.fields]
    plain["faults"] = [{**asdict(fault), "kind": str(fault.kind)} for fault in options.faults]
    plain["start_time_us"] = None
    if options.start_time is not None:
        if options.start_time.tzinfo is None:
            raise ConfigError(f"start_time {options.start_time} has no time zone; add one, such as +00:00")
        plain["start_time_us"] = (options.start_time - _EPOCH) // timedelta(microseconds=1)
    return plain


def resolve(host: str, port: int) -> str:
    """`address:port` of the first TCP address of `host`."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot find the MQTT server {host}:{port}: {error}") from error
    family, _, _, _, address = found[0]
    ip = address[0]
    assert isinstance(ip, str)
    return f"[{ip}]:{port}" if family == socket.AF_INET6 else f"{ip}:{port}"


def _report(values: dict[str, Any]) -> FleetReport:
    labels = tuple(Label(**{**label, "kind": FaultKind(label["kind"])}) for label in values["labels"])
    names = {field.name for field in fields(FleetReport)} - {"labels"}
    return FleetReport(**{name: values[name] for name in names}, labels=labels)

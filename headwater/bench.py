"""The load generator's face: any number of connections that publish, subscribe or idle against any MQTT server.

The connections live in Rust (`crates/core/src/load`), the same that play simulated fleets. Sending begins when all
connections are up and time counts from then on; it ends when the server has answered for everything: QoS 1 by the last
PUBACK, QoS 0 by the PINGRESP behind the last message, so that socket buffers never count as throughput.

    run(BenchOptions(connections=50, devices_per_connection=20_000, qos=1, duration_s=10))
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from headwater.errors import ConfigError, HeadwaterError
from headwater.simulate import NativeFleet, resolve

#: One reading of three fields; `{ts_us}` is what subscribers take the latency from.
PAYLOAD: Final = (
    '{"device_id":"{device}","ts":{ts_us},"temperature":{random:20.0:30.0},'
    '"humidity":{random:40.0:50.0},"battery":{random:3.000:4.000}}'
)
_POLL_S: Final = 0.05
#: Deliveries are over when none has come for so long.
_QUIET_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to run.

    connections:            that publish, or idle
    devices_per_connection: devices that each of them speaks for in turn
    rate:                   messages per second of all together, one per write; 0: flat out
    window:                 un-acknowledged QoS 1 messages per connection
    payload:                text with `{device}`, `{seq}`, `{ts}`, `{ts_ms}`, `{ts_us}`, `{random:A:B}`, `{fill:N}`;
                            bytes are sent as they are
    topic:                  topic name with `{device}` (and `{site}`, one of ten)
    one_per_write:          flat out with one PUBLISH per write instead of as many as fit
    at_most:                flat out, but so many messages per second of all together, many per write; 0: no bound
    idle:                   connect and hold, publish nothing
    subscribers, filter:    connections that subscribe, beside the others
    timestamp_after:        what stands before the time of sending in a payload; empty: no latency of deliveries
    connects_per_s:         new connections per second; 0: as fast as the server takes them
    duration_s, messages:   end after this time or so many messages, whichever comes first
    connect_timeout_s:      after it the run begins with the connections that are up
    drain_s:                how long to wait for outstanding answers and deliveries
    """

    host: str = "127.0.0.1"
    port: int = 1883
    protocol: Literal["3.1.1", "5"] = "5"
    connections: int = 50
    devices_per_connection: int = 1
    rate: float = 0.0
    qos: int = 1
    window: int = 100
    payload: str | bytes = PAYLOAD
    topic: str = "dt/bench/{device}/telemetry"
    one_per_write: bool = False
    at_most: float = 0.0
    idle: bool = False
    subscribers: int = 0
    filter: str = "#"
    subscribe_qos: int = 0
    timestamp_after: str = '"ts":'
    connects_per_s: float = 0.0
    duration_s: float | None = 10.0
    messages: int | None = None
    threads: int = 0
    client_prefix: str = "bench-"
    keep_alive_s: int = 60
    user_name: str | None = None
    password: bytes | None = None
    connect_timeout_s: float = 120.0
    drain_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles in milliseconds; all 0 without any."""

    count: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What came of it.

    sent, acked, refused: messages; at QoS 1 sent = acked + refused + unanswered
    received:             messages that subscribers were sent
    elapsed_s:            from the first message to the last answer
    connect_s:            until all connections were up, or the run began without the rest
    cpu_s:                CPU of this process while it ran: the generator's own cost
    errors:               how often each went wrong: `PUBACK 0x97`, `CONNACK 0x05`, `connecting`, `reading`
    histograms:           of ack, connect and delivery: (microseconds, count) of each step, three digits
    """

    connections: int
    connections_up: int
    connect_s: float
    sent: int
    acked: int
    refused: int
    unanswered: int
    resent: int
    received: int
    bytes: int
    elapsed_s: float
    messages_per_s: float
    received_per_s: float
    cpu_s: float
    cpu_us_per_message: float
    ack: Latency
    connect: Latency
    delivery: Latency
    errors: dict[str, int]
    last_error: str | None
    histograms: dict[str, list[tuple[int, int]]]

    def json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report as a person reads it."""
        answers = (
            f"{self.acked:,} acknowledged, {self.refused:,} refused, {self.unanswered:,} unanswered, "
            f"{self.resent:,} sent again"
        )
        lines = [
            f"connections {self.connections_up:,} of {self.connections:,} up after {self.connect_s:.2f} s",
            f"sent        {self.sent:,}, {answers}",
            f"rate        {self.messages_per_s:,.0f} messages/s over {self.elapsed_s:.2f} s",
            f"generator   {self.cpu_s:.2f} s of CPU, {self.cpu_us_per_message:.3f} us a message",
        ]
        if self.received:
            lines.insert(3, f"received    {self.received:,}, {self.received_per_s:,.0f}/s")
        for name in ("connect", "ack", "delivery"):
            found: Latency = getattr(self, name)
            if found.count:
                lines.append(
                    f"{name:11} p50 {found.p50_ms:.2f}, p90 {found.p90_ms:.2f}, p99 {found.p99_ms:.2f}, "
                    f"p99.9 {found.p999_ms:.2f}, max {found.max_ms:.2f} ms"
                )
        lines += [f"error       {what}: {count:,}" for what, count in sorted(self.errors.items())]
        if self.last_error is not None:
            lines.append(f"last error  {self.last_error}")
        return lines


def run(
    options: BenchOptions,
    *,
    progress: Callable[[dict[str, Any]], None] | None = None,
    progress_interval_s: float = 1.0,
    stop: threading.Event | None = None,
) -> BenchReport:
    """Runs to its end, until `stop` is set or Ctrl-C is pressed.

    progress: called about every `progress_interval_s` seconds with the counters so far, on this thread
    raises:   ConfigError for options that cannot be run; HeadwaterError when no connection came up, and for more
              connections than this process may open
    """
    stop = stop or threading.Event()
    try:
        fleet = NativeFleet(_native_options(options))
    except (ValueError, OverflowError, TypeError) as error:
        raise ConfigError(f"cannot run the load: {error}") from error
    except OSError as error:
        several = "or run several `headwater bench` side by side, each with its own --prefix"
        raise HeadwaterError(f"cannot run the load: {error}, {several}") from error
    try:
        connect_s = _connect(fleet, options, stop)
        cpu_s = _cpu_s()
        _follow(fleet, options, stop, progress, progress_interval_s)
        cpu_s = _cpu_s() - cpu_s
        up = fleet.report()
        histograms = fleet.histograms()
    finally:
        final = fleet.stop()
    return _report(options, {**final, "connections_up": up["connections_up"]}, connect_s, cpu_s, histograms)


def _connect(fleet: NativeFleet, options: BenchOptions, stop: threading.Event) -> float:
    """Waits for the connections; returns how long it took."""
    begin = time.monotonic()
    while not fleet.is_open():
        waited_s = time.monotonic() - begin
        if waited_s > options.connect_timeout_s or stop.is_set():
            report = fleet.report()
            if report["connections_up"] == 0:
                why = report["last_error"] or "no answer"
                raise HeadwaterError(
                    f"no connection to {options.host}:{options.port} came up within {waited_s:.0f} s: {why}; "
                    "is the server running there?"
                )
            fleet.open()
        stop.wait(0.002)
    return time.monotonic() - begin


def _follow(
    fleet: NativeFleet,
    options: BenchOptions,
    stop: threading.Event,
    progress: Callable[[dict[str, Any]], None] | None,
    progress_interval_s: float,
) -> None:
    """Until everything is sent and answered, and subscribers have been quiet for a moment."""
    begin = time.monotonic()
    next_progress = begin + progress_interval_s
    end = None if options.duration_s is None else begin + options.duration_s + options.drain_s
    received, quiet_since = 0, begin
    try:
        while not stop.is_set():
            report, now = fleet.report(), time.monotonic()
            if report["received"] != received:
                received, quiet_since = report["received"], now
            if report["finished"] and (not options.subscribers or now - quiet_since >= _QUIET_S):
                return
            if end is not None and now >= end:
                return
            if progress is not None and now >= next_progress:
                next_progress += progress_interval_s
                progress(report)
            stop.wait(_POLL_S)
    except KeyboardInterrupt:
        return


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _native_options(options: BenchOptions) -> dict[str, Any]:
    devices = options.connections * options.devices_per_connection
    if options.rate < 0:
        raise ConfigError(f"rate is {options.rate}: give messages per second, 0 for flat out")
    publishes = devices > 0 and not options.idle
    if publishes and options.duration_s is None and options.messages is None and options.rate == 0:
        raise ConfigError("flat out without an end: give a duration or a number of messages")
    return {
        "address": resolve(options.host, options.port),
        "protocol": options.protocol,
        "devices": devices,
        "rate_per_device": options.rate / devices if publishes else 0.0,
        "devices_per_connection": options.devices_per_connection,
        "qos": options.qos,
        "window": options.window,
        "threads": options.threads,
        "seed": 1,
        "topic": options.topic,
        "client_prefix": options.client_prefix,
        "sites": 10,
        # Not sent, since there is a payload; a fleet has one field at least.
        "fields": [{"name": "x", "mean": 0, "sigma": 0, "amplitude": 0, "period_s": 1, "decimals": 0}],
        "faults": [],
        "faulty_fraction": 0.0,
        "fault_kinds": [],
        "drift_sigma_per_h": 0.0,
        "clock_skew_s": 0.0,
        "duration_s": options.duration_s,
        "messages": options.messages,
        "start_time_us": None,
        "time_scale": 1.0,
        "keep_alive_s": options.keep_alive_s,
        "user_name": options.user_name,
        "password": options.password,
        "drain_s": options.drain_s,
        "generator": {
            "payload": options.payload,
            "one_per_write": options.one_per_write,
            "at_most_per_s": options.at_most,
            "idle": options.idle,
            "connects_per_s": options.connects_per_s,
            "subscribers": options.subscribers,
            "filter": options.filter,
            "subscribe_qos": options.subscribe_qos,
            "timestamp_after": options.timestamp_after.encode(),
        },
    }


def _report(
    options: BenchOptions,
    found: dict[str, Any],
    connect_s: float,
    cpu_s: float,
    histograms: dict[str, list[tuple[int, int]]],
) -> BenchReport:
    answered = found["acked"] + found["refused"] if options.qos else found["sent"]
    elapsed_s = max(found["elapsed_s"], 1e-9)
    return BenchReport(
        connections=found["connections"],
        connections_up=found["connections_up"],
        connect_s=connect_s,
        sent=found["sent"],
        acked=found["acked"],
        refused=found["refused"],
        unanswered=found["in_flight"],
        resent=found["resent"],
        received=found["received"],
        bytes=found["bytes"],
        elapsed_s=found["elapsed_s"],
        messages_per_s=answered / elapsed_s,
        received_per_s=found["received"] / elapsed_s,
        cpu_s=cpu_s,
        cpu_us_per_message=cpu_s / max(found["sent"] + found["received"], 1) * 1e6,
        ack=Latency(**found["ack"]),
        connect=Latency(**found["connect"]),
        delivery=Latency(**found["delivery"]),
        errors=found["errors"],
        last_error=found["last_error"],
        histograms=histograms,
    )

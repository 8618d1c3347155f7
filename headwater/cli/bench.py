"""`headwater bench pub | sub | conn`: the load generator against any MQTT server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from headwater import bench, messages
from headwater.bench import BenchOptions
from headwater.cli.face import DataDirOption, MqttOption, fail, failures, out
from headwater.errors import ConfigError

bench_app = typer.Typer(no_args_is_help=True, help="Generate load against any MQTT server.")

ConnectionsOption = Annotated[int, typer.Option("--connections", "-c", help="Connections.")]
QosOption = Annotated[int, typer.Option("--qos", "-q", min=0, max=1)]
SecondsOption = Annotated[float, typer.Option("--seconds", "-s", help="How long; counts when all are up.")]
RampOption = Annotated[float, typer.Option("--ramp", help="New connections per second; 0: no bound.")]
ThreadsOption = Annotated[int, typer.Option("--threads", help="0: one per core.")]
PrefixOption = Annotated[str, typer.Option("--prefix", help="Of client ids.")]
KeepAliveOption = Annotated[int, typer.Option("--keep-alive", help="Seconds; 0: off.")]
ProtocolOption = Annotated[str, typer.Option("--protocol", help="3.1.1 or 5.")]
UserOption = Annotated[str | None, typer.Option("--user", help="User name.")]
PasswordOption = Annotated[
    str | None, typer.Option("--password", envvar="HEADWATER_BENCH_PASSWORD", help="Password.")
]
AfterOption = Annotated[
    str, typer.Option("--timestamp-after", help="What stands before the time of sending in a payload.")
]
ReportOption = Annotated[bool, typer.Option("--json", help="The report as one JSON object, with histograms.")]


@bench_app.command("pub")
@failures
def bench_pub(
    mqtt: MqttOption = None,
    data_dir: DataDirOption = None,
    connections: ConnectionsOption = 50,
    devices: Annotated[int, typer.Option(help="Devices per connection, in turn.")] = 1,
    rate: Annotated[float, typer.Option(help="Messages per second of all, one per write; 0: flat out.")] = 0,
    connection_rate: Annotated[
        float, typer.Option(help="Messages per second and connection, instead of --rate.")
    ] = 0,
    qos: QosOption = 1,
    window: Annotated[int, typer.Option(help="Un-acknowledged messages per connection.")] = 100,
    payload: Annotated[
        str,
        typer.Option(
            help="Text with {device} {seq} {ts} {ts_ms} {ts_us} {random:A:B} {fill:N}; @FILE: a file."
        ),
    ] = bench.PAYLOAD,
    topic: Annotated[str, typer.Option(help="Topic name with {device}.")] = "dt/bench/{device}/telemetry",
    one_per_write: Annotated[bool, typer.Option(help="Flat out, but one PUBLISH per write.")] = False,
    at_most: Annotated[
        float, typer.Option(help="Flat out, but so many messages per second of all; 0: no bound.")
    ] = 0,
    subscribers: Annotated[int, typer.Option(help="Subscribing connections beside them.")] = 0,
    topic_filter: Annotated[str, typer.Option("--filter", help="What they subscribe to.")] = "#",
    sub_qos: Annotated[int, typer.Option(min=0, max=1, help="At which QoS.")] = 0,
    timestamp_after: AfterOption = '"ts":',
    seconds: SecondsOption = 10,
    count: Annotated[int | None, typer.Option("--messages", help="End after so many messages.")] = None,
    ramp: RampOption = 0,
    threads: ThreadsOption = 0,
    prefix: PrefixOption = "bench-",
    keep_alive: KeepAliveOption = 60,
    protocol: ProtocolOption = "5",
    user: UserOption = None,
    password: PasswordOption = None,
    json: ReportOption = False,
) -> None:
    """Publish; with --subscribers also measure the way to them."""
    host, port = messages.address_of(mqtt, data_dir)
    _run(
        BenchOptions(
            host=host,
            port=port,
            protocol=_protocol(protocol),
            connections=connections,
            devices_per_connection=devices,
            rate=connection_rate * connections or rate,
            qos=qos,
            window=window,
            payload=_payload(payload),
            topic=topic,
            one_per_write=one_per_write,
            at_most=at_most,
            subscribers=subscribers,
            filter=topic_filter,
            subscribe_qos=sub_qos,
            timestamp_after=timestamp_after,
            connects_per_s=ramp,
            duration_s=seconds,
            messages=count,
            threads=threads,
            client_prefix=prefix,
            keep_alive_s=keep_alive,
            user_name=user,
            password=password.encode() if password is not None else None,
        ),
        json,
    )


@bench_app.command("sub")
@failures
def bench_sub(
    mqtt: MqttOption = None,
    data_dir: DataDirOption = None,
    connections: ConnectionsOption = 1,
    topic_filter: Annotated[str, typer.Option("--filter", help="Topic filter.")] = "#",
    qos: QosOption = 0,
    timestamp_after: AfterOption = '"ts":',
    seconds: SecondsOption = 10,
    ramp: RampOption = 0,
    threads: ThreadsOption = 0,
    prefix: PrefixOption = "bench-sub-",
    keep_alive: KeepAliveOption = 60,
    protocol: ProtocolOption = "5",
    user: UserOption = None,
    password: PasswordOption = None,
    json: ReportOption = False,
) -> None:
    """Subscribe, count and take latencies from the time that payloads state."""
    host, port = messages.address_of(mqtt, data_dir)
    _run(
        BenchOptions(
            host=host,
            port=port,
            protocol=_protocol(protocol),
            connections=0,
            subscribers=connections,
            filter=topic_filter,
            subscribe_qos=qos,
            timestamp_after=timestamp_after,
            connects_per_s=ramp,
            duration_s=seconds,
            threads=threads,
            client_prefix=prefix,
            keep_alive_s=keep_alive,
            user_name=user,
            password=password.encode() if password is not None else None,
        ),
        json,
    )


@bench_app.command("conn")
@failures
def bench_conn(
    mqtt: MqttOption = None,
    data_dir: DataDirOption = None,
    connections: ConnectionsOption = 1_000,
    seconds: SecondsOption = 10,
    ramp: RampOption = 0,
    threads: ThreadsOption = 0,
    prefix: PrefixOption = "bench-",
    keep_alive: KeepAliveOption = 60,
    protocol: ProtocolOption = "5",
    user: UserOption = None,
    password: PasswordOption = None,
    json: ReportOption = False,
) -> None:
    """Connect and hold the connections idle."""
    host, port = messages.address_of(mqtt, data_dir)
    _run(
        BenchOptions(
            host=host,
            port=port,
            protocol=_protocol(protocol),
            connections=connections,
            idle=True,
            connects_per_s=ramp,
            duration_s=seconds,
            threads=threads,
            client_prefix=prefix,
            keep_alive_s=keep_alive,
            user_name=user,
            password=password.encode() if password is not None else None,
        ),
        json,
    )


def _protocol(text: str) -> Any:
    if text not in ("3.1.1", "5"):
        fail(f"--protocol {text}: it is 3.1.1 or 5")
    return text


def _payload(text: str) -> str | bytes:
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_bytes()
    except OSError as error:
        raise ConfigError(f"reading the payload {text[1:]}: {error.strerror}") from error


def _run(options: BenchOptions, json: bool) -> None:
    """Runs it with a line a second, then prints the report."""
    last = {"at": time.monotonic(), "sent": 0, "received": 0}

    def show(found: dict[str, Any]) -> None:
        now = time.monotonic()
        secs, sent = (
            now - last["at"],
            found["acked"] if options.qos and options.connections else found["sent"],
        )
        line = f"{found['connections_up']} connected, {(sent - last['sent']) / secs:,.0f} messages/s"
        if found["ack"]["count"]:
            line += f", ack p50 {found['ack']['p50_ms']:.1f} ms, p99 {found['ack']['p99_ms']:.1f} ms"
        if options.subscribers:
            line += f", {(found['received'] - last['received']) / secs:,.0f} received/s"
        if found["delivery"]["count"]:
            line += f", delivery p99 {found['delivery']['p99_ms']:.1f} ms"
        out.print(line, highlight=False, markup=False)
        last.update(at=now, sent=sent, received=found["received"])

    report = bench.run(options, progress=None if json else show)
    if json:
        print(orjson.dumps(report.json()).decode())  # noqa: T201
        return
    for line in report.lines():
        print(line)  # noqa: T201

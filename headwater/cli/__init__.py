"""The `headwater` command: verbs over the pipeline and the API."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Annotated

import orjson
import typer

import headwater
from headwater import messages, reference
from headwater.cli import objects
from headwater.cli.alarms import alarms_app, silences_app
from headwater.cli.bench import bench_app
from headwater.cli.clients import clients_app, trace
from headwater.cli.deadletters import deadletters_app
from headwater.cli.face import (
    ConfigOption,
    DataDirOption,
    JsonOption,
    MqttOption,
    PasswordOption,
    SetOption,
    TokenOption,
    UrlOption,
    UserOption,
    client_of,
    fail,
    failures,
    out,
    settings_of,
    show,
)
from headwater.cli.notify import notify_app
from headwater.cli.security import ca_app, passwd

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Device data: durable before it is acknowledged."
)
config_app = typer.Typer(no_args_is_help=True, help="Check and show the configuration.")
listeners_app = typer.Typer(no_args_is_help=True, help="Listeners of devices and their certificates.")
streams_app = typer.Typer(no_args_is_help=True, help="Streams, and topics that no stream matches.")
app.add_typer(alarms_app, name="alarms")
app.add_typer(silences_app, name="silences")
app.add_typer(notify_app, name="notify")
app.add_typer(bench_app, name="bench")
app.add_typer(config_app, name="config")
app.add_typer(listeners_app, name="listeners")
app.add_typer(streams_app, name="streams")
app.command()(objects.plan)
app.command()(objects.apply)
app.command()(objects.export)
app.add_typer(objects.objects_app, name="objects")
app.add_typer(deadletters_app, name="deadletters")
app.add_typer(ca_app, name="ca")
app.add_typer(clients_app, name="clients")
app.command()(trace)
app.command()(passwd)


@app.command()
@failures
def up(config: ConfigOption = None, data_dir: DataDirOption = None, set_: SetOption = None) -> None:
    """Run everything until SIGTERM or SIGINT."""
    from headwater.serve import serve

    serve(settings_of(config, data_dir, set_))


@app.command()
@failures
def init(path: Annotated[Path, typer.Argument(help="File to write.")] = Path("headwater.toml")) -> None:
    """Write a commented configuration."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(reference.commented_config())
    except FileExistsError:
        fail(f"writing {path}: it exists already; name another file or remove it first")
    out.print(f"wrote {path}; next: headwater up --config {path}", highlight=False)


@app.command()
@failures
def demo(
    devices: Annotated[int, typer.Option(help="Devices, one message a second each.")] = 1000,
    seconds: Annotated[
        float, typer.Option(envvar="DEMO_SECONDS", help="End by itself after this; 0: run until Ctrl-C.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the fleet and its faults.")] = 1,
    keep: Annotated[Path | None, typer.Option(help="Keep the data in this directory.")] = None,
) -> None:
    """Start everything with a simulated fleet and watch it."""
    from headwater.demo import run_demo

    raise typer.Exit(run_demo(devices=devices, seconds=seconds, seed=seed, keep=keep))


@app.command()
@failures
def simulate(
    mqtt: MqttOption = None,
    data_dir: DataDirOption = None,
    devices: Annotated[int, typer.Option(help="Devices.")] = 1000,
    rate: Annotated[
        float, typer.Option(help="Messages per second and device; 0: as fast as possible.")
    ] = 1.0,
    per_connection: Annotated[int, typer.Option(help="Devices that share a connection.")] = 1,
    qos: Annotated[int, typer.Option(min=0, max=1)] = 1,
    window: Annotated[int, typer.Option(help="Un-acknowledged messages per connection.")] = 100,
    protocol: Annotated[str, typer.Option(help="3.1.1 or 5.")] = "5",
    topic: Annotated[
        str, typer.Option(help="Topic name with {site} and {device}.")
    ] = "dt/{site}/{device}/telemetry",
    seconds: Annotated[float | None, typer.Option(help="Play so long; default: until Ctrl-C.")] = None,
    messages_: Annotated[int | None, typer.Option("--messages", help="Messages of the whole fleet.")] = None,
    seed: Annotated[int, typer.Option(help="Everything the fleet does follows from it.")] = 1,
    field: Annotated[
        list[str] | None, typer.Option(help="NAME:MEAN:SIGMA[:AMPLITUDE[:PERIOD[:DECIMALS]]].")
    ] = None,
    fault: Annotated[
        list[str] | None, typer.Option(help="KIND:DEVICE:FIELD:START:DURATION[:MAGNITUDE]; may be repeated.")
    ] = None,
    faulty: Annotated[float, typer.Option(help="Share of devices that get one random fault each.")] = 0.0,
    labels: Annotated[
        Path | None, typer.Option(help="Write the planted faults here, one JSON object a line.")
    ] = None,
    threads: Annotated[int, typer.Option(help="0: one per core.")] = 0,
) -> None:
    """Play a fleet of devices with labelled faults over real MQTT."""
    from headwater import simulate as fleet

    if protocol not in ("3.1.1", "5"):
        fail(f"--protocol {protocol}: it is 3.1.1 or 5")
    host, port = messages.address_of(mqtt, data_dir)
    options = fleet.FleetOptions(
        host=host,
        port=port,
        protocol="5" if protocol == "5" else "3.1.1",
        devices=devices,
        rate_per_device=rate,
        devices_per_connection=per_connection,
        qos=qos,
        window=window,
        threads=threads,
        seed=seed,
        topic=topic,
        fields=tuple(map(fleet.parse_field, field)) if field else fleet.ROOM_SENSOR,
        faults=tuple(map(fleet.parse_fault, fault or ())),
        faulty_fraction=faulty,
        duration_s=seconds,
        messages=messages_,
    )

    def show(report: fleet.FleetReport) -> None:
        out.print(
            f"{report.connections_up} connected, {report.sent:,} sent, {report.acked:,} acknowledged, "
            f"p50 {report.ack_p50_ms:.1f} ms, p99 {report.ack_p99_ms:.1f} ms",
            highlight=False,
        )

    try:
        report = fleet.simulate(options, labels=labels, progress=show)
    except OSError as error:
        fail(str(error))
    show(report)
    out.print(
        f"{report.messages_per_s:,.0f} messages/s, {report.refused} refused, {report.in_flight} unanswered, "
        f"{report.resent} sent again, {report.left_out} left out by dropouts",
        highlight=False,
    )


@app.command()
@failures
def doctor(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    set_: SetOption = None,
    devices: Annotated[int | None, typer.Option(help="Also say what so many devices need.")] = None,
    rate: Annotated[float, typer.Option(help="Messages per second and device, for --devices.")] = 1.0,
    json: JsonOption = False,
) -> None:
    """Say what limits this machine and what to set; exit code 1 when something must be changed."""
    from headwater import doctor as checks

    examination = checks.examine(settings_of(config, data_dir, set_), devices=devices, rate=rate)
    lines = examination.json_lines() if json else examination.lines()
    for line in lines:
        print(line)  # noqa: T201
    if examination.fails:
        raise typer.Exit(1)


@app.command()
@failures
def query(
    sql: Annotated[str, typer.Argument(help="One read-only SELECT.")],
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Run one SELECT over streams, query results and dead letters."""
    with client_of(url, data_dir, token) as client:
        show(client.query(sql).to_pylist(), json)


@app.command()
@failures
def pub(
    topic: Annotated[str, typer.Argument(help="Topic name.")],
    payload: Annotated[str, typer.Argument(help="Payload; - reads standard input, one message per line.")],
    mqtt: MqttOption = None,
    data_dir: DataDirOption = None,
    qos: Annotated[int, typer.Option(min=0, max=1)] = 1,
    retain: bool = False,
    user: UserOption = None,
    password: PasswordOption = None,
) -> None:
    """Publish messages and wait until they are acknowledged."""
    lines = sys.stdin.buffer.read().splitlines() if payload == "-" else [payload.encode()]
    credentials = (user, password) if user is not None else None
    address = messages.address_of(mqtt, data_dir)
    sent = messages.publish(address, topic, lines, qos=qos, retain=retain, credentials=credentials)
    out.print(f"{sent} acknowledged" if qos else f"{sent} sent", highlight=False)


@app.command()
@failures
def sub(
    topic_filter: Annotated[str, typer.Argument(help="Topic filter.")] = "#",
    mqtt: MqttOption = None,
    data_dir: DataDirOption = None,
    count: Annotated[int, typer.Option(help="End after so many messages; 0: until Ctrl-C.")] = 0,
    user: UserOption = None,
    password: PasswordOption = None,
    json: JsonOption = False,
) -> None:
    """Print messages as they come."""
    credentials = (user, password) if user is not None else None
    address = messages.address_of(mqtt, data_dir)
    for message in messages.subscribe(address, topic_filter, count=count, credentials=credentials):
        if json:
            line = {"topic": message.topic, "qos": message.qos, "retain": message.retain}
            text = orjson.dumps({**line, "payload": base64.b64encode(message.payload).decode()}).decode()
        else:
            text = f"{message.topic} {message.payload.decode(errors='replace')}"
        print(text, flush=True)  # noqa: T201


@streams_app.command("list")
@failures
def streams_list(
    url: UrlOption = None, data_dir: DataDirOption = None, token: TokenOption = None, json: JsonOption = False
) -> None:
    """Streams and query results with their columns."""
    with client_of(url, data_dir, token) as client:
        rows = client.streams()
    for row in rows if not json else []:
        row["columns"] = ", ".join(f"{column['name']} {column['type']}" for column in row["columns"])
    show(rows, json)


@streams_app.command("unmatched")
@failures
def streams_unmatched(
    url: UrlOption = None, data_dir: DataDirOption = None, token: TokenOption = None, json: JsonOption = False
) -> None:
    """Topics that no stream matches, with a stream that would take them."""
    with client_of(url, data_dir, token) as client:
        found = client.unmatched()
    if json:
        show(found, True)
        return
    if not found:
        out.print("every topic so far is matched by a stream")
    for each in found:
        out.print(f"{each['topic']}: {each['count']} messages", highlight=False, markup=False)
        out.print(
            each["suggestion"] or "# the payload is not JSON; no suggestion", highlight=False, markup=False
        )


@listeners_app.command("list")
@failures
def listeners_list(
    url: UrlOption = None, data_dir: DataDirOption = None, token: TokenOption = None, json: JsonOption = False
) -> None:
    """Listeners with their addresses, connections and failed handshakes."""
    with client_of(url, data_dir, token) as client:
        rows = client.listeners()
    for row in rows if not json else []:
        row["failures"] = ", ".join(f"{reason} {count}" for reason, count in row["failures"].items())
    show(rows, json)


@listeners_app.command("reload")
@failures
def listeners_reload(
    url: UrlOption = None, data_dir: DataDirOption = None, token: TokenOption = None, json: JsonOption = False
) -> None:
    """Read certificates, authorities and revocation lists anew; exit code 1 when one of them cannot be used."""
    with client_of(url, data_dir, token) as client:
        rows = client.reload_listeners()
    show(rows, json)
    if any(row["error"] for row in rows):
        fail("a listener goes on with the certificates it has; the table above says why")


@app.command()
@failures
def books(
    url: UrlOption = None, data_dir: DataDirOption = None, token: TokenOption = None, json: JsonOption = False
) -> None:
    """What came in and what became of it; exit code 1 when the books do not balance."""
    with client_of(url, data_dir, token) as client:
        found = client.books()
    if json:
        show([found], True)
    else:
        show([found["messages"]], False)
        tables = found["rows"].items()
        show(
            [{"table": name, **{k: v for k, v in terms.items() if k != "levels"}} for name, terms in tables],
            False,
        )
        levels = [
            {"table": name, "level": level, "value": value, **account}
            for name, terms in tables
            for level, accounts in terms["levels"].items()
            for value, account in accounts.items()
        ]
        if levels:
            show(levels, False)
    if not found["balanced"]:
        fail(
            "the books do not balance: a message or a row is missing or there twice; the terms above say where"
        )


@app.command()
@failures
def why(
    client_id: str,
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Why messages of a client are not where they are expected."""
    with client_of(url, data_dir, token) as client:
        found = client.why(client_id)
    if json:
        show([found], True)
        return
    out.print(f"{client_id} is {'connected' if found['connected'] else 'not connected'}", highlight=False)
    for sentence in found["answer"]:
        out.print(f"- {sentence}", highlight=False, markup=False)


@config_app.command("check")
@failures
def config_check(config: ConfigOption = None, data_dir: DataDirOption = None, set_: SetOption = None) -> None:
    """Check settings, policies, queries, alarm conditions and notification targets without starting anything."""
    from headwater.pipeline import check

    settings = settings_of(config, data_dir, set_)
    check(settings)
    counts = (
        f"{len(settings.streams)} streams, {len(settings.queries)} queries, {len(settings.alarms)} alarms"
    )
    out.print(f"configuration is good: {counts}", highlight=False)


@config_app.command("reference")
@failures
def config_reference() -> None:
    """Print the reference of all settings (docs/settings.md)."""
    print(reference.settings_page())  # noqa: T201


@app.command()
def version() -> None:
    """Print the version."""
    print(headwater.__version__)  # noqa: T201


def main() -> None:
    """Entry point of the `headwater` command."""
    app()

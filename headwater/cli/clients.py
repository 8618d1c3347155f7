"""`headwater clients` and `headwater trace`: who is connected, what they have, what they say."""

from __future__ import annotations

import contextlib
import datetime as dt
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from headwater.cli.face import (
    DataDirOption,
    JsonOption,
    TokenOption,
    UrlOption,
    asks,
    client_of,
    failures,
    out,
    show,
)

if TYPE_CHECKING:
    from headwater.client import Client

clients_app = typer.Typer(help="Clients that are connected or have a session.")


@clients_app.callback(invoke_without_command=True)
@failures
def clients(
    context: typer.Context,
    search: Annotated[str, typer.Option(help="Beginning of the client id, or a pattern with * and ?.")] = "",
    connected: Annotated[
        bool | None, typer.Option("--connected/--away", help="Only those that are, or are not.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 1000,
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """List clients, in no particular order."""
    if context.invoked_subcommand is not None:
        return
    with client_of(url, data_dir, token) as client:
        show(list(islice(client.clients(search, connected), limit)), json)


@clients_app.command("show")
@asks
def clients_show(
    client: Client,
    client_id: str,
    json: JsonOption = False,
) -> None:
    """One client: connection, session, subscriptions, what waits for it, how it ended last, what went wrong."""
    found = client.client(client_id)
    if json:
        show([found], True)
        return
    subscriptions, events = found.pop("subscriptions", []), found.pop("events")
    show([{"what": name, "value": value} for name, value in found.items()], False)
    if subscriptions:
        show(subscriptions, False)
    for event in events:
        at = dt.datetime.fromtimestamp(event["at_us"] / 1e6, dt.UTC).isoformat(timespec="milliseconds")
        out.print(
            f"{at} {event['kind']} ({event['reason']}): {event['detail']}", highlight=False, markup=False
        )


@clients_app.command("kick")
@asks
def clients_kick(
    client: Client,
    client_id: str,
    session: Annotated[
        bool, typer.Option("--session", help="End its session too, also when it is away.")
    ] = False,
) -> None:
    """End a client's connection with reason 0x98."""
    ended = client.kick(client_id, session)
    out.print(f"ended the {ended} of {client_id}", highlight=False, markup=False)


@failures
def trace(
    client_or_topic: Annotated[
        str, typer.Argument(help="A topic filter where it has /, + or #, else a client id.")
    ],
    client: Annotated[bool, typer.Option("--client", help="It is a client id in any case.")] = False,
    topic: Annotated[bool, typer.Option("--topic", help="It is a topic filter in any case.")] = False,
    count: Annotated[int, typer.Option(min=0, help="End after so many packets; 0: until Ctrl-C.")] = 0,
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Print packets of a client, or messages of a topic, as they come."""
    is_topic = topic or (not client and any(each in client_or_topic for each in "/+#"))
    which = {"topic" if is_topic else "client": client_or_topic}
    with client_of(url, data_dir, token) as api, contextlib.suppress(KeyboardInterrupt):
        for line in islice(api.trace(**which), count or None):
            print(orjson.dumps(line).decode() if json else _text(line), flush=True)  # noqa: T201


def _text(line: dict[str, object]) -> str:
    if "lost" in line:
        return f"... {line['lost']} packets are not shown: they come faster than they are read"
    at = dt.datetime.fromtimestamp(int(str(line["at_us"])) / 1e6, dt.UTC).isoformat(timespec="microseconds")
    arrow = "->" if line["direction"] == "in" else "<-"
    return f"{at} {line['client']} {arrow} {line['packet']} ({line['bytes']} B) {line['detail']}".rstrip()

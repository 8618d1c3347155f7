"""`headwater deadletters`: payloads that could not be decoded, found and decoded again."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.face import (
    JsonOption,
    asks,
    out,
    show,
)

if TYPE_CHECKING:
    from headwater.client import Client

deadletters_app = typer.Typer(no_args_is_help=True, help="Payloads that could not be decoded.")

StreamOption = Annotated[str | None, typer.Option("--stream")]
ClientOption = Annotated[str | None, typer.Option("--client", help="The client id.")]
ReasonOption = Annotated[str | None, typer.Option("--reason", help="Such as type-conflict.")]
TopicOption = Annotated[str | None, typer.Option("--topic", help="An MQTT topic filter.")]
SinceOption = Annotated[str | None, typer.Option("--since", help="Arrived at or after, ISO 8601 with zone.")]
UntilOption = Annotated[str | None, typer.Option("--until", help="Arrived at or before.")]


def _given(**filters: str | None) -> dict[str, str]:
    return {name: value for name, value in filters.items() if value is not None}


@deadletters_app.command("list")
@asks
def list_(
    client: Client,
    stream: StreamOption = None,
    client_id: ClientOption = None,
    reason: ReasonOption = None,
    topic: TopicOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    replayed: Annotated[bool | None, typer.Option("--replayed/--not-replayed")] = None,
    limit: int = 20,
    skip: Annotated[int, typer.Option(help="Leave out so many of the newest.")] = 0,
    json: JsonOption = False,
) -> None:
    """Newest first, with the reason."""
    filters = _given(stream=stream, client=client_id, reason=reason, topic=topic, since=since, until=until)
    if replayed is not None:
        filters["replayed"] = str(replayed).lower()
    rows = client.deadletters(**filters, limit=str(limit), skip=str(skip))
    for row in rows if not json else []:
        row["payload"] = base64.b64decode(row["payload"])[:80].decode(errors="replace")
        del row["id"]
    show(rows, json)


@deadletters_app.command("count")
@asks
def count(
    client: Client,
    stream: StreamOption = None,
    client_id: ClientOption = None,
    reason: ReasonOption = None,
    topic: TopicOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    json: JsonOption = False,
) -> None:
    """How many, by stream and reason."""
    filters = _given(stream=stream, client=client_id, reason=reason, topic=topic, since=since, until=until)
    show(client.deadletter_counts(**filters), json)


@deadletters_app.command("replay")
@asks
def replay(
    client: Client,
    stream: StreamOption = None,
    client_id: ClientOption = None,
    reason: ReasonOption = None,
    topic: TopicOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    json: JsonOption = False,
) -> None:
    """Decode them again by the settings of today and store what is good now; each is replayed once."""
    filters = _given(stream=stream, client=client_id, reason=reason, topic=topic, since=since, until=until)
    done = client.replay(**filters)
    if json:
        show([done], True)
        return
    out.print(
        f"replayed {done['replayed']} dead letters: {done['readings']} readings stored", highlight=False
    )
    if done["refused"]:
        out.print("these cannot be decoded still, and stay dead letters:")
        show(done["refused"], False)

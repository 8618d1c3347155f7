"""`headwater notify`: targets tested, and notifications that could not be delivered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.face import (
    JsonOption,
    asks,
    fail,
    out,
    show,
)

if TYPE_CHECKING:
    from headwater.client import Client

notify_app = typer.Typer(no_args_is_help=True, help="Notification targets and what was sent to them.")

TargetOption = Annotated[str | None, typer.Option("--target", help="Name of a [notify.*] target.")]


@notify_app.command("test")
@asks
def send_test(
    client: Client,
    target: Annotated[str, typer.Argument(help="Name of a [notify.*] target.")],
    json: JsonOption = False,
) -> None:
    """Send one message to a target now; exit code 1 when it is not delivered."""
    done = client.test_target(target)
    if json:
        show([done], True)
    if not done["delivered"]:
        fail(f"testing target {target!r}: {done['error']}")
    if not json:
        out.print(f"delivered to {target}", highlight=False)


@notify_app.command("list")
@asks
def list_(
    client: Client,
    state: Annotated[str | None, typer.Option("--state", help="waiting, sent or dead.")] = None,
    target: TargetOption = None,
    limit: int = 20,
    json: JsonOption = False,
) -> None:
    """Notifications, newest first, with the last error."""
    filters = {"limit": str(limit)}
    filters |= {name: value for name, value in (("state", state), ("target", target)) if value is not None}
    rows = client.notifications(**filters)
    for row in rows if not json else []:
        alarm = row.pop("alarm")
        row["alarm"] = f"{alarm['alarm']} {alarm['state']}"
    show(rows, json)


@notify_app.command("replay")
@asks
def replay(
    client: Client,
    target: TargetOption = None,
    notification: Annotated[str | None, typer.Option("--notification", help="One, by its key.")] = None,
    json: JsonOption = False,
) -> None:
    """Send dead notifications again, with the same idempotency keys."""
    given = {"target": target, "notification": notification}
    count = client.replay_notifications(**{name: each for name, each in given.items() if each is not None})
    if json:
        show([{"replayed": count}], True)
    else:
        out.print(f"{count} notifications wait again", highlight=False)

"""`headwater notify`: targets tested, and notifications that could not be delivered."""

from __future__ import annotations

from typing import Annotated

import typer

from headwater.cli.face import (
    DataDirOption,
    JsonOption,
    TokenOption,
    UrlOption,
    client_of,
    fail,
    failures,
    out,
    show,
)

notify_app = typer.Typer(no_args_is_help=True, help="Notification targets and what was sent to them.")

TargetOption = Annotated[str | None, typer.Option("--target", help="Name of a [notify.*] target.")]


@notify_app.command("test")
@failures
def send_test(
    target: Annotated[str, typer.Argument(help="Name of a [notify.*] target.")],
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Send one message to a target now; exit code 1 when it is not delivered."""
    with client_of(url, data_dir, token) as client:
        done = client.test_target(target)
    if json:
        show([done], True)
    if not done["delivered"]:
        fail(f"testing target {target!r}: {done['error']}")
    if not json:
        out.print(f"delivered to {target}", highlight=False)


@notify_app.command("list")
@failures
def list_(
    state: Annotated[str | None, typer.Option("--state", help="waiting, sent or dead.")] = None,
    target: TargetOption = None,
    limit: int = 20,
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Notifications, newest first, with the last error."""
    filters = {"limit": str(limit)}
    filters |= {name: value for name, value in (("state", state), ("target", target)) if value is not None}
    with client_of(url, data_dir, token) as client:
        rows = client.notifications(**filters)
    for row in rows if not json else []:
        alarm = row.pop("alarm")
        row["alarm"] = f"{alarm['alarm']} {alarm['state']}"
    show(rows, json)


@notify_app.command("replay")
@failures
def replay(
    target: TargetOption = None,
    notification: Annotated[str | None, typer.Option("--notification", help="One, by its key.")] = None,
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Send dead notifications again, with the same idempotency keys."""
    given = {"target": target, "notification": notification}
    with client_of(url, data_dir, token) as client:
        count = client.replay_notifications(
            **{name: each for name, each in given.items() if each is not None}
        )
    if json:
        show([{"replayed": count}], True)
    else:
        out.print(f"{count} notifications wait again", highlight=False)

"""`headwater alarms` and `headwater silences`: what fires, and what operators do about it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from headwater.cli.face import (
    DataDirOption,
    JsonOption,
    TokenOption,
    UrlOption,
    WhoOption,
    client_of,
    fail,
    failures,
    out,
    show,
)
from headwater.declarations import parse_duration_us

alarms_app = typer.Typer(no_args_is_help=True, help="Alarms: listed, acknowledged, assigned, shelved.")
silences_app = typer.Typer(no_args_is_help=True, help="Windows in which matching alarms do not notify.")


IdArgument = Annotated[str, typer.Argument(help="The alarm's id, or enough of its beginning.")]
StateOption = Annotated[
    str | None, typer.Option("--state", help="pending, firing, acknowledged, flapping or resolved.")
]
UntilOption = Annotated[
    str, typer.Option("--until", help="A duration such as 2h, or a time, ISO 8601 with a zone.")
]


@alarms_app.command("list")
@failures
def list_(
    state: StateOption = None,
    alarm: Annotated[str | None, typer.Option("--alarm", help="Name of the alarm.")] = None,
    limit: int = 50,
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Newest first."""
    filters = {"limit": str(limit)}
    filters |= {name: value for name, value in (("state", state), ("alarm", alarm)) if value is not None}
    with client_of(url, data_dir, token) as client:
        rows = client.alarms(**filters)
    if not json:
        rows = [{name: _plain(row[name]) for name in _COLUMNS} for row in rows]
    show(rows, json)


@alarms_app.command("show")
@failures
def show_(
    id: IdArgument,
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """One alarm with its history: every transition and action, with who and when."""
    with client_of(url, data_dir, token) as client:
        _print(client.alarm(client.alarm_id(id)), json)


@alarms_app.command("ack")
@failures
def ack(
    id: IdArgument,
    who: WhoOption,
    comment: Annotated[str, typer.Option("--comment")] = "",
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Acknowledge: somebody takes care, and escalation stops."""
    with client_of(url, data_dir, token) as client:
        _print(client.act(client.alarm_id(id), "acknowledge", who=who, comment=comment), json)


@alarms_app.command("assign")
@failures
def assign(
    id: IdArgument,
    to: Annotated[str, typer.Argument(help="Name; '' takes the assignment back.")],
    who: WhoOption,
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Say who takes care."""
    with client_of(url, data_dir, token) as client:
        _print(client.act(client.alarm_id(id), "assign", who=who, to=to), json)


@alarms_app.command("comment")
@failures
def comment_(
    id: IdArgument,
    text: str,
    who: WhoOption,
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Add a note to the history."""
    with client_of(url, data_dir, token) as client:
        _print(client.act(client.alarm_id(id), "comment", who=who, text=text), json)


@alarms_app.command("shelve")
@failures
def shelve(
    id: IdArgument,
    until: UntilOption,
    who: WhoOption,
    reason: Annotated[str, typer.Option("--reason")] = "",
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """No notifications of this alarm and key until then, also when it fires again."""
    at = _time(until)
    with client_of(url, data_dir, token) as client:
        _print(client.act(client.alarm_id(id), "shelve", who=who, until=at, reason=reason), json)


@alarms_app.command("unshelve")
@failures
def unshelve(
    id: IdArgument,
    who: WhoOption,
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """It may notify again."""
    with client_of(url, data_dir, token) as client:
        _print(client.act(client.alarm_id(id), "unshelve", who=who), json)


@silences_app.command("list")
@failures
def silences_list(
    over: Annotated[bool, typer.Option("--over", help="Also those of the last 90 days.")] = False,
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Silences that are active or to come."""
    with client_of(url, data_dir, token) as client:
        rows = client.silences(over=str(over).lower())
    for row in rows if not json else []:
        row["matchers"] = " ".join(row["matchers"])
    show(rows, json)


@silences_app.command("add")
@failures
def silences_add(
    matchers: Annotated[
        list[str], typer.Argument(help="LABEL=VALUE or LABEL!=VALUE; * is any text; all must match.")
    ],
    until: UntilOption,
    who: WhoOption,
    from_: Annotated[
        str | None, typer.Option("--from", help="A time, ISO 8601 with a zone; default now.")
    ] = None,
    comment: Annotated[str, typer.Option("--comment")] = "",
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Alarms whose labels match do not notify for a while."""
    body: dict[str, Any] = {"matchers": matchers, "ends_at": _time(until), "who": who, "comment": comment}
    if from_ is not None:
        body["starts_at"] = _time(from_)
    with client_of(url, data_dir, token) as client:
        made = client.silence(**body)
    if json:
        show([made], True)
    else:
        out.print(f"silence {made['id']} until {made['ends_at']}", highlight=False)


@silences_app.command("end")
@failures
def silences_end(
    id: str,
    who: WhoOption,
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """End a silence now."""
    with client_of(url, data_dir, token) as client:
        ended = client.end_silence(id, who)
    if json:
        show([ended], True)
    else:
        out.print(f"silence {ended['id']} is {ended['state']}", highlight=False)


_COLUMNS = ("id", "alarm", "key", "state", "severity", "since", "fired_at", "resolved_at", "assignee")


def _plain(value: Any) -> Any:
    return " ".join(f"{name}={each}" for name, each in value.items()) if isinstance(value, dict) else value


def _print(alarm: dict[str, Any], json: bool) -> None:
    if json:
        show([alarm], True)
        return
    show([{name: _plain(alarm[name]) for name in _COLUMNS}], False)
    for name in ("labels", "acknowledged_by", "shelved_until", "silenced_by", "reading"):
        if alarm[name]:
            value = alarm[name]
            text = ", ".join(value) if isinstance(value, list) else _plain(value)
            out.print(f"{name}: {text}", highlight=False, markup=False)
    for entry in alarm["history"]:
        words = " ".join(str(value) for name, value in entry.items() if name != "recorded_at")
        out.print(f"{entry['recorded_at']}  {words}", highlight=False, markup=False)


def _time(text: str) -> str:
    """A duration from now, or a time with its zone, as ISO 8601."""
    try:
        after_us = parse_duration_us(text)
    except ValueError:
        after_us = None
    if isinstance(after_us, int):
        return (datetime.now(UTC) + timedelta(microseconds=after_us)).isoformat()
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        fail(f"{text!r}: write a duration such as 2h, or a time with a zone such as 2026-01-31T18:00:00Z")
    return at.isoformat()

"""`headwater plan`, `apply`, `export` and `objects`: streams, queries, alarms and routes while Headwater runs."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from headwater import config
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
from headwater.errors import ConfigError

objects_app = typer.Typer(
    no_args_is_help=True, help="Streams, queries, alarms and routes: made, changed, paused, deleted."
)

FileArgument = Annotated[
    Path, typer.Argument(help="TOML file with streams, queries, alarms and routes; - is standard input.")
]
KindArgument = Annotated[str, typer.Argument(help="streams, queries, alarms or routes.")]
SettingsArgument = Annotated[
    list[str], typer.Argument(metavar="KEY=VALUE...", help='Settings, as after --set: for=10s, key=["site"].')
]
VersionOption = Annotated[
    int | None,
    typer.Option("--version", min=0, help="Only when it has this version; 0: only when it is new."),
]

_VERBS = {
    "create": "+",
    "change": "~",
    "replace": "!",
    "pause": "~",
    "resume": "~",
    "delete": "-",
    "purge": "-",
}


@failures
def plan(
    file: FileArgument,
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Print what applying a file would do: what is made, changed, replaced, deleted, and what happens to its state."""
    sections = _read(file)
    with client_of(url, data_dir, token) as client:
        planned = client.plan(sections)
    _print(planned, json)


@failures
def apply(
    file: FileArgument,
    who: WhoOption,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    revision: Annotated[
        int | None, typer.Option("--revision", help="Only what was planned at this one.")
    ] = None,
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Apply a file, all or nothing: what it does not name is deleted, except what the configuration file declares."""
    sections = _read(file)
    with client_of(url, data_dir, token) as client:
        planned = client.plan(sections)
        if not json or not planned["changes"]:
            _print(planned, json)
        if not planned["changes"]:
            return
        if not yes and not typer.confirm("Apply?", err=True):
            fail("nothing was applied")
        revision = planned["revision"] if revision is None else revision
        applied = client.apply(sections, who, revision)
    if json:
        _print(applied, True)
    else:
        out.print(f"applied: revision {applied['revision']}", highlight=False)
    _effective(applied)


@failures
def export(url: UrlOption = None, data_dir: DataDirOption = None, token: TokenOption = None) -> None:
    """Print everything that is declared as a TOML file, of which a plan is empty."""
    import tomli_w

    with client_of(url, data_dir, token) as client:
        sections = client.export()
    print(tomli_w.dumps(sections, multiline_strings=True), end="")  # noqa: T201


@objects_app.command("list")
@failures
def list_(
    kind: Annotated[str | None, typer.Option("--kind", help="streams, queries, alarms or routes.")] = None,
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """What is declared, with versions and who changed it last."""
    with client_of(url, data_dir, token) as client:
        rows = client.objects(**({} if kind is None else {"kind": kind}))
    for row in rows if not json else []:
        del row["definition"]
    show(rows, json)


@objects_app.command("show")
@failures
def show_(
    kind: KindArgument,
    name: str,
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """One object: its definition as in a file."""
    with client_of(url, data_dir, token) as client:
        found = client.object(kind, name)
    if json:
        show([found], True)
        return
    import tomli_w

    out.print(
        f"# version {found['version']}, {found['state']}, owner {found['owner']}, changed {found['changed_at']} by "
        f"{found['changed_by']}",
        highlight=False,
        markup=False,
    )
    print(tomli_w.dumps(found["definition"], multiline_strings=True), end="")  # noqa: T201


@objects_app.command("put")
@failures
def put(
    kind: KindArgument,
    name: str,
    settings: SettingsArgument,
    who: WhoOption,
    version: VersionOption = None,
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Make an object, or put another definition in place of its own."""
    with client_of(url, data_dir, token) as client:
        _print(client.put_object(kind, name, config.overridden({}, settings), who, version), json)


@objects_app.command("set")
@failures
def set_(
    kind: KindArgument,
    name: str,
    settings: SettingsArgument,
    who: WhoOption,
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Change some settings of an object."""
    with client_of(url, data_dir, token) as client:
        there = client.object(kind, name)
        definition = config.overridden(there["definition"], settings)
        _print(client.put_object(kind, name, definition, who, there["version"]), json)


def _action(action: str, text: str) -> None:
    @objects_app.command(action, help=text)
    @failures
    def act(
        kind: KindArgument,
        name: str,
        who: WhoOption,
        url: UrlOption = None,
        data_dir: DataDirOption = None,
        token: TokenOption = None,
        json: JsonOption = False,
    ) -> None:
        with client_of(url, data_dir, token) as client:
            _print(client.change_object(kind, name, action, who), json)


_action("pause", "Stop an object; what it has stays.")
_action("resume", "Let a paused object go on.")
_action("delete", "Delete an object; the table of a stream or query stays until it is purged.")
_action("purge", "Remove the table of a deleted stream or query for good.")


@objects_app.command("history")
@failures
def history(
    kind: Annotated[str | None, typer.Option("--kind", help="streams, queries, alarms or routes.")] = None,
    name: Annotated[str | None, typer.Option("--name")] = None,
    limit: int = 50,
    url: UrlOption = None,
    data_dir: DataDirOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Who changed what, from which version to which, newest first."""
    filters = {"limit": str(limit)}
    filters |= {key: value for key, value in (("kind", kind), ("name", name)) if value is not None}
    with client_of(url, data_dir, token) as client:
        rows = client.object_changes(**filters)
    for row in rows if not json else []:
        del row["definition"]
    show(rows, json)


def _read(file: Path) -> dict[str, Any]:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        return tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"reading {file}: {error}") from error


def _print(planned: dict[str, Any], json: bool) -> None:
    if json:
        show([planned], True)
        return
    for each in planned["changes"]:
        before = f"{each['from_version']} -> " if each["from_version"] is not None else ""
        name = f"{each['kind']}.{each['name']}"
        version = f"version {before}{each['to_version']}"
        line = f"{_VERBS[each['action']]} {each['action']:<7} {name} ({version}): {each['effect']}"
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    if not planned["changes"]:
        out.print("no changes", highlight=False)
    _effective(planned)


def _effective(planned: dict[str, Any]) -> None:
    if not planned["in_effect"]:
        fail("the change is committed and not in effect yet; it is tried again, /readyz tells why it fails")

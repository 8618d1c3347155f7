"""What all verbs share: options, where output goes, how errors end a command."""

from __future__ import annotations

import getpass
import inspect
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, NoReturn, ParamSpec

import orjson
import typer
from rich.console import Console
from rich.table import Table

from headwater import config
from headwater.errors import HeadwaterError, SqlError

if TYPE_CHECKING:
    from headwater.client import Client

out = Console()
P = ParamSpec("P")

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="TOML file with the settings.")]
DataDirOption = Annotated[
    Path | None, typer.Option("--data-dir", "-d", help="Directory that holds everything durable.")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")]
MqttOption = Annotated[
    str | None, typer.Option("--mqtt", help="host:port of MQTT; default: the one running on --data-dir.")
]
UserOption = Annotated[str | None, typer.Option("--user", help="User name for MQTT.")]
PasswordOption = Annotated[
    str | None,
    typer.Option(
        "--password", envvar="HEADWATER_MQTT_PASSWORD", help="Password for MQTT; better by the environment."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="The HTTP address; default: the one running on --data-dir.")
]
TokenOption = Annotated[
    str | None, typer.Option("--token", envvar="HEADWATER_ADMIN_TOKEN", help="Administrator's token.")
]


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a process without a name
        return "cli"


WhoOption = Annotated[
    str,
    typer.Option(
        "--who", default_factory=_user, help="Name for the history.", show_default="the user's name"
    ),
]


def failures(verb: Callable[P, None]) -> Callable[P, None]:
    """Errors of ours end the command with one message on stderr and exit code 1."""

    @wraps(verb)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            verb(*args, **kwargs)
        except HeadwaterError as error:
            where = (
                f" (at character {error.position})"
                if isinstance(error, SqlError) and error.position is not None
                else ""
            )
            fail(f"{error}{where}")

    return run


def asks(verb: Callable[Concatenate[Client, P], None]) -> Callable[..., None]:
    """For a verb whose first parameter is the API: in its place come the options that say where that is.

    Errors of ours end the command as `failures` says.
    """

    @failures
    @wraps(verb)
    def run(
        *args: Any,
        url: str | None = None,
        data_dir: Path | None = None,
        token: str | None = None,
        **options: Any,
    ) -> None:
        with client_of(url, data_dir, token) as client:
            verb(client, *args, **options)

    # Typer reads the options off the signature; `Client` itself is imported by nobody before it is asked.
    _, *own = inspect.signature(verb, locals={"Client": object}, eval_str=True).parameters.values()
    where = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in (("url", UrlOption), ("data_dir", DataDirOption), ("token", TokenOption))
    ]
    run.__signature__ = inspect.Signature(own + where)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in own + where}
    return run


def fail(message: str) -> NoReturn:
    """Ends the command with a message on stderr and exit code 1."""
    print(f"headwater: {message}", file=sys.stderr)  # noqa: T201
    raise typer.Exit(1)


def settings_of(path: Path | None, data_dir: Path | None, overrides: list[str] | None) -> config.Settings:
    """Settings of the common options; `headwater.toml` here is read when no file is named."""
    if path is None and Path("headwater.toml").exists():
        path = Path("headwater.toml")
    given = list(overrides or [])
    if data_dir is not None:
        given.append(f"data_dir={orjson.dumps(str(data_dir)).decode()}")
    return config.load(path, given)


def client_of(url: str | None, data_dir: Path | None, token: str | None) -> Client:
    """The API at `url`, or of the Headwater that runs on the data directory."""
    # Verbs that ask nobody, `up` first of all, do not wait for its libraries.
    from headwater.client import Client

    if url is not None:
        return Client(url, token)
    return Client.of_directory(data_dir or settings_of(None, None, None).data_dir, token)


def show(rows: list[dict[str, Any]], json: bool) -> None:
    """Rows as a table, or as one JSON object per line."""
    if json:
        for row in rows:
            print(orjson.dumps(row, default=str).decode())  # noqa: T201
        return
    table = Table(*(rows[0] if rows else []), show_edge=False)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 240).print(table, f"{len(rows)} rows")

"""`headwater up`: one process that runs the pipeline and the HTTP listener until it is told to stop."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

import structlog

from headwater.config import Settings
from headwater.errors import ListenError
from headwater.pipeline import Pipeline

if TYPE_CHECKING:
    import uvicorn

logger = structlog.get_logger(__name__)

#: How long a thread may keep the interpreter while others want it. A query takes it some twenty times beside the
#: services; with Python's 5 ms its p99 at 100,000 messages a second was 1.3 to 1.7 times as long.
SWITCH_S = 0.0005


def serve(settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT, then drains. Devices are accepted as soon as the log is recovered; prints one line
    per listener once everything is ready, HTTP too. SIGHUP reads certificates anew.

    raises: ConfigError, DataDirectoryError, ListenError, LogCorruptError
    """
    sys.setswitchinterval(SWITCH_S)
    configure_logging()
    with _listen(settings.http.host, settings.http.port) as listener:
        pipeline = Pipeline(settings)
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, _end)
            signal.signal(signal.SIGHUP, lambda _number, _frame: pipeline.reload())
            http = _address(listener)
            server = _server(pipeline, lambda: _announce(pipeline, settings, http))
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, server.handle_exit)
            server.run(sockets=[listener])
        finally:
            pipeline.stop()


def _end(_number: int, _frame: FrameType | None) -> None:
    """Told to stop before HTTP answers: the pipeline, which accepts devices already, still drains."""
    sys.exit(0)


def _server(pipeline: Pipeline, when_started: Callable[[], None]) -> uvicorn.Server:
    """The HTTP server. Its libraries are loaded here, after the pipeline: no device waits for them."""
    import uvicorn

    from headwater.api.app import create_app

    class Server(uvicorn.Server):
        """Tells when it accepts connections; signals are ours."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            when_started()

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    app = create_app(pipeline.parts)
    return Server(
        uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=3, ws="none")
    )


def _announce(pipeline: Pipeline, settings: Settings, http: str) -> None:
    pipeline.announce(http)
    insecure = {"mqtt": settings.mqtt.insecure, **{each.name: each.insecure for each in settings.listeners}}
    clients = {each.name: each.clients for each in settings.listeners}
    token = "with the administrator's token" if settings.admin_token else "open API, no token set"
    sources = [
        name for name in ("certificates", "jwt", "password", "webhook") if getattr(settings.auth, name)
    ]
    for each in pipeline.gateway.listeners():
        name, transport, address = each["name"], each["transport"], each["address"]
        if sources:
            who = f"clients identified by {', '.join(sources)}"
        elif clients.get(name) == "required":
            who = "clients with a certificate, everything allowed"
        else:
            who = "anonymous clients, everything allowed"
        over = "" if transport in {name, "tcp"} else f"{transport}, "
        note = f"{over}{who}{' (insecure = true)' if insecure[name] else ''}"
        print(f"{name:<5} listening on {address} ({note})", flush=True)  # noqa: T201
    print(f"http  listening on {http} ({token})", flush=True)  # noqa: T201


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named; with it each answer's body waits 40 ms for
    # the client's delayed acknowledgement of the headers.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise ListenError(
            f"opening the HTTP listener on {host}:{port}: {error.strerror}; stop the program that uses the port, or "
            f"choose another with --set http.port=0 (0 picks a free one)"
        ) from error
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def configure_logging() -> None:
    """Structured logs on stderr: readable on a terminal, one JSON object per line elsewhere."""
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s", force=True)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )

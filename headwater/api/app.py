"""The HTTP application: routes, errors and who may call them."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response

import headwater
from headwater.api import (
    alarms,
    clients,
    deadletters,
    health,
    ingest,
    listeners,
    notifications,
    objects,
    problems,
    query,
    streams,
    things,
    trace,
)
from headwater.api.parts import Parts

#: Paths that need no token: probes must work without secrets.
OPEN_PATHS = frozenset({"/healthz", "/readyz"})


def create_app(parts: Parts) -> FastAPI:
    """The application over one pipeline's parts.

    With `HEADWATER_ADMIN_TOKEN` set every route but the probes wants `Authorization: Bearer TOKEN`.
    """
    app = FastAPI(title="Headwater", version=headwater.__version__, docs_url=None, redoc_url=None)
    problems.install(app)
    for module in (
        health,
        query,
        ingest,
        streams,
        deadletters,
        clients,
        trace,
        listeners,
        alarms,
        notifications,
        objects,
        things,
    ):
        app.include_router(module.router(parts))
    token = parts.settings.admin_token
    limit = parts.settings.http.max_body_bytes

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if token is not None and request.url.path not in OPEN_PATHS:
            expected = f"Bearer {token.get_secret_value()}".encode()
            given = request.headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, expected):
                return problems.problem(
                    401,
                    "unauthorized",
                    "the administrator's token is missing or wrong; send the header Authorization: Bearer TOKEN",
                )
        length = request.headers.get("content-length")
        if request.method in ("POST", "PUT", "PATCH"):
            if length is None or not length.isdecimal():
                return problems.problem(411, "length required", "send the header Content-Length")
            if int(length) > limit:
                return problems.problem(
                    413, "too large", f"{length} bytes are more than http.max_body_bytes = {limit}"
                )
        return await call_next(request)

    return app

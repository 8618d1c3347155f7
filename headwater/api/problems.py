"""Errors over HTTP: `application/problem+json` (RFC 9457), or AWS's shape on the shadow routes."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from headwater.errors import (
    AlarmStateError,
    ConfigError,
    ConflictError,
    HeadwaterError,
    LogFullError,
    NotFoundError,
    OutdatedError,
    QueryLimitError,
    RecordError,
    ShadowError,
    SqlError,
    TraceError,
)

#: Status of each exception; anything else of ours is 500.
STATUS: dict[type[HeadwaterError], int] = {
    SqlError: 400,
    RecordError: 400,
    TraceError: 400,
    ConfigError: 400,
    NotFoundError: 404,
    AlarmStateError: 409,
    ConflictError: 409,
    OutdatedError: 412,
    QueryLimitError: 422,
    LogFullError: 503,
}

#: AWS's error type by status, which boto3 turns into its exception classes.
AWS_ERROR_TYPE = {
    400: "InvalidRequestException",
    401: "UnauthorizedException",
    404: "ResourceNotFoundException",
    405: "MethodNotAllowedException",
    409: "ConflictException",
    413: "RequestEntityTooLargeException",
    415: "UnsupportedDocumentEncodingException",
    429: "ThrottlingException",
    500: "InternalFailureException",
    503: "ServiceUnavailableException",
}


def problem(status: int, title: str, detail: str, **more: Any) -> Response:
    """A problem document; `more` are extension members."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    headers = {"Retry-After": "1"} if status == 503 else None
    return Response(orjson.dumps(body), status, headers, "application/problem+json")


def aws_error(status: int, message: str) -> Response:
    """An error as the AWS IoT data plane gives it."""
    headers = {"x-amzn-ErrorType": AWS_ERROR_TYPE.get(status, "InternalFailureException")}
    return Response(orjson.dumps({"message": message}), status, headers, "application/json")


def install(app: FastAPI) -> None:
    """Maps every exception of ours, and the framework's own, to a response."""

    @app.exception_handler(ShadowError)
    async def shadow_error(_request: Request, error: ShadowError) -> Response:
        return aws_error(error.code, str(error))

    @app.exception_handler(HeadwaterError)
    async def headwater_error(_request: Request, error: HeadwaterError) -> Response:
        status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
        more = {}
        if isinstance(error, SqlError) and error.position is not None:
            more["position"] = error.position
        return problem(status, type(error).__name__, str(error), **more)

    @app.exception_handler(RequestValidationError)
    async def validation_error(_request: Request, error: RequestValidationError) -> Response:
        detail = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        return problem(422, "invalid request", detail)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if request.url.path.startswith("/things/"):
            return aws_error(error.status_code, str(error.detail))
        return problem(error.status_code, str(error.detail), f"{request.method} {request.url.path}")

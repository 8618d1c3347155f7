"""Device shadows over HTTP, as the AWS IoT data plane defines them (boto3 `iot-data`)."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from headwater.api.parts import Parts
from headwater.devices.shadow import Operation
from headwater.errors import ShadowError

#: Longest wait for the shadow service, seconds.
TIMEOUT_S = 10.0


def router(parts: Parts) -> APIRouter:
    """The shadow routes: body and answer are the raw shadow documents."""
    routes = APIRouter(tags=["shadows"])
    operations: dict[str, Operation] = {"GET": "get", "POST": "update", "DELETE": "delete"}

    @routes.api_route(
        "/things/{thing}/shadow", methods=list(operations), summary="Get, update or delete a shadow"
    )
    async def shadow(thing: str, request: Request, name: str = "") -> Response:
        """The same store and the same order as the `$aws/things/{thing}/shadow/...` topics."""
        if parts.shadows is None:
            raise ShadowError(503, "pipeline.enabled is false, so there are no shadows")
        body = await request.body()
        operation = operations[request.method]
        answer = await run_in_threadpool(parts.shadows.request, operation, thing, name, body, TIMEOUT_S)
        return Response(answer, media_type="application/json")

    return routes

"""`POST /api/v1/query`: one read-only SELECT, as JSON, CSV, Arrow or Parquet by `Accept`."""

from __future__ import annotations

import io
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from headwater.api.parts import Parts
from headwater.errors import NotFoundError

ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"
CSV = "text/csv"
JSON = "application/json"


class Query(BaseModel):
    """A SELECT with `?` or `$1` parameters."""

    model_config = ConfigDict(extra="forbid")

    sql: str = Field(max_length=100_000)
    params: list[str | int | float | bool | None] = Field(default_factory=list, max_length=1000)


def router(parts: Parts) -> APIRouter:
    """The route of queries."""
    routes = APIRouter(tags=["query"])

    @routes.post("/api/v1/query", summary="Run one read-only SELECT")
    async def query(body: Query, request: Request) -> Response:
        """Rows of one SELECT over streams, query results and dead letters.

        A row that was acknowledged before the request is in the answer.
        """
        store = parts.store
        if store is None:
            raise NotFoundError("running a query: pipeline.enabled is false, so there are no tables")
        media_type = _media_type(request.headers.get("accept", ""))
        # One hand-over to a thread and back: under load each waits for the interpreter and for a processor.
        answer = await run_in_threadpool(lambda: encode(store.query(body.sql, body.params), media_type))
        return Response(answer, media_type=media_type)

    return routes


def _media_type(accept: str) -> str:
    wanted = [part.split(";")[0].strip() for part in accept.split(",")]
    return next((kind for kind in wanted if kind in (JSON, CSV, ARROW, PARQUET)), JSON)


def encode(table: pa.Table, media_type: str) -> bytes:
    """A result in one of the four formats; timestamps are ISO 8601 in UTC where the format is text."""
    if media_type == JSON:
        columns: list[list[Any]] = [_texts(column).to_pylist() for column in table.columns]
        rows = list(zip(*columns, strict=True)) if columns else []
        return orjson.dumps({"columns": table.column_names, "rows": rows}, default=str)
    sink = io.BytesIO()
    if media_type == CSV:
        texts = [_texts(column) for column in table.columns]
        pyarrow.csv.write_csv(pa.table(texts, names=table.column_names), sink)
    elif media_type == ARROW:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        pyarrow.parquet.write_table(table, sink)
    return sink.getvalue()


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_timestamp(column.type):
        return pc.strftime(
            pc.cast(column, pa.timestamp("us", "UTC"), safe=False), format="%Y-%m-%dT%H:%M:%SZ"
        )
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return pa.chunked_array([[None if v is None else v.hex() for v in column.to_pylist()]], pa.string())
    return column

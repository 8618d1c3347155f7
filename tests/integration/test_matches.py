"""A pattern in a running server: readings by HTTP, kills between A and B, matches by SQL."""

from __future__ import annotations

from pathlib import Path

from tests.integration.server import Server, await_that

CONFIG = """
[log]
partitions = 1
[store]
flush_interval = "200ms"
[engine]
checkpoint_interval = "100ms"
[streams.telemetry]
topic    = "dt/{site}/{device}/telemetry"
time     = "ts"
lateness = "5s"
fields   = { temperature = "double", door = "boolean" }
[queries.left_open]
sql = '''SELECT device, opened, rise FROM telemetry MATCH_RECOGNIZE (
           PARTITION BY device ORDER BY ts
           MEASURES A.ts AS opened, B.temperature - A.temperature AS rise
           ONE ROW PER MATCH AFTER MATCH SKIP PAST LAST ROW
           PATTERN (A X*? B) WITHIN INTERVAL '10' MINUTES
           DEFINE A AS A.door, B AS B.temperature >= A.temperature + 5)'''
"""
START = 1_769_814_000


def ingest(server: Server, *readings: tuple[str, float, float, bool | None]) -> None:
    body = [
        {"device": device, "ts": START + at, "temperature": temperature, "door": door}
        for device, at, temperature, door in readings
    ]
    answer = server.http.post("/api/v1/ingest/telemetry?site=x", json=body)
    assert answer.status_code == 200, answer.text


def test_matches_over_kills(tmp_path: Path) -> None:
    columns = f"device, epoch(opened)::bigint - {START}, rise, epoch(ts)::bigint - {START}"
    sql = f"SELECT {columns} FROM left_open ORDER BY ALL"
    first = [["a", 0, 6.0, 120], ["b", 10, 5.0, 100]]

    with Server(tmp_path / "data", CONFIG).start() as server:
        ingest(server, ("a", 0, 1.0, True), ("b", 10, 0.0, True), ("a", 60, 3.0, None))
        server.kill()
        server.start()
        ingest(server, ("b", 100, 5.0, False), ("a", 120, 7.0, None), ("c", 110, 1.0, True))
        ingest(server, ("d", 200, 0.0, None))
        await_that("both matches are out", lambda: server.rows(sql) == first)
        server.kill()
        server.start()
        # The row at 20 is behind the watermark; that of c comes ten minutes later, which is too late.
        ingest(
            server, ("d", 20, 0.0, None), ("c", 710, 9.0, None), ("d", 800, 0.0, True), ("d", 810, 9.0, None)
        )
        ingest(server, ("e", 900, 0.0, None))
        await_that("the third is, too", lambda: server.rows(sql) == [*first, ["d", 800, 9.0, 810]])

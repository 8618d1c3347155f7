"""Every kind of window in a running server: readings by HTTP, a kill in the middle, results by SQL."""

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
lateness = "0s"
late     = "drop"
fields   = { temperature = "double", door = "boolean" }
[queries.hopping]
sql = '''SELECT device, window_start, COUNT(*) AS n, PERCENTILE(temperature, 0.5) AS median
         FROM TABLE(HOP(TABLE telemetry, DESCRIPTOR(ts), INTERVAL '1' MINUTE, INTERVAL '2' MINUTES))
         GROUP BY device, window_start, window_end'''
[queries.visits]
sql = '''SELECT device, window_start, window_end, COUNT(*) AS n, LAST_VALUE(door) AS door
         FROM TABLE(SESSION(TABLE telemetry PARTITION BY device, DESCRIPTOR(ts), INTERVAL '1' MINUTE))
         GROUP BY device, window_start, window_end'''
[queries.days]
sql = '''SELECT window_start, COUNT(DISTINCT device) AS devices, MAX(temperature) - MIN(temperature) AS span
         FROM TABLE(TUMBLE(TABLE telemetry, DESCRIPTOR(ts), INTERVAL '1' DAY, 'Europe/Paris'))
         GROUP BY window_start, window_end'''
[queries.busy]
sql = '''SELECT device, window_start, window_end, SUM(n) AS n
         FROM TABLE(CUMULATE(TABLE hopping, DESCRIPTOR(ts), INTERVAL '5' MINUTES, INTERVAL '10' MINUTES))
         GROUP BY device, window_start, window_end HAVING SUM(n) > 2'''
"""
#: Midnight in Paris.
MIDNIGHT = 1_769_814_000


def ingest(server: Server, *readings: tuple[str, float, float, bool | None]) -> None:
    body = [
        {"device": device, "ts": MIDNIGHT + at, "temperature": temperature, "door": door}
        for device, at, temperature, door in readings
    ]
    answer = server.http.post("/api/v1/ingest/telemetry?site=x", json=body)
    assert answer.status_code == 200, answer.text


def await_rows(server: Server, table: str, columns: str, expected: list[list[object]]) -> None:
    def probe() -> bool:
        return server.rows(f"SELECT {columns} FROM {table} ORDER BY ALL") == expected

    await_that(f"{table} is {expected}", probe)


def test_windows_over_a_kill(tmp_path: Path) -> None:
    start = f"epoch(window_start)::bigint - {MIDNIGHT}"
    end = f"epoch(window_end)::bigint - {MIDNIGHT}"
    with Server(tmp_path / "data", CONFIG).start() as server:
        ingest(server, ("a", 10, 1.0, None), ("b", 20, 5.0, True), ("a", 70, 3.0, True))
        await_rows(server, "hopping", f"device, {start}, n", [["a", -60, 1], ["b", -60, 1]])
        server.kill()
        server.start()
        ingest(server, ("a", 125, 2.0, False), ("a", 30, 9.0, None), ("a", 600, 7.0, None))
        hopped = [["a", -60, 1], ["a", 0, 2], ["a", 60, 2], ["a", 120, 1], ["b", -60, 1], ["b", 0, 1]]
        await_rows(server, "hopping", f"device, {start}, n", hopped)
        await_rows(
            server,
            "visits",
            f"device, {start}, {end}, n, door",
            [["a", 10, 185, 4, False], ["b", 20, 80, 1, True]],
        )
        server.kill()
        server.start()
        ingest(server, ("c", 90_000, 0.0, None))
        await_rows(server, "days", f"{start}, devices, span", [[0, 2, 8.0]])
        await_rows(server, "busy", f"device, {start}, {end}, n", [["a", 0, 300, 6], ["a", 0, 600, 6]])
        medians = server.rows("SELECT median FROM hopping WHERE device = 'b' ORDER BY window_start")
        assert medians == [[5.0], [5.0]]

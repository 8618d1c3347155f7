"""Row 6: what the log costs on disk, and how long a restart takes with a large one.

The log is filled flat out with readings, then with rows of long strings up to its size (readings take so little that 10
GB of them would take half an hour), and the process killed. Recovery is what the log says that opening took. It reads
the headers of all segments, and in full the keys and the last one, as a commit before it cannot be torn; the rate is of
what it read in full.
"""

from __future__ import annotations

import base64
import random

from benches.bench import NO_YARDSTICK, Bench
from benches.server import LOG_ALONE, Server
from benches.table import Row, judged, median, not_measured
from headwater.bench import BenchOptions
from headwater.bench import run as run_load

START_S, RECOVERY_MB_S = 2.0, 500.0
FAST_BYTES, SLOW_BYTES = 35.0, 110.0
#: Seconds of readings at the most; the rest is strings of so many bytes, each different and none compressible.
FILL_S, STRING_BYTES = 60.0, 96_000
CONFIG = f"""{LOG_ALONE}
[streams.strings]
topic  = "strings/{{device}}"
fields = {{ text = "string" }}
[log]
retention_bytes = 34359738368
"""


def run(bench: Bench) -> list[Row]:
    """Bytes a reading at two rates, then the restart."""
    restart = f"restart to accepting with a log of {bench.log_gb:g} GB"
    reach = f"<= {START_S:g} s; recovery >= {RECOVERY_MB_S:g} MB/s"
    sizes = [("6b", "log bytes a reading of 3 fields, 100,000/s", FAST_BYTES, 100, 1_000)]
    sizes += [("6c", "log bytes a reading of 3 fields, 1,000/s", SLOW_BYTES, 1_000, 1)]
    if bench.yardstick is None:
        rows = [not_measured("6a", restart, reach, NO_YARDSTICK)]
        return rows + [
            not_measured(n, what, f"<= {bound:g} B", NO_YARDSTICK) for n, what, bound, _, _ in sizes
        ]
    rows = [measure_restart(bench, restart, reach)]
    for number, what, bound, connections, rate in sizes:
        load = {"conns": connections, "qos": 1, "rate": rate, "secs": max(bench.secs, 4)}
        found = []
        for _ in range(min(bench.rounds, 3)):
            with Server(bench.scratch) as server:
                before = server.metrics()["headwater_log_bytes_total"]
                result = bench.yardstick.load(server.port, server.pids, **load)
                found.append((server.metrics()["headwater_log_bytes_total"] - before) / result["acked"])
        size = median(found)
        text = f"{size:.1f} B at {result['msgs_s']:,.0f}/s"
        rows.append(Row(number, what, f"<= {bound:g} B", text, judged(size <= bound), {"bytes": found}))
    return rows


def measure_restart(bench: Bench, what: str, reach: str) -> Row:
    """Fills, kills, starts again."""
    assert bench.yardstick is not None
    empty = []
    for _ in range(3):
        with Server(bench.scratch) as server:
            empty.append(server.started_in_s)
    with Server(bench.scratch, CONFIG) as server:
        # A GB of log is at least six seconds of readings.
        secs = min(FILL_S, bench.log_gb * 6)
        bench.yardstick.load(server.port, server.pids, conns=50, qos=1, devices=20_000, secs=secs)
        filled = server.metrics()["headwater_log_bytes_total"]
        fill_up(server.port, bench.log_gb * 1e9 - filled)
        filled = server.metrics()["headwater_log_bytes_total"]
        rows = int(server.metrics()['headwater_log_rows_total{stream="telemetry"}'])
        times, recoveries = [], []
        for _ in range(3):
            server.kill()
            server.start()
            times.append(server.started_in_s)
            recoveries.append(server.recovered())
        again = int(server.metrics()['headwater_log_rows_total{stream="telemetry"}'])
        on_disk = sum(file.stat().st_size for file in server.data.rglob("*") if file.is_file())
    took, base = median(times), median(empty)
    recovery_s = median([seconds for _, seconds in recoveries])
    read = median([read for read, _ in recoveries])
    mb_s = read / 1e6 / recovery_s
    found = (
        f"{took:.2f} s with {filled / 1e9:.1f} GB and {rows:,} readings ({base:.2f} s empty), recovery "
        f"{recovery_s * 1e3:.0f} ms, reading {read / 1e6:,.0f} MB of it at {mb_s:,.0f} MB/s; "
        f"{rows - again} rows missing"
    )
    verdict = judged(took <= START_S and mb_s >= RECOVERY_MB_S and again >= rows)
    row = Row(
        "6a",
        what,
        reach,
        found,
        verdict,
        {
            "starts_s": times,
            "empty_s": empty,
            "recovery_s": recoveries,
            "missing": max(rows - again, 0),
            "bytes": filled,
        },
    )
    row.notes.append(f"files of the data directory: {on_disk / 1e9:.1f} GB")
    return row


def fill_up(port: int, size: float) -> None:
    """Publishes strings of `size` bytes together."""
    text = base64.b64encode(random.Random(1).randbytes(STRING_BYTES * 3 // 4)).decode()
    payload = '{"text": "{device}-{seq}-' + text + '"}'
    count = int(size // STRING_BYTES)
    if count > 0:
        topic = "strings/{device}"
        report = run_load(
            BenchOptions(
                port=port,
                connections=8,
                window=8,
                payload=payload,
                topic=topic,
                messages=count,
                duration_s=600.0,
            )
        )
        if report.acked != count:
            raise SystemExit(
                f"bench: filling the log: {report.acked} of {count} strings were taken: {report.errors}"
            )

"""A real series by real clients: rows, windows and an alarm, against the file, pandas and a plain reference.

The series of the Numenta Anomaly Benchmark is used where the environment names the folder of its data as NAB; a
generated one of the same shape (readings every five minutes, clocks that are set back an hour, dips) always.
"""

from __future__ import annotations

import csv
import math
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import paho.mqtt.client as mqtt
import pandas as pd
import pytest

from tests.integration.reference import transitions, us
from tests.integration.server import Server, await_that

NAB_FILE = "realKnownCause/machine_temperature_system_failure.csv"
NAB_ROWS = 22_695

#: The clock changes repeat an hour: rows come an hour late, and every one is kept.
CONFIG = '''
[streams.machine]
topic    = "nab/{device}"
time     = "ts"
fields   = { temperature = "double" }
lateness = "2h"

[queries.hourly]
sql = """SELECT device, window_start, window_end, COUNT(*) AS n, AVG(temperature) AS mean,
                SUM(temperature) AS total, MIN(temperature) AS low, MAX(temperature) AS high
         FROM TABLE(TUMBLE(TABLE machine, DESCRIPTOR(ts), INTERVAL '1' HOUR))
         GROUP BY device, window_start, window_end"""

[alarms.cold]
on    = "machine"
where = "temperature < 45"
clear = "temperature > 55"
for   = "30m"
'''

#: One row of a CSV file, as text: nothing is lost before it is sent.
Row = tuple[str, str]


def nab() -> list[Row]:
    folder = os.environ.get("NAB")
    if not folder:
        pytest.skip("NAB is not set: NAB=DIR names the data folder of the Numenta Anomaly Benchmark")
    path = next((p for p in (Path(folder) / NAB_FILE, Path(folder) / "data" / NAB_FILE) if p.exists()), None)
    assert path is not None, f"NAB={folder} has no {NAB_FILE}"
    with path.open(newline="") as file:
        rows = [(row["timestamp"], row["value"]) for row in csv.DictReader(file)]
    assert len(rows) == NAB_ROWS
    return rows


def generated() -> list[Row]:
    """Four weeks; the clock goes back an hour twice, so that 24 timestamps are there twice."""
    random = Random(11)
    rows = []
    at = datetime(2024, 10, 7, 21, 15, tzinfo=UTC)
    backwards = {1000, 5000}
    dip = 0
    for n in range(8064):
        if n in backwards:
            at -= timedelta(hours=1)
        if not dip and random.random() < 0.01:
            dip = random.choice((2, 5, 6, 7, 8, 40))  # 6 rows span 25 minutes, 7 rows 30
        level = 38.0 if dip else random.choice((85.0, 85.0, 50.0))
        dip = max(dip - 1, 0)
        rows.append((f"{at:%Y-%m-%d %H:%M:%S}", repr(level + random.random() * 5)))
        at += timedelta(minutes=5)
    assert len({ts for ts, _ in rows}) == len(rows) - 24
    return rows


def payloads(rows: list[Row]) -> list[str]:
    return [f'{{"ts": "{ts}", "temperature": {value}}}' for ts, value in rows]


def send_by_paho(address: tuple[str, int], topic: str, lines: list[str]) -> None:
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.max_inflight_messages_set(200)
    client.connect(*address)
    client.loop_start()
    try:
        for sent in [client.publish(topic, line, qos=1) for line in lines]:
            sent.wait_for_publish(60)
            assert sent.is_published()
    finally:
        client.disconnect()
        client.loop_stop()


def send_by_mosquitto(address: tuple[str, int], topic: str, lines: list[str]) -> None:
    program = shutil.which("mosquitto_pub")
    if program is None:
        pytest.skip("mosquitto_pub is not installed (Debian: mosquitto-clients)")
    host, port = address
    command = [program, "-h", host, "-p", str(port), "-q", "1", "-t", topic, "-l"]
    done = subprocess.run(command, input="\n".join(lines) + "\n", text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("send", [send_by_paho, send_by_mosquitto], ids=["paho", "mosquitto_pub"])
@pytest.mark.parametrize("series", [generated, nab])
def test_rows_windows_and_alarm_equal_their_references(
    server: Callable[..., Server],
    series: Callable[[], list[Row]],
    send: Callable[[tuple[str, int], str, list[str]], None],
) -> None:
    rows = series()
    up = server(CONFIG).start()
    send(up.mqtt, "nab/m1", payloads(rows))
    sent = [(us(ts), float(value)) for ts, value in rows]

    # Rows: acknowledged, so they are there now; equal one by one, and the repeated ones are all kept.
    got = up.rows("SELECT ts, temperature FROM machine WHERE device = 'm1' ORDER BY ts, temperature")
    assert [(us(ts), value) for ts, value in got] == sorted(sent)

    # Windows: all of the series are closed by one reading behind lateness and the last window.
    closing = datetime.fromtimestamp(max(at for at, _ in sent) / 1e6, UTC) + timedelta(hours=4)
    send(up.mqtt, "nab/m1", payloads([(f"{closing:%Y-%m-%d %H:%M:%S}", "50")]))
    frame = pd.DataFrame(sent, columns=["ts", "temperature"])
    frame["window"] = pd.to_datetime(frame["ts"], unit="us", utc=True).dt.floor("1h")
    wanted = frame.groupby("window")["temperature"].agg(["count", "mean", "sum", "min", "max"])
    await_that("every window is closed", lambda: up.value("SELECT COUNT(*) FROM hourly") >= len(wanted))
    hourly = up.rows(
        "SELECT window_start, window_end, n, mean, total, low, high FROM hourly ORDER BY window_start"
    )
    assert len(hourly) == len(wanted)
    for (start, end, n, mean, total, low, high), (window, want) in zip(
        hourly, wanted.iterrows(), strict=True
    ):
        assert us(start) == us(str(window))
        assert us(end) - us(start) == 3_600_000_000
        assert (n, low, high) == (want["count"], want["min"], want["max"])
        # pandas adds with compensation; the order of adding is nobody's promise.
        assert math.isclose(mean, want["mean"], rel_tol=1e-12)
        assert math.isclose(total, want["sum"], rel_tol=1e-12)

    # Alarm: fired and resolved exactly where a reading of the definition says so.
    expected = transitions(sent, lambda t: t < 45, lambda t: t > 55, 30 * 60_000_000)
    fired = [at for state, at in expected if state == "firing"]
    resolved = [at for state, at in expected if state == "resolved"]
    assert fired, "the series raises no alarm, so it shows nothing"
    shown = up.await_alarms(
        lambda found: (
            len(found) == len(fired) and sum(each["state"] == "resolved" for each in found) == len(resolved)
        )
    )
    assert all(each["key"] == {"device": "m1"} and each["alarm"] == "cold" for each in shown)
    assert Counter(us(each["fired_at"]) for each in shown) == Counter(fired)
    assert Counter(us(each["resolved_at"]) for each in shown if each["resolved_at"]) == Counter(resolved)
    up.stop()

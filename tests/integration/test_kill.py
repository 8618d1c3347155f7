"""`kill -9` and power cuts at random moments under load: nothing acknowledged is missing, nothing is lost or doubled.

The publisher is a process of its own that notes each PUBACK before it counts it (publisher.py). The server is killed
and started again on the same data directory; with the forgetful file layer, what it did not sync is taken from it
before. At the end windows and alarms are computed again from the stored rows, in plain Python (reference.py).
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.alerts.oracle import Definition, Oracle, by_key
from tests.forgetful.layer import Layer
from tests.integration.publisher import DEVICES, END_MS
from tests.integration.reference import (
    recorded_revisions,
    recorded_transitions,
    transitions,
    us,
    windows,
)
from tests.integration.server import PATIENCE_S, Server, await_that
from tests.preload import COMPILER

#: Small segments, files and checkpoints, so that every mechanism runs many times between two kills.
CONFIG = '''
[log]
segment_bytes = 1048576
[store]
flush_interval = "500ms"
[engine]
checkpoint_interval = "500ms"
[query]
max_rows = 20000000

[streams.telemetry]
topic    = "dt/{site}/{device}/telemetry"
time     = "ts"
fields   = { seq = "bigint", temperature = "double" }
lateness = "2m"

[queries.minutes]
sql = """SELECT device, window_start, window_end, COUNT(*) AS n, SUM(temperature) AS total,
                MIN(temperature) AS low, MAX(temperature) AS high
         FROM TABLE(TUMBLE(TABLE telemetry, DESCRIPTOR(ts), INTERVAL '1' MINUTES))
         GROUP BY device, window_start, window_end"""

# The same, with results of open windows.
[queries.soon]
sql = """SELECT device, window_start, window_end, COUNT(*) AS n, SUM(temperature) AS total,
                MIN(temperature) AS low, MAX(temperature) AS high
         FROM TABLE(TUMBLE(TABLE telemetry, DESCRIPTOR(ts), INTERVAL '1' MINUTES))
         GROUP BY device, window_start, window_end"""
early = "30s"

[alarms.hot]
on    = "telemetry"
where = "temperature > 80"
clear = "temperature < 75"
for   = "5s"

# Alarms that remember more than a state: of rows that change nothing, too.
[alarms.steps]
on    = "telemetry"
steps = [{ where = "temperature > 80", severity = "minor" }, { where = "temperature > 85", severity = "critical" }]
[alarms.repeated]
on     = "telemetry"
where  = "temperature > 80"
repeat = { count = 2, of = 3 }
[alarms.rising]
on    = "telemetry"
where = "rate > 5"
rate  = { of = "temperature", per = "1s" }
'''
DEFINITIONS = {
    "steps": Definition(
        [(lambda row: row["temperature"] > 80, None), (lambda row: row["temperature"] > 85, None)]
    ),
    "repeated": Definition([(lambda row: row["temperature"] > 80, None)], repeat=(2, 3)),
    "rising": Definition(
        [(lambda row: None if row["rate"] is None else row["rate"] > 5, None)],
        rate=("temperature", 1_000_000),
    ),
}
WINDOW_US = 60_000_000


@contextmanager
def publishing(server: Server, acks: Path, seed: int, rate: int | None) -> Iterator[subprocess.Popen[str]]:
    """An independent publisher; closing its standard input makes it finish."""
    command = [
        sys.executable,
        "-m",
        "tests.integration.publisher",
        server.directory / "run.json",
        acks,
        str(seed),
        *([] if rate is None else [str(rate)]),
    ]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def acknowledged(acks: Path) -> list[int]:
    """Numbers of the readings whose PUBACK the publisher has noted so far."""
    text = acks.read_text() if acks.exists() else ""
    return [int(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def stored(server: Server, first: int) -> set[int]:
    """Numbers of the readings that a query has, from one on."""
    return {seq for (seq,) in server.rows("SELECT DISTINCT seq FROM telemetry WHERE seq >= ?", first)}


def nothing(_kill: int) -> None:
    """Between kill and start: the operating system still has everything that was written."""


def run(
    server: Server,
    acks: Path,
    kills: int,
    seed: int,
    between: Callable[[int], None] = nothing,
    finish: Callable[[], None] = lambda: None,
    moment: Callable[[], bool] = lambda: True,
    rate: int | None = None,
) -> None:
    """Kills the server `kills` times at random moments under load, then checks all that it keeps.

    finish: called after the last start, while the publisher still sends
    moment: whether it may be killed now
    rate:   readings a second; None: as many as are acknowledged
    """
    random, mean = Random(seed), 3000 if rate is None else rate / 4
    server.start()
    seen: set[int] = set()
    with publishing(server, acks, seed, rate) as publisher:
        for kill in range(kills):
            await_that(f"kill {kill}: the moment has come", moment)
            # A random moment: after so many more acknowledgements, from the first ones after the start on.
            goal = len(acknowledged(acks)) + int(random.expovariate(1 / mean)) + 1
            await_that(
                f"kill {kill}: the publisher gets acknowledgements",
                lambda goal=goal: publisher.poll() is not None or len(acknowledged(acks)) >= goal,
            )
            assert publisher.poll() is None, publisher.communicate()[1]
            server.kill()
            noted = set(acknowledged(acks))
            between(kill)
            server.start()
            new = noted - seen
            seen = noted
            missing = new - stored(server, min(new, default=0))
            assert not missing, (
                f"after kill {kill}: {len(missing)} acknowledged readings are missing: {sorted(missing)[:9]}"
            )
        finish()
        assert publisher.stdin is not None
        publisher.stdin.close()
        assert publisher.wait(PATIENCE_S) == 0
    check(server, set(acknowledged(acks)))


def check(server: Server, noted: set[int]) -> None:
    """Rows, windows and alarms of a server whose publisher has finished."""
    rows = server.rows("SELECT device, ts, received_at, seq, temperature FROM telemetry")
    missing = noted - {row[3] for row in rows}
    assert not missing, f"{len(missing)} acknowledged readings are missing: {sorted(missing)[:9]}"

    # A device's rows in the order of the log: by arrival, and within one arrival by number, as they were sent.
    series = defaultdict(list)
    for device, ts, _received, _seq, temperature in sorted(rows, key=lambda row: (us(row[2]), row[3])):
        series[device].append((us(ts), temperature))
    assert len(series) == DEVICES

    wanted = {
        (device, start): window
        for device, readings in series.items()
        for start, window in windows(readings, WINDOW_US).items()
        if start + WINDOW_US <= END_MS * 1000
    }
    sql = "SELECT device, window_start, n, total, low, high FROM {}"
    await_that("every window is closed", lambda: len(server.rows(sql.format("minutes"))) >= len(wanted))

    def differences(query: str) -> list[str]:
        found = {(device, us(start)): values for device, start, *values in server.rows(sql.format(query))}
        if query == "soon":  # its last windows are open and show something, too
            found = {key: values for key, values in found.items() if key[1] + WINDOW_US <= END_MS * 1000}
        wrong = [f"window {key}: not there" for key in wanted.keys() - found.keys()]
        wrong += [f"window {key}: has no rows" for key in found.keys() - wanted.keys()]
        for key in wanted.keys() & found.keys():
            n, total, low, high = found[key]
            want = wanted[key]
            if (n, low, high) != (want.count, want.low, want.high) or not math.isclose(
                total, want.total, rel_tol=1e-12
            ):
                wrong.append(f"window {key}: {found[key]} instead of {want}")
        return wrong

    # A resend that came late amends its window a moment after the row can be read.
    for query in ("minutes", "soon"):
        try:
            await_that(
                "the windows equal those of the stored rows", lambda query=query: not differences(query), 10
            )
        except AssertionError:
            assert differences(query) == []

    expected = {
        device: transitions(readings, lambda t: t > 80, lambda t: t < 75, 5_000_000)
        for device, readings in series.items()
    }
    resolved = sum(state == "resolved" for found in expected.values() for state, _ in found)
    assert resolved > DEVICES, "the run raised too few alarms to show anything"

    def more_than(count: int) -> int | None:
        # Four alarms of twenty kills are more than a page holds.
        alarms = hot(server.get("/api/v1/alarms", limit="100000", alarm="hot"))
        now = sum(each["state"] == "resolved" for each in alarms)
        return now if now > count else None

    # Some thousand alarms a second are more than are judged in that time: it comes behind, as long as it goes on.
    done = 0
    while done < resolved:
        done = await_that(f"more than {done} of {resolved} alarms are resolved", partial(more_than, done))
    fired = sum(state == "firing" for found in expected.values() for state, _ in found)
    alarms = hot(server.get("/api/v1/alarms", limit="100000", alarm="hot"))
    assert len([each for each in alarms if each["fired_at"]]) == fired
    books = server.get("/api/v1/books")
    assert books["balanced"], books
    server.stop()
    for query in ("minutes", "soon"):
        for window, revisions in recorded_revisions(server.directory, query).items():
            final = [number for number in revisions if number >= 0]
            assert len(revisions) == len(set(revisions)), f"{query} {window} has a result twice: {revisions}"
            assert final == list(range(len(final))), f"{query} {window} lacks a revision: {revisions}"
            assert query == "soon" or final == revisions
    assert recorded_transitions(server.directory, "hot") == expected
    for alarm, definition in DEFINITIONS.items():
        found = recorded_transitions(server.directory, alarm)
        assert found == remembered(series, definition), alarm
        assert len(found) == DEVICES, f"{alarm} raised too little to show anything"


def hot(alarms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in alarms if each["alarm"] == "hot"]


def remembered(
    series: Mapping[str, Sequence[tuple[int, float]]], definition: Definition
) -> dict[str, list[tuple[str, int]]]:
    """What the oracle says about these readings, as `recorded_transitions` gives it."""
    oracle = Oracle(definition)
    for device, readings in series.items():
        for offset, (at_us, temperature) in enumerate(readings):
            oracle.row(device, {"ts": at_us, "temperature": temperature, "_partition": 0, "_offset": offset})
    return {
        device: [(state, at_us) for _, state, at_us, *_ in told]
        for device, told in by_key(oracle.told).items()
    }


@pytest.mark.parametrize("seed", [1])
def test_three_kills(server: Callable[..., Server], tmp_path: Path, seed: int) -> None:
    run(server(CONFIG), tmp_path / "acks", 3, seed)


@pytest.mark.chaos
def test_twenty_kills(server: Callable[..., Server], tmp_path: Path) -> None:
    run(server(CONFIG), tmp_path / "acks", 20, 20)


@pytest.mark.chaos
@pytest.mark.timeout(7200)
def test_two_hundred_kills(server: Callable[..., Server], tmp_path: Path) -> None:
    """Slower readings: 200 starts take long, and what they leave is checked row by row."""
    run(server(CONFIG), tmp_path / "acks", 200, 200, rate=1_500)


def power_cuts(server: Callable[..., Server], tmp_path: Path, cuts: int, seed: int) -> None:
    up = server(CONFIG)
    layer = Layer(up.directory)
    up.environment = {**up.environment, **layer.variables}
    lost = 0

    def cut(kill: int) -> None:
        # In turns: nothing unsynced survives, or a random part of it, torn and out of order.
        nonlocal lost
        report = layer.cut_power(None if kill % 2 == 0 else seed * 1000 + kill)
        lost += report.writes_lost + report.names_lost

    run(up, tmp_path / "acks", cuts, seed, cut)
    assert lost, "no power cut took anything away, so the layer was not at work"


@pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc) to build the forgetful layer with")
@pytest.mark.parametrize("seed", [2])
def test_four_power_cuts(server: Callable[..., Server], tmp_path: Path, seed: int) -> None:
    power_cuts(server, tmp_path, 4, seed)


@pytest.mark.chaos
@pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc) to build the forgetful layer with")
@pytest.mark.parametrize("seed", range(21, 26))
def test_twenty_power_cuts(server: Callable[..., Server], tmp_path: Path, seed: int) -> None:
    power_cuts(server, tmp_path, 20, seed)

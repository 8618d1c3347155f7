"""Too much, too slow, full, stuck: what is acknowledged is kept, memory stays in its budget, and it passes.

Each fault lasts a few seconds here and as long as it would at night under the marker `chaos`. The load comes from
`headwater bench`; the disk from `tests/faults`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from headwater import bench
from headwater.bench import BenchOptions, BenchReport
from headwater.worker import STUCK_S
from tests.faults.disk import FaultyDisk
from tests.integration.server import PATIENCE_S, Server, await_that
from tests.preload import COMPILER

MIB = 1 << 20
BUDGET = 1200 * MIB
CONFIG = f'''
memory_budget = {BUDGET}
[mqtt]
shed_after = "1s"
[streams.telemetry]
topic  = "dt/{{site}}/{{device}}/telemetry"
time   = "ts"
fields = {{ temperature = "double", humidity = "double", battery = "double" }}
[queries.minutes]
sql = """SELECT device, window_start, window_end, COUNT(*) AS n, AVG(temperature) AS mean
         FROM TABLE(TUMBLE(TABLE telemetry, DESCRIPTOR(ts), INTERVAL '1' MINUTES))
         GROUP BY device, window_start, window_end"""
[alarms.hot]
on    = "telemetry"
where = "temperature > 80"
'''
#: What connections, devices and keys of these tests take beside the budget.
BESIDE = 64 * MIB

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc) to build the faulty disk with")


def lasting(short_s: float, long_s: float) -> pytest.MarkDecorator:
    """A fault's duration, seconds: one in every run, one under `chaos`."""
    return pytest.mark.parametrize("fault_s", [short_s, pytest.param(long_s, marks=pytest.mark.chaos)])


@pytest.fixture
def disk(tmp_path: Path) -> FaultyDisk:
    folder = tmp_path / "data"
    return FaultyDisk(folder)


@pytest.fixture
def up(disk: FaultyDisk) -> Iterator[Server]:
    with Server(disk.folder, CONFIG, disk.variables) as server:
        yield server


class Load:
    """A `headwater bench` beside the test, which can be ended and gives its report."""

    def __init__(self, server: Server, site: str, **options: Any) -> None:
        self.seen: dict[str, Any] = {"sent": 0, "acked": 0}
        self._options = BenchOptions(
            port=server.mqtt[1],
            topic=f"dt/{site}/{{device}}/telemetry",
            **{
                "duration_s": None,
                "connections": 20,
                "client_prefix": f"{site}-",
                "drain_s": PATIENCE_S,
                **options,
            },
        )
        self._stop = threading.Event()
        self._report: BenchReport | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        follow = {"progress": self.seen.update, "progress_interval_s": 0.05, "stop": self._stop}
        self._report = bench.run(self._options, **follow)  # type: ignore[arg-type]

    def finished(self, patience_s: float = PATIENCE_S) -> BenchReport:
        """When its duration is over and everything is answered."""
        self._thread.join(patience_s)
        assert self._report is not None, f"the load has not ended: {self.seen}"
        return self._report

    def end(self) -> BenchReport:
        self._stop.set()
        return self.finished()


def metric(server: Server, name: str) -> float:
    for line in server.http.get("/metrics").text.splitlines():
        if line.startswith(name + " "):
            return float(line.rpartition(" ")[2])
    raise AssertionError(f"no metric {name}")


def peak_bytes(server: Server) -> int:
    """Most memory that the process had, also as its operating system counts it."""
    assert server.process is not None
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmHWM")


@contextmanager
def steady(server: Server) -> Iterator[Load]:
    """A fleet that is there all the time, with its messages stored once each at the end."""
    load = Load(server, "steady", rate=2_000)
    await_that("the steady fleet is up", lambda: load.seen["acked"] > 1000)
    try:
        yield load
        before = load.seen["acked"]
        await_that("the fleet is served again", lambda: load.seen["acked"] > before + 2000)
    finally:
        report = load.end()
    check(server, "steady", report)


def check(server: Server, site: str, report: BenchReport) -> None:
    """Every acknowledged reading is there once; no connection was lost and nothing refused."""
    assert (report.errors, report.refused, report.resent) == ({}, 0, 0)
    server.await_ready()
    stored = server.value("SELECT COUNT(*) FROM telemetry WHERE site = ?", site)
    assert report.acked <= stored <= report.sent


def settled(server: Server) -> None:
    """What the whole must look like when a fault is over."""
    await_that("sockets are read", lambda: metric(server, 'headwater_pressure_loops{state="unread"}') == 0)
    await_that("the books balance", lambda: server.get("/api/v1/books")["balanced"])
    await_that(
        "nothing is in flight",
        lambda: server.get("/api/v1/books")["messages"]["in_flight"] == 0,
        patience_s=10,
    )
    peak = peak_bytes(server)
    assert peak <= BUDGET + BESIDE, f"peak memory {peak / MIB:.0f} MiB over {BUDGET / MIB:.0f}"
    server.stop()
    server.start()
    assert server.get("/api/v1/books")["balanced"]


@lasting(4, 60)
def test_a_burst(up: Server, fault_s: float) -> None:
    up.start()
    with steady(up):
        # Flat out, so more than the machine takes, with a window of unacknowledged messages per connection.
        burst = Load(up, "burst", duration_s=fault_s, connections=40, devices_per_connection=500)
        check(up, "burst", burst.finished(fault_s + PATIENCE_S))
    settled(up)


@lasting(4, 60)
def test_a_slow_disk(up: Server, disk: FaultyDisk, fault_s: float) -> None:
    up.start()
    with steady(up) as fleet:
        with disk.slow(500):
            burst = Load(up, "slow", duration_s=fault_s, rate=20_000)
            time_of_fault(fault_s)
            before = fleet.seen["acked"]
            await_that("acknowledgements come all the same", lambda: fleet.seen["acked"] > before)
        check(up, "slow", burst.finished(fault_s + PATIENCE_S))
    settled(up)


def test_small_segments_take_what_gathers_behind_a_slow_disk(disk: FaultyDisk) -> None:
    config = CONFIG.replace("fields = {", 'fields = { note = "string",') + "[log]\nsegment_bytes = 1048576\n"
    with Server(disk.folder, config, disk.variables) as up:
        up.start()
        # Each with a text of its own, since equal ones take hardly any room.
        payload = f'{{"ts":1732000000123,"note":"{"x" * 3000}{{device}}{{seq}}","temperature":1.5}}'
        with disk.slow(300):
            load = Load(up, "small", duration_s=3, connections=40, payload=payload)
            report = load.finished()
        assert report.acked > 1000
        check(up, "small", report)


@lasting(4, 60)
def test_a_full_disk_stops_acknowledgements_and_not_the_process(
    up: Server, disk: FaultyDisk, fault_s: float
) -> None:
    up.start(["log.segment_bytes=1048576", "log.queue_bytes=2097152", "mqtt.max_inflight_bytes=2097152"])
    with steady(up) as fleet:
        careless = Load(up, "careless", qos=0, rate=20_000, duration_s=fault_s + 8)
        with disk.full():
            await_that("the log says that it is full", lambda: metric(up, "headwater_log_full") == 1)
            stopped = await_stop(fleet)
            # No connection is closed, queries are answered, and what is best effort gives way.
            assert up.value("SELECT COUNT(*) FROM telemetry WHERE site = 'steady'") >= stopped
            await_that(
                "sockets stay unread", lambda: metric(up, 'headwater_pressure_loops{state="unread"}') >= 1
            )
            time_of_fault(fault_s)
            assert fleet.seen["acked"] == stopped
        await_that("the log goes on", lambda: metric(up, "headwater_log_full") == 0)
        await_that("acknowledgements come again", lambda: fleet.seen["acked"] > stopped)
        sent = careless.finished(fault_s + PATIENCE_S).sent
        up.await_ready()
        stored = up.value("SELECT COUNT(*) FROM telemetry WHERE site = 'careless'")
        shed = up.get("/api/v1/books")["messages"]["shed"]
        assert stored + shed == sent
    assert "pressure" in up.stderr()
    # Told while nothing could be stored, and recorded since.
    up.await_alarms(lambda found: own_state(found, "headwater:disk_full") == "resolved")
    up.await_alarms(lambda found: own_state(found, "headwater:shedding") == "resolved")
    settled(up)


@lasting(4, 600)
def test_a_store_that_stops(up: Server, disk: FaultyDisk, fault_s: float) -> None:
    up.start(["store.flush_interval=500ms"])
    with steady(up) as fleet:
        with disk.stuck(disk.folder / "tables"):
            await_that("the store is stuck", lambda: disk.waiting > 0)
            before = fleet.seen["acked"]
            time_of_fault(fault_s)
            await_that("messages are acknowledged all the same", lambda: fleet.seen["acked"] > before + 2000)
            hot = Load(up, "hot", payload='{"temperature":99.5,"ts":{ts_us}}', messages=1, connections=1)
            assert hot.finished().acked == 1
            up.await_alarms(lambda found: any(each["fired_at"] for each in found))
            if fault_s > STUCK_S:
                up.await_alarms(lambda found: own_state(found, "headwater:service") == "firing")
        await_that("the store goes on", lambda: disk.waiting == 0)
        await_that("files grow", lambda: metric(up, 'headwater_store_rows_total{table="telemetry"}') > before)
    settled(up)


def own_state(alarms: list[dict[str, Any]], name: str) -> str | None:
    """State of the latest of Headwater's own alarms of that name."""
    return next((each["state"] for each in alarms if each["alarm"] == name), None)


def await_stop(load: Load) -> int:
    """Acknowledgements so far, as soon as none has come for half a second."""
    last, since = -1, 0.0

    def quiet() -> bool:
        nonlocal last, since
        now = time.monotonic()
        if load.seen["acked"] != last:
            last, since = load.seen["acked"], now
        return now - since > 0.5

    await_that("no acknowledgement comes", quiet)
    return last


def time_of_fault(seconds: float) -> None:
    """The fault lasts: nothing to be awaited can tell its end."""
    time.sleep(seconds)

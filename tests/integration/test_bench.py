"""The load generator against Headwater and mosquitto: everything it says it sent, the other side has."""

from __future__ import annotations

import json
import resource
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from headwater import bench
from headwater.bench import BenchOptions
from headwater.errors import ConfigError, HeadwaterError
from tests.integration.server import Server, await_that
from tests.integration.test_cli import good, refused

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")

CONFIG = """
[streams.telemetry]
topic  = "dt/{site}/{device}/telemetry"
time   = "ts"
fields = { temperature = "double", humidity = "double", battery = "double" }
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("bench") / "data", CONFIG).start() as running:
        yield running


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[int]:
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    config = tmp_path / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_inflight_messages 0\nmax_queued_messages 0\n",
        encoding="utf-8",
    )
    with subprocess.Popen([MOSQUITTO, "-c", config], stderr=subprocess.DEVNULL) as process:

        def accepts() -> bool:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                return False
            return True

        await_that("mosquitto accepts", accepts)
        yield port
        process.terminate()


def port_of(server: Server) -> int:
    return int(server.running["mqtt"].rpartition(":")[2])


def rows(server: Server, site: str) -> int:
    answer = server.http.post(
        "/api/v1/query", json={"sql": f"SELECT COUNT(*) FROM telemetry WHERE site = '{site}'"}
    )
    count: int = answer.json()["rows"][0][0]
    return count


@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("one_per_write", [False, True])
def test_every_message_counted_is_a_row(server: Server, protocol: str, qos: int, one_per_write: bool) -> None:
    site = f"flat-{protocol}-{qos}-{one_per_write}"
    options = BenchOptions(
        port=port_of(server),
        protocol="5" if protocol == "5" else "3.1.1",
        connections=4,
        devices_per_connection=3,
        qos=qos,
        one_per_write=one_per_write,
        messages=5_000,
        topic=f"dt/{site}/{{device}}/telemetry",
    )
    report = bench.run(options)
    assert (report.sent, report.refused, report.unanswered, report.errors) == (5_000, 0, 0, {})
    assert report.acked == (5_000 if qos else 0)
    assert report.ack.count == report.acked
    assert sum(count for _, count in report.histograms["ack"]) == report.acked
    assert (
        report.ack.p50_ms <= report.ack.p90_ms <= report.ack.p99_ms <= report.ack.p999_ms <= report.ack.max_ms
    )
    assert report.connections_up == 4
    # QoS 0 too: the run ends with a ping behind the last message, whose answer comes after it was taken in.
    await_that("every message is a row", lambda: rows(server, site) == 5_000)


def test_flat_out_below_a_bound(server: Server) -> None:
    options = BenchOptions(
        port=port_of(server),
        connections=4,
        devices_per_connection=100,
        at_most=20_000,
        # A window that is full would cut a write short.
        window=1_000,
        duration_s=1.0,
        topic="dt/bound/{device}/telemetry",
    )
    report = bench.run(options)
    assert 0 < report.sent == report.acked <= 20_000
    assert report.sent % 50 == 0, "50 in each write"
    await_that("every message is a row", lambda: rows(server, "bound") == report.sent)


def test_a_rate_is_kept_and_spread_over_the_connections(server: Server) -> None:
    options = BenchOptions(
        port=port_of(server), connections=10, rate=1_000, duration_s=1.0, topic="dt/paced/{device}/telemetry"
    )
    seen: list[int] = []
    report = bench.run(options, progress=lambda found: seen.append(found["sent"]), progress_interval_s=0.2)
    assert report.sent == report.acked == 1_000
    assert seen == sorted(seen)
    assert seen
    await_that("every message is a row", lambda: rows(server, "paced") == 1_000)


def test_subscribers_beside_publishers_get_every_message_with_its_latency(mosquitto: int) -> None:
    for sub_qos in (0, 1):
        options = BenchOptions(
            port=mosquitto,
            connections=3,
            messages=300,
            rate=3_000,
            subscribers=2,
            filter="dt/#",
            subscribe_qos=sub_qos,
            protocol="3.1.1",
        )
        report = bench.run(options)
        assert (report.sent, report.acked, report.received) == (300, 300, 600)
        assert report.delivery.count == 600
        assert report.delivery.max_ms < 60_000
        assert report.connections_up == 5


def test_headwater_delivers_to_subscribers_of_the_bench(server: Server) -> None:
    options = BenchOptions(
        port=port_of(server),
        connections=2,
        messages=200,
        rate=2_000,
        subscribers=1,
        filter="dt/live/#",
        topic="dt/live/{device}/telemetry",
    )
    report = bench.run(options)
    assert (report.acked, report.received, report.delivery.count) == (200, 200, 200)


def test_a_payload_of_bytes_and_one_with_places(mosquitto: int) -> None:
    for payload, topic in ((bytes(range(256)), "raw/{device}"), ("{seq} {fill:10} {ts_ms}", "text/{device}")):
        report = bench.run(
            BenchOptions(port=mosquitto, connections=1, messages=50, payload=payload, topic=topic)
        )
        assert report.acked == 50


def test_idle_connections_are_held_and_leave(server: Server) -> None:
    most: list[int] = []
    options = BenchOptions(
        port=port_of(server), connections=40, idle=True, duration_s=0.5, connects_per_s=1_000
    )
    report = bench.run(
        options, progress=lambda found: most.append(found["connections_up"]), progress_interval_s=0.1
    )
    assert (report.sent, report.connections_up) == (0, 40)
    assert report.connect.count == 40
    assert set(most) == {40}


def test_refusals_are_counted_by_reason_code(server: Server) -> None:
    options = BenchOptions(
        port=port_of(server),
        connections=1,
        messages=10,
        payload="{fill:200000}",
        topic="dt/big/{device}/telemetry",
    )
    report = bench.run(options)
    assert (report.sent, report.acked, report.refused) == (10, 0, 10)
    assert report.errors == {"PUBACK 0x97": 10}


def test_stop_ends_a_run_early(server: Server) -> None:
    stop = threading.Event()
    options = BenchOptions(
        port=port_of(server), connections=1, rate=100, duration_s=None, topic="dt/s/{device}/telemetry"
    )
    report = bench.run(options, progress=lambda _found: stop.set(), progress_interval_s=0.05, stop=stop)
    assert report.unanswered == 0


def test_what_cannot_be_run_is_refused_with_its_reason() -> None:
    with pytest.raises(ConfigError, match="places are"):
        bench.run(BenchOptions(payload="{devcie}"))
    with pytest.raises(ConfigError, match="flat out without an end"):
        bench.run(BenchOptions(duration_s=None))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit < 1_000_000:
        with pytest.raises(HeadwaterError, match=rf"{limit}.*ulimit -n.*several"):
            bench.run(BenchOptions(connections=limit + 1))


def test_no_server_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(HeadwaterError, match=f"127.0.0.1:{port}"):
        bench.run(BenchOptions(port=port, connect_timeout_s=0.3))


# ---- the verbs


def test_the_verbs_print_live_lines_and_a_report(server: Server) -> None:
    mqtt = server.running["mqtt"]
    text = good(
        "bench",
        "pub",
        "--mqtt",
        mqtt,
        "-c",
        "2",
        "--rate",
        "100",
        "-s",
        "1.3",
        "--topic",
        "dt/v/{device}/telemetry",
    )
    assert "2 connected" in text
    assert "acknowledged" in text
    assert "p99.9" in text
    found = json.loads(good("bench", "conn", "--mqtt", mqtt, "-c", "3", "-s", "0.2", "--json"))
    assert (found["connections_up"], found["sent"]) == (3, 0)
    found = json.loads(
        good("bench", "sub", "--mqtt", mqtt, "-c", "2", "-s", "0.2", "--filter", "dt/#", "--json")
    )
    assert (found["connections_up"], found["received"]) == (2, 0)
    assert "3.1.1 or 5" in refused("bench", "pub", "--mqtt", mqtt, "--protocol", "4")
    assert "payload" in refused("bench", "pub", "--mqtt", mqtt, "--payload", "@/no/such/file")


def test_doctor_says_what_limits_and_ends_with_its_verdict(tmp_path: Path) -> None:
    text = good("doctor", "--data-dir", tmp_path, "--set", "mqtt.max_connections=10", "--devices", "1000")
    assert "disk sync" in text
    assert "messages/s" in text
    found = json.loads(good("doctor", "--data-dir", tmp_path, "--json"))
    assert found["fails"] is False

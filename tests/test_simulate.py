"""The face of the fleet: what is read from text, what reaches the native side, and a fleet played for real."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import ConfigError
from headwater.simulate import (
    Fault,
    FaultKind,
    Field,
    Fleet,
    FleetOptions,
    FleetReport,
    parse_fault,
    parse_field,
    simulate,
)

START = datetime(2026, 1, 1, tzinfo=UTC)


class Broker(socketserver.ThreadingTCPServer):
    """Accepts MQTT 5 connections, keeps every PUBLISH and acknowledges it."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.messages: list[tuple[str, dict[str, Any]]] = []
        self.raw: list[bytes] = []
        self.port: int = self.server_address[1]


class _Connection(socketserver.StreamRequestHandler):
    server: Broker

    def handle(self) -> None:
        while first := self.rfile.read(1):
            length, shift = 0, 0
            while True:
                (byte,) = self.rfile.read(1)
                length |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            body = self.rfile.read(length)
            match first[0] >> 4:
                case 1:
                    self.wfile.write(b"\x20\x03\x00\x00\x00")
                case 3:
                    end = 2 + int.from_bytes(body[:2])
                    self.server.messages.append((body[2:end].decode(), json.loads(body[end + 3 :])))
                    self.server.raw.append(body[end + 3 :])
                    self.wfile.write(b"\x40\x02" + body[end : end + 2])
                case 12:
                    self.wfile.write(b"\xd0\x00")
                case 14:
                    return


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Broker() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def options(broker: Broker, **changes: Any) -> FleetOptions:
    plain: dict[str, Any] = {
        "port": broker.port,
        "devices": 4,
        "rate_per_device": 100.0,
        "messages": 80,
        "start_time": START,
        "threads": 1,
    }
    return FleetOptions(**(plain | changes))


def test_a_fault_is_read_from_text() -> None:
    assert parse_fault("spike:d000007:temperature:30:1") == Fault(FaultKind.SPIKE, 7, "temperature", 30, 1)
    assert parse_fault("drift:12:humidity:5m:1h:0.5") == Fault(
        FaultKind.DRIFT, 12, "humidity", 300, 3600, 0.5
    )
    assert parse_fault("dropout:d000001::10:5") == Fault(FaultKind.DROPOUT, 1, None, 10, 5)
    assert parse_fault("clock-skew:d000001:-:10s:5s:-120") == Fault(
        FaultKind.CLOCK_SKEW, 1, None, 10, 5, -120
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has 1 part(s); write KIND:DEVICE:FIELD:START:DURATION"),
        ("spike:d000007:temperature:30", "has 4 part(s)"),
        ("spke:d000007:temperature:30:1", "did you mean spike"),
        ("fire:d000007:temperature:30:1", "kinds are spike, shift, drift, stuck, dropout, clock_skew"),
        ("spike:seven:temperature:30:1", "'seven' is no device"),
        ("spike:d000007::30:1", "strikes one field, but none is named"),
        ("dropout:d000007:temperature:30:1", "leave 'temperature' out"),
        ("stuck:d000007:temperature:30:1:2", "stuck has no magnitude"),
        ("spike:d000007:temperature:soon:1", "START is 'soon'"),
        ("spike:d000007:temperature:30:nan", "DURATION is 'nan'"),
        ("spike:d000007:temperature:30:1:inf", "MAGNITUDE is 'inf'"),
    ],
)
def test_a_wrong_fault_is_refused_with_the_part_that_is_wrong(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_fault(text)
    assert complaint in str(caught.value)


def test_a_field_is_read_from_text() -> None:
    assert parse_field("temperature:21.5:0.5") == Field("temperature", 21.5, 0.5)
    assert parse_field("humidity:45:1.5:5:24h:1") == Field("humidity", 45, 1.5, 5, 86_400, 1)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("temperature", "write NAME:MEAN:SIGMA"),
        (":1:2", "write NAME:MEAN:SIGMA"),
        ("t:warm:1", "MEAN is 'warm'"),
        ("t:1:1:1:1:1.5", "whole number"),
    ],
)
def test_a_wrong_field_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_field(text)
    assert complaint in str(caught.value)


def test_a_fleet_plays_what_was_asked_for(broker: Broker, tmp_path: Path) -> None:
    spike = parse_fault("spike:d000002:temperature:0.05:0:20")
    seen: list[FleetReport] = []
    report = simulate(
        options(broker, faults=(spike,)),
        labels=tmp_path / "labels.jsonl",
        progress=seen.append,
        progress_interval_s=0.0,
    )
    assert (report.sent, report.acked, report.in_flight, report.finished) == (80, 80, 0, True)
    assert report.messages_per_s > 0
    assert 0 < report.ack_p50_ms <= report.ack_p99_ms <= report.ack_max_ms
    assert all(one.sent == one.acked + one.refused + one.in_flight for one in seen)
    assert {topic for topic, _ in broker.messages} == {f"dt/s{d:03}/d{d:06}/telemetry" for d in range(4)}
    (line,) = (tmp_path / "labels.jsonl").read_text().splitlines()
    label = json.loads(line)
    assert label == {
        "device": "d000002",
        "field": "temperature",
        "kind": "spike",
        "start_us": label["start_us"],
        "end_us": label["start_us"] + 10_000,
        "magnitude": 20.0,
        "unit": "sigma",
        "readings": 1,
    }
    struck = [
        message["temperature"]
        for _, message in broker.messages
        if message["device_id"] == "d000002" and label["start_us"] <= message["ts"] * 1_000 < label["end_us"]
    ]
    assert len(struck) == 1
    assert struck[0] > 28


def test_the_same_options_play_the_same_bytes(broker: Broker) -> None:
    changes = {"faulty_fraction": 0.5, "rate_per_device": 0.0}
    simulate(options(broker, **changes))
    first = sorted(broker.raw)
    broker.raw.clear()
    simulate(options(broker, **changes))
    assert sorted(broker.raw) == first
    assert len(first) == 80


def test_a_start_time_in_any_zone_is_the_same_moment(broker: Broker) -> None:
    there = START.astimezone(timezone(timedelta(hours=5, minutes=30)))
    simulate(options(broker, start_time=there, messages=4))
    assert min(message["ts"] for _, message in broker.messages) == START.timestamp() * 1_000


def test_stopping_ends_an_endless_fleet(broker: Broker) -> None:
    stop = threading.Event()

    def enough(report: FleetReport) -> None:
        if report.acked > 10:
            stop.set()

    report = simulate(options(broker, messages=None), progress=enough, progress_interval_s=0.0, stop=stop)
    assert report.acked == report.sent > 10
    assert not report.finished


def test_a_fleet_can_be_stopped_twice(broker: Broker) -> None:
    with Fleet(options(broker, messages=None)) as fleet:
        last = fleet.stop()
        assert fleet.stop() == fleet.report() == last


def test_without_a_server_it_says_where_and_why() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ConnectionError, match=rf"127.0.0.1:{port} within 0.2 s: .*refused"):
            simulate(FleetOptions(port=port, devices=1), connect_timeout_s=0.2)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"devices": 0}, "devices is 0"),
        ({"devices": -1}, "devices"),
        ({"qos": 2}, "QoS 0 or 1"),
        ({"protocol": "3.1"}, "neither 3.1.1 nor 5"),
        ({"faults": (Fault(FaultKind.SHIFT, 9, "temperature", 1, 1),)}, "d000009 is not in this fleet"),
        ({"faults": (Fault(FaultKind.SHIFT, 1, "colour", 1, 1),)}, "the fields are temperature, humidity"),
        ({"duration_s": -1.0}, "duration_s"),
        ({"start_time": START.replace(tzinfo=None)}, "no time zone"),
        ({"host": "no such host"}, "cannot find the MQTT server"),
    ],
)
def test_options_that_cannot_be_played_are_refused(
    broker: Broker, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        simulate(options(broker, **changes))
    assert complaint in str(caught.value)


numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(
    kind=st.sampled_from(FaultKind),
    device=st.integers(0, 9_999_999),
    field=st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True),
    start_s=numbers,
    duration_s=numbers,
    magnitude=st.none() | numbers,
)
def test_a_fault_written_as_text_is_read_back(
    kind: FaultKind, device: int, field: str, start_s: float, duration_s: float, magnitude: float | None
) -> None:
    if kind in {FaultKind.STUCK, FaultKind.DROPOUT}:
        magnitude = None
    fault = Fault(kind, device, field if kind.has_field else None, start_s, duration_s, magnitude)
    assert parse_fault(str(fault)) == fault


@given(
    st.text(max_size=60) | st.from_regex(r"(spike|dropout):d?[0-9]{1,9}:[a-z-]?:[0-9a-z.]{1,4}:[0-9.]{1,3}")
)
def test_any_text_is_a_fault_or_a_config_error(text: str) -> None:
    try:
        fault = parse_fault(text)
    except ConfigError as error:
        complaint = str(error)
    else:
        complaint = ""
        assert parse_fault(str(fault)) == fault
    assert not complaint or repr(text) in complaint

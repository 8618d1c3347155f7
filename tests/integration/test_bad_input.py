"""Every row of docs/bad-input.md, sent to a running server and answered as the row says."""

from __future__ import annotations

import base64
import re
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import orjson
import pytest
from typer.testing import CliRunner

from headwater.cli import app
from tests.integration import peer
from tests.integration.peer import Peer, connect, packet, publish, subscribe, text
from tests.integration.server import TELEMETRY, Server, await_that

PAGE = Path(__file__).parents[2] / "docs" / "bad-input.md"

#: Small limits, so that reaching them is cheap.
CONFIG = (
    """
[mqtt]
first_packet_timeout_s = 2
receive_maximum = 20
max_payload_bytes = 150000
max_packet_bytes = 200000
max_subscriptions = 5
max_topic_levels = 10
max_retained_messages = 2
[http]
max_body_bytes = 100000
[query]
max_rows = 100000
timeout = "1s"
"""
    + TELEMETRY
)


def table(title: str) -> list[list[str]]:
    """Rows of the table under this heading, as cells without the quotes of the row's name."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [[row[0].strip("` "), *row[1:]] for row in rows]


def quoted(cell: str) -> str:
    """What a cell quotes, one line per quotation."""
    return "\n".join(re.findall(r"`([^`]*)`", cell))


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("bad") / "data", CONFIG) as server:
        yield server.start()
        # After all of it the process lives, has counted everything and ends as it should.
        assert server.get("/api/v1/books")["balanced"]
        server.stop()


# ---- packets: what to send, by row; `level` is 4 or 5. A CONNECT case is sent at once, others after a good CONNECT.

T = "dt/hall/d1/telemetry"
ALIAS, RESPONSE, EXPIRY, METHOD, DATA, SUBSCRIPTION = b"\x23", b"\x08", b"\x11", b"\x15", b"\x16", b"\x0b"


def levels(n: int) -> str:
    return "/".join("l" * n)


CONNECTS: dict[str, Callable[[int], bytes]] = {
    "first-packet": lambda level: publish(level, T, b"{}", qos=1),
    "protocol-name": lambda level: connect(level, name="MQIsdp"),
    "protocol-level": lambda level: connect(6 if level == 5 else 3),
    "connect-flag": lambda level: connect(level, flags=3),
    "connect-rest": lambda level: connect(level, after=b"rest"),
    "client-id-empty": lambda level: connect(level, flags=0, client=""),
    "client-id-long": lambda level: connect(level, client="c" * 1025),
    "client-id-utf8": lambda level: packet(
        0x10, text("MQTT") + bytes([level, 2, 0, 0]) + (b"\0" if level == 5 else b"") + text(b"\xed\xa0\x80")
    ),
    "password-alone": lambda level: connect(level, flags=0x42, after=text("secret")),
    "will-topic": lambda level: connect(
        level, flags=6, after=(b"\0" if level == 5 else b"") + text("$SYS/will") + text("gone")
    ),
    "will-bits": lambda level: connect(level, flags=0x0A),
    "authentication": lambda level: connect(level, properties=METHOD + text("SCRAM")),
    "authentication-data": lambda level: connect(level, properties=DATA + text("data")),
}

PACKETS: dict[str, Callable[[int], bytes]] = {
    "connect-twice": connect,
    "auth-unasked": lambda _level: packet(0xF0),
    "packet-type": lambda _level: packet(0x00),
    "header-flags": lambda level: subscribe(level, ("a", 0), first=0x80),
    "remaining-length": lambda _level: b"\x30\xff\xff\xff\xff\x01",
    "packet-size": lambda _level: b"\x30" + peer.length(200_001),
    "packet-short": lambda _level: packet(0x30, b"\0\x10abc"),
    "packet-id": lambda level: publish(level, T, b"{}", qos=1, packet_id=0),
    "qos-3": lambda level: publish(level, T, b"{}", qos=3),
    "dup": lambda level: publish(level, T, b"{}", dup=True),
    "property-twice": lambda level: publish(level, T, properties=2 * (RESPONSE + text("r"))),
    "property-foreign": lambda level: publish(level, T, properties=EXPIRY + bytes(4)),
    "topic-alias": lambda level: publish(level, T, qos=1, properties=ALIAS + b"\0\0"),
    "topic-alias-unset": lambda level: publish(level, "", qos=1, properties=ALIAS + b"\0\x01"),
    "response-topic": lambda level: publish(level, T, qos=1, properties=RESPONSE + text("a/+")),
    "topic-empty": lambda level: publish(level, "", b"{}", qos=1),
    "topic-levels": lambda level: publish(level, levels(11), b"{}", qos=1),
    "topic-sys": lambda level: publish(level, "$SYS/broker/uptime", b"1", qos=1),
    "payload-size": lambda level: publish(level, T, bytes(150_001), qos=1),
    "payload-size-qos-0": lambda level: publish(level, T, bytes(150_001)),
    "subscribe-empty": subscribe,
    "subscribe-options": lambda level: subscribe(level, ("a", 0xC0)),
    "unsubscribe-empty": lambda level: packet(0xA2, b"\0\x01" + (b"\0" if level == 5 else b"")),
    "filter-levels": lambda level: subscribe(level, (levels(11), 0)),
    "shared-name": lambda level: subscribe(level, ("$share/a+b/c", 0)),
    "shared-no-local": lambda level: subscribe(level, ("$share/group/a", 4)),
    "subscription-id": lambda level: subscribe(level, ("a", 0), properties=SUBSCRIPTION + b"\0"),
    "subscription-id-sent": lambda level: publish(level, T, qos=1, properties=SUBSCRIPTION + b"\x07"),
}


def said(up: Server, level: int, data: bytes, client: str = "bad") -> list[str]:
    """The answer to `data` after a good CONNECT."""
    with Peer(up.mqtt, level) as device:
        device.login(client)
        return device.ask(data)


def first_packet_late(up: Server, level: int) -> list[str]:
    with Peer(up.mqtt, level) as device:
        began = time.monotonic()
        assert device.read() is None
        assert time.monotonic() - began > 1
        return ["closed"]


def receive_maximum(up: Server, level: int) -> list[str]:
    flood = b"".join(publish(level, "no/stream", b"", qos=1, packet_id=n) for n in range(1, 10_001))
    answers = said(up, level, flood)
    assert set(answers[:-2]) <= {"PUBACK 0x00", "PUBACK 0x10"}
    return answers[-2:]


def keep_alive(up: Server, level: int) -> list[str]:
    with Peer(up.mqtt, level) as device:
        device.login("silent", keep_alive_s=1)
        answers = []
        while (answer := device.read()) is not None:
            answers.append(f"{peer.NAMES[answer.kind]} 0x{answer.reason(level):02X}")
        return [*answers, "closed"]


def each_of(*wrong: Callable[[int], bytes]) -> Callable[[Server, int], list[str]]:
    """The common answer to several packets."""

    def ask(up: Server, level: int) -> list[str]:
        answers = {tuple(said(up, level, make(level))) for make in wrong}
        assert len(answers) == 1, answers
        return list(answers.pop())

    return ask


def topic_unmatched(up: Server, level: int) -> list[str]:
    topic = f"nobody/wants/this/{level}"
    answers = said(up, level, publish(level, topic, b'{"a": 1}', qos=1))
    assert topic in [each["topic"] for each in up.get("/api/v1/streams/unmatched")]
    # 0x10 says the same, and that nobody subscribes (MQTT 5.0, section 3.4.2.1).
    return ["PUBACK 0x00"] if answers == ["PUBACK 0x10"] else answers


def retained_full(up: Server, level: int) -> list[str]:
    keep = [publish(level, f"kept/{n}", b"1", qos=1, retain=True, packet_id=n) for n in (1, 2)]
    clear = [publish(level, f"kept/{n}", b"", qos=1, retain=True, packet_id=n) for n in (1, 2, 3)]
    with Peer(up.mqtt, level) as device:
        device.login("keeper")
        device.ask(b"".join(keep))
        answers = device.ask(publish(level, "kept/3", b"1", qos=1, retain=True))
        kept = [answer for answer in device.ask(subscribe(level, ("kept/+", 0))) if answer == "PUBLISH"]
        assert len(kept) == 2, "the one too many is retained"
        device.ask(b"".join(clear))
    return [answer.replace("0x10", "0x00") for answer in answers]


def subscriptions(up: Server, level: int) -> list[str]:
    with Peer(up.mqtt, level) as device:
        device.login("curious")
        for n in range(5):
            assert device.ask(subscribe(level, (f"f/{n}", 0))) == ["SUBACK 0x00"]
        return device.ask(subscribe(level, ("f/5", 0)))


ALONE: dict[str, Callable[[Server, int], list[str]]] = {
    "first-packet-late": first_packet_late,
    "server-packet": each_of(
        lambda level: packet(0x20, b"\0\0\0"[: 3 if level == 5 else 2]),
        lambda level: packet(0x90, b"\0\x01\0\0"[: 4 if level == 5 else 3]),
        lambda level: packet(0xB0, b"\0\x01\0\0"[: 4 if level == 5 else 2]),
        lambda _level: packet(0xD0),
    ),
    "receive-maximum": receive_maximum,
    "keep-alive": keep_alive,
    "topic-wildcard": each_of(*(lambda level, t=t: publish(level, t, qos=1) for t in ("a/+", "#", "a#b"))),
    "topic-utf8": each_of(
        *(
            lambda level, t=t: publish(level, t, qos=1)
            for t in (b"a\0b", b"\xed\xa0\x80", b"\xc0\x80", b"\xff")
        )
    ),
    "topic-unmatched": topic_unmatched,
    "retained-full": retained_full,
    "filter-wildcard": each_of(*(lambda level, f=f: subscribe(level, (f, 0)) for f in ("a/#/b", "a#", "+a"))),
    "filter-utf8": each_of(
        lambda level: packet(0x82, b"\0\x01" + (b"\0" if level == 5 else b"") + text(b"\xff") + b"\0")
    ),
    "subscriptions": subscriptions,
}


def test_every_packet_of_the_page_has_a_test_and_the_reverse() -> None:
    rows = [row[0] for row in table("Packets, topics and filters")]
    assert len(rows) == len(set(rows))
    assert set(rows) == CONNECTS.keys() | PACKETS.keys() | ALONE.keys()


def packet_cases() -> Iterator[Any]:
    """Row, protocol level and answer; a version that does not know the case has no test."""
    for name, _sent, *answers in table("Packets, topics and filters"):
        for level, version, answer in zip((4, 5), ("3.1.1", "5"), answers, strict=True):
            if answer != "-":
                yield pytest.param(name, level, answer.split(", "), id=f"{name}-{version}")


@pytest.mark.parametrize(("name", "level", "wanted"), list(packet_cases()))
def test_packet(up: Server, name: str, level: int, wanted: list[str]) -> None:
    if name in CONNECTS:
        with Peer(up.mqtt, level) as device:
            got = device.ask(CONNECTS[name](level))
    elif name in PACKETS:
        got = said(up, level, PACKETS[name](level))
    else:
        got = ALONE[name](up, level)
    assert got == wanted


def test_a_packet_that_never_ends_and_one_byte_at_a_time_hurt_nobody(up: Server) -> None:
    with Peer(up.mqtt) as half, Peer(up.mqtt) as slow:
        half.send(connect()[:9])
        for at, byte in enumerate(connect(client="slow") + publish(4, T, b'{"note": "slow"}', qos=1)):
            slow.send(bytes([byte]))
            if at == 20:
                assert said(up, 4, publish(4, T, b'{"note": "quick"}', qos=1)) == ["PUBACK 0x00"]
        assert slow.ask(b"") == ["CONNACK 0x00", "PUBACK 0x00"]


# ---- payloads


BUILT = {
    "payload-utf8": b'{"note": "\xff\xfe"}',
    "payload-empty": b"",
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("level", [4, 5], ids=["3.1.1", "5"])
@pytest.mark.parametrize("row", table("Payloads"), ids=lambda row: row[0])
def test_payload(up: Server, row: list[str], level: int) -> None:
    name, sent, outcome = row
    payload = BUILT[name] if name in BUILT else quoted(sent).encode()
    device = f"{name}-{level}"
    topic = f"dt/hall/{device}/telemetry"
    code = 0x99 if level == 5 and outcome.startswith("dead letter") else 0
    assert said(up, level, publish(level, topic, payload, qos=1), device) == [f"PUBACK 0x{code:02X}"]
    columns = 'seq, temperature, "on", note'
    rows = up.rows(f"SELECT {columns} FROM telemetry WHERE device = ?", device)
    dead = [each for each in up.get("/api/v1/deadletters", limit="10000") if each["topic"] == topic]
    if outcome.startswith("dead letter"):
        assert rows == []
        [letter] = dead
        assert letter["reason"] == quoted(outcome)
        assert letter["client"] == device
        assert letter["stream"] == "telemetry"
        assert letter["detail"]
        assert base64.b64decode(letter["payload"]) == payload
    else:
        assert dead == []
        wanted = orjson.loads(quoted(outcome))
        assert len(rows) == len(wanted)
        for got, want in zip(rows, wanted, strict=True):
            assert dict(zip(("seq", "temperature", "on", "note"), got, strict=True)).items() >= want.items()


# ---- SQL


@pytest.mark.parametrize("row", table("SQL"), ids=lambda row: row[0])
def test_sql(up: Server, row: list[str]) -> None:
    _name, sql, status, names = row
    answer = up.http.post("/api/v1/query", json={"sql": quoted(sql)})
    assert answer.status_code == int(status), answer.text
    assert names.lower() in answer.json()["detail"].lower()
    if "position" in answer.json():
        assert 0 <= answer.json()["position"] <= len(quoted(sql))


# ---- HTTP


def _shadow_version(up: Server) -> httpx.Response:
    body = {"state": {"desired": {"a": 1}}}
    assert up.http.post("/things/versioned/shadow", json=body).status_code == 200
    return up.http.post("/things/versioned/shadow", json={**body, "version": 41})


def _one_of_many(up: Server) -> httpx.Response:
    readings = [{"site": "s", "device": "many", "seq": 1}, {"site": "s", "device": "many", "seq": "x"}]
    answer = up.http.post("/api/v1/ingest/telemetry", json=readings)
    assert up.value("SELECT COUNT(*) FROM telemetry WHERE device = 'many'") == 0
    return answer


def _no_length(up: Server) -> httpx.Response:
    return up.http.post("/api/v1/ingest/telemetry", content=iter([b"{}"]))  # chunked


REQUESTS: dict[str, Callable[[Server], httpx.Response]] = {
    "http-route": lambda up: up.http.get("/no/such/route"),
    "http-method": lambda up: up.http.get("/api/v1/query"),
    "http-body": lambda up: up.http.post("/api/v1/query", content=b"{"),
    "http-unknown-key": lambda up: up.http.post("/api/v1/query", json={"sql": "SELECT 1", "limit": 1}),
    "http-no-length": _no_length,
    "http-too-large": lambda up: up.http.post("/api/v1/query", json={"sql": " " * 100_001}),
    "ingest-no-stream": lambda up: up.http.post("/api/v1/ingest/nothing", json={}),
    "ingest-bad-reading": lambda up: up.http.post(
        "/api/v1/ingest/telemetry", json={"site": "s", "device": "d", "seq": 1.5}
    ),
    "ingest-one-of-many": _one_of_many,
    "shadow-no-json": lambda up: up.http.post("/things/t1/shadow", content=b"{"),
    "shadow-no-state": lambda up: up.http.post("/things/t1/shadow", json={}),
    "shadow-version": _shadow_version,
    "shadow-too-large": lambda up: up.http.post(
        "/things/t1/shadow", json={"state": {"desired": {"text": "x" * 10_000}}}
    ),
    "shadow-missing": lambda up: up.http.get("/things/nobody/shadow"),
}


def test_every_request_of_the_page_has_a_test_and_the_reverse() -> None:
    assert {row[0] for row in table("HTTP")} == REQUESTS.keys()


@pytest.mark.parametrize("row", table("HTTP"), ids=lambda row: row[0])
def test_request(up: Server, row: list[str]) -> None:
    answer = REQUESTS[row[0]](up)
    assert answer.status_code == int(row[2]), answer.text
    body: dict[str, Any] = answer.json()
    assert body.get("detail") or body.get("message"), "the answer does not say why"


# ---- configuration


@pytest.mark.parametrize("row", table("Configuration"), ids=lambda row: row[0])
def test_configuration(tmp_path: Path, row: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _name, config, names = row
    monkeypatch.chdir(tmp_path)
    (tmp_path / "headwater.toml").write_text(quoted(config) + "\n", encoding="utf-8")
    done = CliRunner().invoke(app, ["config", "check", "--config", "headwater.toml"])
    assert done.exit_code == 1, done.output
    assert names in done.stderr
    assert done.stdout == ""


# ---- everything at once


@pytest.mark.parametrize("seed", range(3))
def test_noise_neither_stops_the_process_nor_slows_another_device(up: Server, seed: int) -> None:
    random = Random(seed)
    good = [*(make(4) for make in PACKETS.values()), *(make(5) for make in PACKETS.values())]
    for n in range(300):
        data = bytearray(random.choice(good)[:2000])
        for _ in range(random.randrange(4)):
            if data:
                data[random.randrange(len(data))] = random.randrange(256)
        cut = bytes(data[: random.randrange(len(data) + 1)])
        with Peer(up.mqtt, random.choice((4, 5))) as device:
            try:
                if random.random() < 0.7:
                    device.login(f"noise{n}")
                device.send(cut + struct.pack(">I", random.getrandbits(32)))
            except (ConnectionError, AssertionError):
                continue
    assert said(up, 5, publish(5, T, b'{"note": "still here"}', qos=1)) == ["PUBACK 0x00"]
    await_that("the books balance", lambda: up.get("/api/v1/books")["balanced"])

"""Listeners beside plain TCP, with real clients: TLS, mutual TLS, WebSocket, both, and the PROXY protocol."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.integration import peer
from tests.integration.certificates import Authority, Issued
from tests.integration.peer import PATIENCE_S, Peer
from tests.integration.server import TELEMETRY, Server, await_that

Starts = Callable[..., Server]

#: An address of which TEST-NET-3 holds no host (RFC 5737).
ELSEWHERE = "203.0.113.9"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


def address(up: Server, listener: str) -> tuple[str, int]:
    host, _, port = str(up.running[listener]).rpartition(":")
    return host, int(port)


def toml(path: Path) -> str:
    return json.dumps(str(path))


def tls_table(name: str, issued: Issued, more: str = "", transport: str = "tls") -> str:
    return (
        f'[[mqtt.listeners]]\nname = "{name}"\ntransport = "{transport}"\nport = 0\n'
        f"certificate = {toml(issued.file)}\nkey = {toml(issued.key)}\n{more}\n"
    )


def trusting(ca: Path, client: Issued | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca))
    if client is not None:
        context.load_cert_chain(client.file, client.key)
    return context


class TlsPeer(Peer):
    """A peer of bytes over TLS."""

    def __init__(
        self,
        where: tuple[str, int],
        context: ssl.SSLContext,
        level: int = 4,
        first: bytes = b"",
        session: ssl.SSLSession | None = None,
        name: str = "localhost",
    ) -> None:
        super().__init__(where, level)
        self._socket.sendall(first)
        self.tls = context.wrap_socket(self._socket, server_hostname=name, session=session)
        self._socket = self.tls


@contextlib.contextmanager
def paho(
    where: tuple[str, int],
    context: ssl.SSLContext | None = None,
    transport: str = "tcp",
    protocol: int = mqtt.MQTTv5,
) -> Iterator[mqtt.Client]:
    """A connected paho client; it keeps what it hears in `client.heard`."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2, transport=transport, protocol=protocol)  # type: ignore[arg-type]
    connected: queue.Queue[Any] = queue.Queue()
    client.heard = queue.Queue()  # type: ignore[attr-defined]
    client.on_connect = lambda _client, _data, _flags, reason, _properties: connected.put(reason)
    client.on_message = lambda _client, _data, message: client.heard.put(message.payload)  # type: ignore[attr-defined]
    client.on_subscribe = lambda *_: client.heard.put("subscribed")  # type: ignore[attr-defined]
    if transport == "websockets":
        client.ws_set_options("/mqtt")
    if context is not None:
        client.tls_set_context(context)
    client.connect(*where)
    client.loop_start()
    try:
        reason = connected.get(timeout=PATIENCE_S)
        assert not reason.is_failure, reason
        yield client
    finally:
        client.disconnect()
        client.loop_stop()


def publishes(client: mqtt.Client, seq: int) -> None:
    sent = client.publish("dt/hall/d1/telemetry", json.dumps({"seq": seq}), qos=1)
    sent.wait_for_publish(PATIENCE_S)
    assert sent.is_published()


def hears_itself(client: mqtt.Client, payload: bytes) -> None:
    client.subscribe("echo", qos=1)
    assert client.heard.get(timeout=PATIENCE_S) == "subscribed"  # type: ignore[attr-defined]
    client.publish("echo", payload, qos=1)
    assert client.heard.get(timeout=PATIENCE_S) == payload  # type: ignore[attr-defined]


def stored(up: Server) -> list[int]:
    return [row[0] for row in up.rows("SELECT seq FROM telemetry ORDER BY seq")]


def listener(up: Server, name: str) -> dict[str, Any]:
    return next(each for each in up.get("/api/v1/listeners") if each["name"] == name)


def await_failure(up: Server, name: str, reason: str, count: int = 1) -> None:
    await_that(
        f"{count} failures {reason} of {name}",
        lambda: listener(up, name)["failures"].get(reason, 0) == count,
    )


def refused(where: tuple[str, int], context: ssl.SSLContext) -> None:
    """The server ends the handshake; in TLS 1.3 the client learns of it when it reads."""

    def first_byte() -> bytes:
        with TlsPeer(where, context) as client:
            client.send(peer.connect())
            return client.tls.recv(1)

    with pytest.raises((ssl.SSLError, ConnectionError)):
        first_byte()


# ---- TLS


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_with_a_certificate_of_our_own(server: Starts, version: ssl.TLSVersion) -> None:
    up = server().start(["mqtts.port=0", "wss.port=0"])
    ca = up.directory / "ca" / "ca.pem"
    assert (up.directory / "ca" / "server-key.pem").stat().st_mode & 0o077 == 0
    before = ca.read_bytes()
    context = trusting(ca)
    context.minimum_version = context.maximum_version = version
    for host in ("127.0.0.1", "localhost"):
        with paho((host, address(up, "mqtts")[1]), context) as client:
            publishes(client, 1)
            hears_itself(client, os.urandom(100_000))
    assert stored(up) == [1, 1]
    assert listener(up, "mqtts")["handshakes"] == 2
    up.stop()
    up.start(["mqtts.port=0"])
    assert ca.read_bytes() == before, "a restart makes no new authority"
    with paho(address(up, "mqtts"), context) as client:
        publishes(client, 2)


def test_a_client_that_trusts_another_authority_goes_away(server: Starts, authority: Authority) -> None:
    up = server().start(["mqtts.port=0"])
    with pytest.raises(ssl.SSLCertVerificationError):
        TlsPeer(address(up, "mqtts"), trusting(authority.file))
    await_failure(up, "mqtts", "alert")
    for garbage in (peer.connect(), b"GET / HTTP/1.1\r\n\r\n"):
        with Peer(address(up, "mqtts")) as client:
            client.send(garbage)
            with contextlib.suppress(ConnectionError):
                while client._socket.recv(1000):
                    pass
    await_failure(up, "mqtts", "tls", 2)


def test_application_protocols_and_server_names(server: Starts, authority: Authority) -> None:
    up = server(TELEMETRY + tls_table("devices", authority.issue("server"))).start()
    where = address(up, "devices")
    for offered, chosen in (
        (["x-amzn-mqtt-ca"], "x-amzn-mqtt-ca"),
        (["h2", "mqtt"], "mqtt"),
        (["h2"], None),
        ([], None),
    ):
        context = trusting(authority.file)
        if offered:
            context.set_alpn_protocols(offered)
        with TlsPeer(where, context) as client:
            assert client.tls.selected_alpn_protocol() == chosen
            client.login()
    # The SDK of AWS sends an address as server name, which the standard forbids. Python does not, so its ClientHello is
    # changed; the server must answer with its ServerHello, a handshake record, and not with an alert.
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = trusting(authority.file).wrap_bio(incoming, outgoing, server_hostname="127x0x0x1")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    assert b"127x0x0x1" in hello
    with Peer(where) as client:
        client.send(hello.replace(b"127x0x0x1", b"127.0.0.1"))
        assert client._socket.recv(1) == b"\x16"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed_until_certificates_are_read_anew(
    server: Starts, authority: Authority, version: ssl.TLSVersion
) -> None:
    device = authority.issue("device-7")
    more = f"client_ca = {toml(authority.file)}"
    up = server(TELEMETRY + tls_table("devices", authority.issue("server"), more)).start()
    where = address(up, "devices")
    context = trusting(authority.file, device)
    context.minimum_version = context.maximum_version = version
    with TlsPeer(where, context) as client:
        client.login()
        session = client.tls.session
        assert not client.tls.session_reused
    with TlsPeer(where, context, session=session) as client:
        client.login("resumed")
        assert client.tls.session_reused
        # Who it is is known all the same.
        client.send(peer.connect(client="resumed"))
        assert client.read() is None
        session = client.tls.session
    origin = up.get("/api/v1/clients/resumed/why")["events"][0]["origin"]
    assert device.fingerprint in origin
    assert listener(up, "devices")["resumed"] == 1
    assert up.http.post("/api/v1/listeners/reload", json={}).json() == [{"name": "devices", "error": None}]
    with TlsPeer(where, context, session=session) as client:
        client.login()
        assert not client.tls.session_reused


def test_a_handshake_that_is_not_ended_in_time_is_closed(server: Starts) -> None:
    up = server().start(["mqtts.port=0", "ws.port=0", "mqtt.first_packet_timeout_s=1"])
    for name in ("mqtts", "ws"):
        with Peer(address(up, name)) as client:
            assert client.read() is None
        await_failure(up, name, "timeout")


# ---- mutual TLS


def test_clients_are_known_by_their_certificates(
    server: Starts, authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "stranger", "stranger")
    device, other, old = (
        authority.issue("device-7"),
        stranger.issue("device-7"),
        authority.issue("old", days=-1),
    )
    more = f"client_ca = {toml(authority.file)}"
    up = server(
        TELEMETRY
        + tls_table("devices", authority.issue("server"), more)
        + tls_table("both", authority.issue("server2"), more + '\nclient_certificate = "optional"')
    ).start()
    where = address(up, "devices")
    with paho(where, trusting(authority.file, device)) as client:
        publishes(client, 7)
    assert stored(up) == [7]
    with TlsPeer(where, trusting(authority.file, device), level=5) as client:
        client.login("seven")
        # A second CONNECT is a protocol error, which is told with where it came from.
        client.send(peer.connect(5, client="seven"))
        answer = client.read()
        assert answer is not None
        assert answer.reason(5) == 0x82
    origin = up.get("/api/v1/clients/seven/why")["events"][0]["origin"]
    assert f"by devices, certificate {device.fingerprint} (device-7)" in origin
    for reason, context in (
        ("certificate-missing", trusting(authority.file)),
        ("certificate-invalid", trusting(authority.file, other)),
        ("certificate-expired", trusting(authority.file, old)),
    ):
        refused(where, context)
        await_failure(up, "devices", reason)
    text = up.http.get("/metrics").text
    assert (
        'headwater_listener_handshake_failures_total{listener="devices",reason="certificate-missing"} 1'
        in text
    )
    with TlsPeer(address(up, "both"), trusting(authority.file)) as client:
        client.login()
    refused(address(up, "both"), trusting(authority.file, other))


def test_revoked_clients_are_refused_and_live_ones_are_ended(
    server: Starts, authority: Authority, tmp_path: Path
) -> None:
    crl = tmp_path / "crl.pem"
    good, bad, later = (authority.issue(name) for name in ("good", "bad", "later"))
    authority.revoke([bad], crl)
    more = f"client_ca = {toml(authority.file)}\ncrl = {toml(crl)}"
    up = server(TELEMETRY + tls_table("devices", authority.issue("server"), more)).start()
    where = address(up, "devices")
    refused(where, trusting(authority.file, bad))
    await_failure(up, "devices", "certificate-revoked")
    with (
        TlsPeer(where, trusting(authority.file, good), level=5) as living,
        TlsPeer(where, trusting(authority.file, later), level=5) as ending,
    ):
        living.login("good")
        ending.login("later")
        authority.revoke([bad, later], crl)
        # Nobody says so: the file has changed.
        answer = ending.read()
        assert answer is not None
        assert (answer.kind, answer.reason(5)) == (peer.DISCONNECT, 0x87)
        assert ending.read() is None
        assert living.ask(peer.publish(5, "elsewhere", b"1", qos=1)) == ["PUBACK 0x00"]
    refused(where, trusting(authority.file, later))
    events = up.get("/api/v1/clients/later/why")["events"]
    assert "good no more" in events[0]["detail"]


# ---- reloading


def serial(where: tuple[str, int], authority: Authority) -> int:
    """Of the certificate that the server shows."""
    with TlsPeer(where, trusting(authority.file)) as client:
        shown = client.tls.getpeercert()
        assert shown is not None
        return int(str(shown["serialNumber"]), 16)


def test_a_certificate_is_changed_under_live_connections(server: Starts, authority: Authority) -> None:
    first = authority.issue("server")
    up = server(TELEMETRY + tls_table("devices", first)).start()
    where = address(up, "devices")
    with paho(where, trusting(authority.file)) as client:
        publishes(client, 1)
        assert serial(where, authority) == first.certificate.serial_number
        # By the file alone.
        second = authority.issue("server")
        await_that(
            "the second certificate", lambda: serial(where, authority) == second.certificate.serial_number
        )
        publishes(client, 2)
        # By the command line, which tells what is wrong; what was good is served on.
        key = second.key.read_bytes()
        second.key.write_bytes(b"no key")
        command = [
            sys.executable,
            "-m",
            "headwater",
            "listeners",
            "reload",
            "--data-dir",
            str(up.directory),
            "--json",
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=up.environment, check=False)
        assert done.returncode == 1
        assert str(second.key) in json.loads(done.stdout)["error"]
        assert serial(where, authority) == second.certificate.serial_number
        second.key.write_bytes(key)
        done = subprocess.run(command, capture_output=True, text=True, env=up.environment, check=False)
        assert (done.returncode, json.loads(done.stdout)) == (0, {"name": "devices", "error": None})
        publishes(client, 3)
        # By a signal.
        before = up.stderr().count("has read its certificates")
        assert up.process is not None
        up.process.send_signal(signal.SIGHUP)
        await_that("the reload", lambda: up.stderr().count("has read its certificates") > before)
        publishes(client, 4)
    assert stored(up) == [1, 2, 3, 4]


def test_a_certificate_that_cannot_be_used_stops_the_start(server: Starts, authority: Authority) -> None:
    one, two = authority.issue("one"), authority.issue("two")
    one.key.write_bytes(two.key.read_bytes())
    up = server(TELEMETRY + tls_table("devices", one))
    process = up.spawn()
    assert process.wait(PATIENCE_S) == 1
    assert str(one.file) in up.stderr()
    assert "devices" in up.stderr()


# ---- WebSocket


@pytest.mark.parametrize("name", ["ws", "wss"])
@pytest.mark.parametrize("protocol", [mqtt.MQTTv311, mqtt.MQTTv5])
def test_mqtt_over_websocket(server: Starts, name: str, protocol: int) -> None:
    up = server().start([f"{name}.port=0"])
    context = trusting(up.directory / "ca" / "ca.pem") if name == "wss" else None
    with paho(address(up, name), context, "websockets", protocol) as client:
        publishes(client, 1)
        for size in (0, 1, 125, 126, 70_000, 130_000):
            client.heard.queue.clear()  # type: ignore[attr-defined]
            hears_itself(client, os.urandom(size))
    assert stored(up) == [1]
    await_that("the connection is over", lambda: listener(up, name)["connections"] == 0)


class WebPeer:
    """A WebSocket client at the level of frames."""

    def __init__(self, where: tuple[str, int], **headers: str) -> None:
        self.socket = socket.create_connection(where, timeout=PATIENCE_S)
        fields = {
            "Host": f"{where[0]}:{where[1]}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Protocol": "mqtt",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.socket.sendall(f"GET /mqtt HTTP/1.1\r\n{lines}\r\n".encode())
        self.file = self.socket.makefile("rb")
        self.status = self.file.readline().decode().strip()
        self.headers = {}
        while line := self.file.readline().decode().strip():
            key, _, value = line.partition(": ")
            self.headers[key.lower()] = value

    def __enter__(self) -> WebPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def send(self, first: int, payload: bytes) -> None:
        mask = os.urandom(4)
        size = len(payload)
        length = bytes([0x80 | size]) if size < 126 else b"\xfe" + struct.pack(">H", size)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        self.socket.sendall(bytes([first]) + length + mask + masked)

    def read(self) -> tuple[int, bytes]:
        """First byte and payload of the server's next frame."""
        first, size = self.file.read(2)
        if size == 126:
            size = struct.unpack(">H", self.file.read(2))[0]
        return first, self.file.read(size)


def test_packets_may_be_cut_into_frames_and_frames_into_reads(server: Starts) -> None:
    up = server().start(["ws.port=0"])
    with WebPeer(address(up, "ws")) as client:
        assert client.status == "HTTP/1.1 101 Switching Protocols"
        assert client.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert client.headers["sec-websocket-protocol"] == "mqtt"
        packets = peer.connect() + b"".join(
            peer.publish(4, "dt/hall/d1/telemetry", b'{"seq": %d}' % seq, qos=1, packet_id=seq)
            for seq in (1, 2)
        )
        # Three frames of one message, and a Ping between them.
        client.send(0x02, packets[:5])
        client.send(0x89, b"there?")
        client.send(0x00, packets[5:40])
        client.send(0x80, packets[40:])
        assert client.read() == (0x8A, b"there?")
        answers = b""
        while len(answers) < 4 + 4 + 4:
            first, payload = client.read()
            assert first == 0x82
            answers += payload
        assert answers == b"\x20\x02\0\0" + b"\x40\x02\0\x01" + b"\x40\x02\0\x02"
        # The client says goodbye on both levels.
        client.send(0x82, b"\xe0\0")
        client.send(0x88, struct.pack(">H", 1000))
        assert client.read() == (0x88, struct.pack(">H", 1000))
        assert client.file.read() == b""
    assert stored(up) == [1, 2]


@pytest.mark.parametrize(
    ("frame", "status"),
    [
        (b"\x81\x80" + bytes(4), 1003),  # text
        (b"\x82\x01x", 1002),  # no mask
        (b"\xc2\x80" + bytes(4), 1002),  # a reserved bit
        (b"\x80\x80" + bytes(4), 1002),  # continues nothing
        (b"\x82\xff\xff" + bytes(11), 1002),  # a length of 64 bits
    ],
)
def test_frames_that_the_standard_forbids_end_the_connection(
    server: Starts, frame: bytes, status: int
) -> None:
    up = server().start(["ws.port=0"])
    with WebPeer(address(up, "ws")) as client:
        client.send(0x82, peer.connect(client="w"))
        assert client.read() == (0x82, b"\x20\x02\0\0")
        client.socket.sendall(frame)
        assert client.read() == (0x88, struct.pack(">H", status))
        assert client.file.read() == b""
    assert up.get("/api/v1/clients/w/why")["events"][0]["reason"] == "ProtocolError"


def test_requests_that_open_no_websocket(server: Starts) -> None:
    up = server().start(["ws.port=0"])
    base = "http://{}:{}".format(*address(up, "ws"))
    assert httpx.get(f"{base}/mqtt").status_code == 426
    assert httpx.get(f"{base}/").status_code == 404
    assert httpx.post(f"{base}/mqtt", content=b"x").status_code == 405
    with WebPeer(address(up, "ws"), Sec_WebSocket_Protocol="chat") as client:
        assert client.status == "HTTP/1.1 400 Bad Request"
    with WebPeer(address(up, "ws"), Origin="https://evil.example") as client:
        assert client.status == "HTTP/1.1 403 Forbidden"
    with WebPeer(address(up, "ws"), Origin="http://127.0.0.1:8080") as client:
        assert client.status == "HTTP/1.1 101 Switching Protocols"
    await_failure(up, "ws", "http", 5)


# ---- PROXY protocol


def proxied(source: tuple[str, int]) -> bytes:
    """A header of the PROXY protocol, version 2, for TCP over IPv4."""
    addresses = (
        socket.inet_aton(source[0]) + socket.inet_aton("10.0.0.1") + struct.pack(">HH", source[1], 1883)
    )
    return b"\r\n\r\n\0\r\nQUIT\n" + b"\x21\x11" + struct.pack(">H", len(addresses)) + addresses


def test_a_balancer_tells_where_clients_are(server: Starts, authority: Authority) -> None:
    table = '[[mqtt.listeners]]\nname = "behind"\ntransport = "tcp"\nport = 0\nproxy_protocol = true\n'
    tls = tls_table("behind-tls", authority.issue("server"), "proxy_protocol = true")
    up = server(TELEMETRY + table + tls).start()
    with Peer(address(up, "behind"), 5) as client:
        # Its header and what follows in one write.
        client.send(proxied((ELSEWHERE, 4711)) + peer.connect(5, client="far"))
        assert client.read() is not None
        client.send(peer.connect(5, client="far"))
        assert client.read() is not None
    assert f"{ELSEWHERE}:4711 by behind" in up.get("/api/v1/clients/far/why")["events"][0]["origin"]
    first = proxied((ELSEWHERE, 4712))
    with TlsPeer(address(up, "behind-tls"), trusting(authority.file), 5, first) as client:
        client.login("far-tls")
        client.send(peer.connect(5, client="far-tls"))
        assert client.read() is not None
    assert f"{ELSEWHERE}:4712 by behind-tls" in up.get("/api/v1/clients/far-tls/why")["events"][0]["origin"]
    with Peer(address(up, "behind")) as client:
        client.send(peer.connect())
        assert client.read() is None
    await_failure(up, "behind", "proxy")


# ---- bounds


def test_a_listener_has_its_own_bound_of_connections(server: Starts) -> None:
    table = '[[mqtt.listeners]]\nname = "small"\ntransport = "tcp"\nport = 0\nmax_connections = 2\n'
    up = server(TELEMETRY + table).start()
    with Peer(address(up, "small")) as one, Peer(address(up, "small")) as two:
        one.login("one")
        two.login("two")
        with Peer(address(up, "small")) as three:
            assert three.read() is None
        with Peer(up.mqtt) as four:
            four.login("four")
    await_that("the places are free", lambda: listener(up, "small")["connections"] == 0)
    found = listener(up, "small")
    assert (found["accepted"], found["refused"]) == (2, 1)
    with Peer(address(up, "small")) as five:
        five.login("five")

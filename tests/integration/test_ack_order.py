"""No acknowledgement leaves before the fdatasync that covers its message has returned: seen at the system calls.

Where many acknowledgements leave in one io_uring call, the call does not show which. There every device has one message
under way, so each send is one acknowledgement, and at no call may more have left than messages were durable.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.peer import PINGRESP, PUBACK, Peer, publish
from tests.integration.server import Server
from tests.integration.syscalls import BATCHES, SENDS, STRACE, SYNCS, WRITES, Call, Trace

pytestmark = pytest.mark.skipif(
    STRACE is None or os.getuid() != 0, reason="needs strace, and root to attach to a running process"
)

CONFIG = """
[streams.telemetry]
topic  = "dt/{site}/{device}/telemetry"
fields = { note = "string" }
"""
DEVICES, ROUNDS, BATCH, REQUESTS = 4, 5, 20, 5
MANY = 60


def mark(packet_id: int) -> str:
    """Text that a message alone holds: strings lie in the log as they are."""
    return f"mark-{packet_id:05d}."


def publish_all(server: Server) -> None:
    """Several connections at once, one and many packets a write, and HTTP beside them."""

    def device(number: int) -> None:
        with Peer(server.mqtt, 4) as peer:
            peer.login(f"d{number}")
            packet_id = number * 1000
            for turn in range(ROUNDS):
                count = BATCH if turn % 2 else 1
                packets = []
                for _ in range(count):
                    packet_id += 1
                    body = json.dumps({"note": mark(packet_id)}).encode()
                    packets.append(publish(4, f"dt/x/d{number}/telemetry", body, qos=1, packet_id=packet_id))
                peer.send(b"".join(packets))
                for _ in packets:
                    answer = peer.read()
                    assert answer is not None
                    assert answer.kind == PUBACK

    def requests() -> None:
        for number in range(REQUESTS):
            body = {"device": "h", "note": mark(60_000 + number)}
            assert server.http.post("/api/v1/ingest/telemetry?site=x", json=body).status_code == 200

    threads = [threading.Thread(target=device, args=(number,)) for number in range(1, DEVICES + 1)]
    threads.append(threading.Thread(target=requests))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Order:
    """What the calls say: which acknowledgements left, and which of them too early."""

    def __init__(self, calls: list[Call]) -> None:
        self.acknowledged: list[str] = []
        self.early: list[str] = []
        self._writes = [call for call in calls if call.name in WRITES]
        self._syncs = [call for call in calls if call.name in SYNCS and call.result == 0]
        requests = iter(range(60_000, 60_000 + REQUESTS))
        for call in calls:
            if call.name not in SENDS:
                continue
            data = call.data
            if data.startswith(b"HTTP/1.1 200"):
                self._judge(call, mark(next(requests)))
            # Answers to MQTT 3.1.1 clients that publish are all four bytes long (CONNACK, PUBACK, PUBREC).
            while len(data) >= 4 and data[:2] in (b"\x20\x02", b"\x40\x02", b"\x50\x02"):
                if data[0] != 0x20:
                    self._judge(call, mark(int.from_bytes(data[2:4], "big")))
                data = data[4:]

    def _judge(self, send: Call, text: str) -> None:
        self.acknowledged.append(text)
        covered = any(
            text.encode() in write.data
            and write.ended is not None
            and any(
                sync.descriptor == write.descriptor and write.ended < sync.begun and sync.ended < send.begun
                for sync in self._syncs
                if sync.ended is not None
            )
            for write in self._writes
        )
        if not covered:
            self.early.append(text)


def publish_in_step(server: Server) -> None:
    """A message of each device at once, then all their acknowledgements, and again."""
    with ExitStack() as stack:
        peers = []
        for number in range(MANY):
            peer = stack.enter_context(Peer(server.mqtt, 4))
            peer.login(f"d{number}")
            peers.append(peer)
        for turn in range(ROUNDS):
            for number, peer in enumerate(peers):
                packet_id = 1 + turn * MANY + number
                body = json.dumps({"note": mark(packet_id)}).encode()
                peer.send(publish(4, f"dt/x/d{number}/telemetry", body, qos=1, packet_id=packet_id))
            for peer in peers:
                answer = peer.read()
                assert answer is not None
                assert answer.kind == PUBACK
        # The one loop there is has come back from the call that sent the last of them, and the trace has its end.
        peers[0].send(b"\xc0\x00")
        answer = peers[0].read()
        assert answer is not None
        assert answer.kind == PINGRESP


class Counted:
    """How many acknowledgements have left at each call, and the calls at which fewer messages were durable.

    together: those that left by a call for many
    """

    def __init__(self, calls: list[Call]) -> None:
        self.acknowledged = self.together = 0
        self.early: list[Call] = []
        durable = self._durable(calls)
        for call in calls:
            if call.name in BATCHES:
                self.together += call.result or 0
                self.acknowledged += call.result or 0
            elif call.name in SENDS and call.data[:2] == b"\x40\x02":
                self.acknowledged += len(call.data) // 4
            else:
                continue
            if self.acknowledged > sum(ended < call.begun for ended in durable):
                self.early.append(call)

    @staticmethod
    def _durable(calls: list[Call]) -> list[int]:
        """For each message the place at which the first sync that covers it has returned."""
        marks = [mark(packet_id).encode() for packet_id in range(1, MANY * ROUNDS + 1)]
        syncs = [call for call in calls if call.name in SYNCS and call.result == 0]
        durable = []
        for write in (call for call in calls if call.name in WRITES and call.ended is not None):
            ends = [
                sync.ended
                for sync in syncs
                if sync.ended is not None
                and sync.descriptor == write.descriptor
                and sync.begun > (write.ended or 0)
            ]
            durable += [min(ends)] * sum(each in write.data for each in marks) if ends else []
        return durable


def calls_of(load: Callable[[Server], None], tmp_path: Path, settings: list[str]) -> list[Call]:
    """The system calls of a server under this load."""
    with Server(tmp_path / "data", CONFIG).start(settings) as server:
        with Trace(server.running["pid"], tmp_path / "trace") as trace:
            load(server)
        return trace.calls()


def counted(tmp_path: Path, durability: str) -> Counted:
    settings = [f"log.durability={durability}", "mqtt.threads=1"]
    found = Counted(calls_of(publish_in_step, tmp_path, settings))
    assert found.acknowledged == MANY * ROUNDS
    if not found.together:
        pytest.skip("this kernel, or the container, has no io_uring for us")
    return found


def traced(tmp_path: Path, durability: str) -> Order:
    settings = [f"log.durability={durability}", "mqtt.io_uring=false"]
    return Order(calls_of(publish_all, tmp_path, settings))


MESSAGES = DEVICES * sum(BATCH if turn % 2 else 1 for turn in range(ROUNDS)) + REQUESTS


def test_no_acknowledgement_leaves_before_its_sync_has_returned(tmp_path: Path) -> None:
    order = traced(tmp_path, "sync")
    assert len(set(order.acknowledged)) == len(order.acknowledged) == MESSAGES
    assert order.early == []


def test_the_same_look_sees_acknowledgements_that_leave_early(tmp_path: Path) -> None:
    order = traced(tmp_path, "async")
    assert len(order.acknowledged) == MESSAGES
    assert order.early


def test_none_of_many_that_leave_in_one_call_is_early(tmp_path: Path) -> None:
    assert counted(tmp_path, "sync").early == []


def test_the_count_sees_acknowledgements_that_leave_early_in_one_call(tmp_path: Path) -> None:
    assert any(call.name in BATCHES for call in counted(tmp_path, "async").early)

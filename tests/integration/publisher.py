"""A publisher of its own process that trusts nobody: it notes every acknowledgement in a file before it counts it.

    python -m tests.integration.publisher RUN_JSON ACKS SEED [READINGS_PER_SECOND]

RUN_JSON is read again after every lost connection, for the address of a restarted server. Every device has one
sequence of readings with unique numbers; readings without an acknowledgement are sent again, in order and before new
ones, as MQTT wants it. It runs until it is told to stop by the end of its standard input; then it sends no new
readings, waits for what is unacknowledged, and closes every window with one late reading per device.
"""

from __future__ import annotations

import json
import math
import os
import select
import socket
import sys
import time
from collections import deque
from pathlib import Path
from random import Random

from tests.integration import peer

DEVICES = 8
#: Readings without an acknowledgement at a time.
WINDOW = 400
BATCH = 50
#: Event time of the first reading (ms) and from one reading of a device to its next one.
START_MS = 1_790_000_000_000
STEP_MS = 1000
#: Event time of the closing readings: behind every window of the run.
END_MS = START_MS + 10**9


def temperature(seq: int, random: Random) -> float:
    """Runs of hot and cold readings, with some in between that neither raise nor clear."""
    phase = (seq // DEVICES // 15 + seq % DEVICES) % 3
    return (20.0, 77.5, 90.0)[phase] + random.choice((0.0, 0.25, 0.5))


class Publisher:
    """One connection at a time, all devices over it."""

    def __init__(self, run_json: Path, acks: Path, seed: int, rate: float = math.inf) -> None:
        self.run_json = run_json
        self.acks = os.open(acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.random = Random(seed)
        self.unacknowledged: dict[int, tuple[int, bytes]] = {}
        self.waiting: deque[tuple[int, bytes]] = deque()
        self.seq = 0
        self.packet_id = 0
        self.stopping = False
        self.closed = False
        #: Least time between two batches, and when the next one may leave.
        self.pause_s = BATCH / rate
        self.next_s = 0.0

    def run(self) -> None:
        """Until told to stop and everything is acknowledged."""
        while not self.done():
            try:
                connection = self.connect()
            except (OSError, ValueError, KeyError):
                time.sleep(0.02)  # not up yet: there is nothing else to wait on
                self.heard_stop(0)
                continue
            with connection:
                # In order of sending, ahead of what waited to be sent at all.
                self.waiting.extendleft(reversed(self.unacknowledged.values()))
                self.unacknowledged.clear()
                try:
                    self.talk(connection)
                except (OSError, EOFError):
                    continue

    def done(self) -> bool:
        return self.stopping and self.closed and not self.unacknowledged and not self.waiting

    def connect(self) -> socket.socket:
        host, _, port = json.loads(self.run_json.read_text())["mqtt"].rpartition(":")
        connection = socket.create_connection((host, int(port)), timeout=10)
        connection.sendall(peer.connect(4, client="publisher", keep_alive_s=30))
        answer = b""
        while len(answer) < 4:
            if not (got := connection.recv(4 - len(answer))):
                connection.close()
                raise ConnectionResetError("no CONNACK")
            answer += got
        if answer != b"\x20\x02\0\0":
            raise SystemExit(f"CONNACK {answer.hex()}")
        return connection

    def talk(self, connection: socket.socket) -> None:
        pending = b""
        while not self.done():
            self.heard_stop(0)
            wait_s = self.wait_s()
            if not wait_s:
                connection.sendall(b"".join(self.next_packets()))
                self.next_s = time.monotonic() + self.pause_s
                wait_s = self.wait_s()
            if not select.select([connection], [], [], wait_s)[0]:
                continue
            got = connection.recv(65536)
            if not got:
                raise EOFError
            pending += got
            whole = len(pending) - len(pending) % 4
            self.acknowledged(pending[:whole])
            pending = pending[whole:]

    def wait_s(self) -> float:
        """How long to wait for answers before there may be something to send."""
        if len(self.unacknowledged) > WINDOW - BATCH:
            return 10.0
        return max(self.next_s - time.monotonic(), 0.0)

    def heard_stop(self, timeout: float) -> None:
        if not self.stopping and select.select([sys.stdin], [], [], timeout)[0] and not sys.stdin.readline():
            self.stopping = True

    def next_packets(self) -> list[bytes]:
        packets = []
        for _ in range(BATCH):
            if not self.waiting:
                self.make()
            if not self.waiting:
                break
            seq, body = self.waiting.popleft()
            self.packet_id = self.packet_id % 65535 + 1
            self.unacknowledged[self.packet_id] = (seq, body)
            topic = f"dt/hall/d{seq % DEVICES}/telemetry"
            packets.append(peer.publish(4, topic, body, qos=1, packet_id=self.packet_id))
        return packets

    def make(self) -> None:
        if self.closed:
            return
        if not self.stopping:
            at_ms = START_MS + self.seq // DEVICES * STEP_MS
            reading = {"ts": at_ms, "seq": self.seq, "temperature": temperature(self.seq, self.random)}
            self.waiting.append((self.seq, json.dumps(reading).encode()))
            self.seq += 1
            return
        while self.seq % DEVICES:
            self.seq += 1
        for _ in range(DEVICES):
            reading = {"ts": END_MS, "seq": self.seq, "temperature": 50.0}
            self.waiting.append((self.seq, json.dumps(reading).encode()))
            self.seq += 1
        self.closed = True

    def acknowledged(self, answers: bytes) -> None:
        noted = []
        for at in range(0, len(answers), 4):
            answer = answers[at : at + 4]
            if answer[:2] != b"\x40\x02":
                raise SystemExit(f"expected a PUBACK, got {answer.hex()}")
            seq, _ = self.unacknowledged.pop(int.from_bytes(answer[2:], "big"))
            noted.append(f"{seq}\n")
        os.write(self.acks, "".join(noted).encode())


if __name__ == "__main__":
    Publisher(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), *map(float, sys.argv[4:])).run()

"""Valid MQTT conversations and what becomes of them: packets bent by a seed, so that each run can be had again."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

from tests.integration.peer import connect, length, packet, publish, subscribe, text

#: Topics of the clients that misbehave; those of the canary are others.
_TOPICS = ["dt/s/d1/telemetry", "dt/s/d2/telemetry", "a/b", "a/b/c", "$aws/things/t/shadow/update", "/", "x"]
_FILTERS = ["a/#", "+/b", "#", "dt/+/+/telemetry", "$share/g/a/#", "$share/h/x", "a/b/c", "+"]
_PAYLOADS = [
    b"",
    b'{"temperature": 21.5}',
    b'{"ts": 1732000000123, "temperature": 1e3}',
    b"\x00\xff",
    b"x" * 200,
]
#: Of a PUBLISH.
_PROPERTIES = [
    b"",
    b"\x01\x01",
    b"\x02\x00\x00\x00\x3c",
    b"\x03\x00\x04text",
    b"\x08\x00\x01r",
    b"\x09\x00\x02\x00\xff",
    b"\x23\x00\x05",
    b"\x26\x00\x01k\x00\x01v\x26\x00\x01k\x00\x01w",
]
_INTERESTING = [0x00, 0x01, 0x02, 0x7F, 0x80, 0xFF, 0x0B, 0x23, 0x30, 0xC0]


def _id(packet_id: int) -> bytes:
    return struct.pack(">H", packet_id)


def _block(level: int, properties: bytes = b"") -> bytes:
    return length(len(properties)) + properties if level == 5 else b""


def conversation(rng: random.Random, level: int) -> list[bytes]:
    """A valid CONNECT and some valid packets of a client."""
    client = f"fuzz-{rng.randrange(64)}"
    flags, properties, after = rng.choice([0, 2]), b"", b""
    if rng.random() < 0.4:
        flags |= 0x04 | rng.randrange(3) << 3 | rng.choice([0, 0x20])
        after += _block(level, rng.choice([b"", b"\x18\x00\x00\x00\x01"])) + text("will/x") + text("gone")
    if rng.random() < 0.3:
        flags |= 0xC0
        after += text("user") + text("secret")
    if level == 5:
        properties = rng.choice(
            [b"", b"\x11\x00\x00\x00\x01", b"\x21\x00\x02", b"\x22\x00\x03\x27\x00\x00\x01\x00"]
        )
    packets = [connect(level, flags, client=client, keep_alive_s=60, properties=properties, after=after)]
    for packet_id in range(1, rng.randrange(3, 12)):
        kind = rng.randrange(10)
        topic, payload = rng.choice(_TOPICS), rng.choice(_PAYLOADS)
        if kind < 5:
            props, qos = rng.choice(_PROPERTIES) if level == 5 else b"", rng.randrange(3)
            retain = rng.random() < 0.2
            packets.append(
                publish(level, topic, payload, qos=qos, packet_id=packet_id, retain=retain, properties=props)
            )
        elif kind == 5:
            filters = [(name, rng.randrange(3)) for name in rng.sample(_FILTERS, rng.randrange(1, 4))]
            props = rng.choice([b"", b"\x0b\x07"]) if level == 5 else b""
            packets.append(subscribe(level, *filters, packet_id=packet_id, properties=props))
        elif kind == 6:
            packets.append(packet(0xA2, _id(packet_id) + _block(level) + text(rng.choice(_FILTERS))))
        elif kind == 7:
            packets.append(packet(rng.choice([0x40, 0x50, 0x62, 0x70]), _id(rng.randrange(1, packet_id + 1))))
        elif kind == 8:
            packets.append(packet(0xC0))
        else:
            packets.append(packet(0xE0, rng.choice([b"", b"\x00", b"\x04"]) if level == 5 else b""))
    return packets


def mutated(rng: random.Random, original: bytes, other: bytes) -> bytes:
    """The packet with some bytes changed; in half of the cases its remaining length is right all the same, so that its
    body is looked at. other: a packet whose bytes it may get"""
    data = bytearray(original)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(8)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at] = rng.choice(_INTERESTING)
        elif kind == 2:
            del data[at : at + rng.randrange(1, 5)]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.randrange(1, 5))
        elif kind == 4:
            data[at:at] = data[at : at + rng.randrange(1, 20)]
        elif kind == 5:
            cut = rng.randrange(len(other) + 1)
            data[at:] = other[cut:]
        elif kind == 6:
            del data[at:]
        elif len(data) > 1:
            data[1] = rng.randrange(256)
    if rng.random() < 0.5 and len(data) > 2:
        return packet(data[0], bytes(data[2:]))
    return bytes(data)


def streams(seed: int) -> Iterator[tuple[bytes, int]]:
    """What each connection sends, and how many packets of it are mutated, without end."""
    rng = random.Random(seed)
    while True:
        level = rng.choice([4, 5])
        packets = conversation(rng, level)
        # A connection ends with the first packet that is refused, so most of it should be valid.
        share = rng.choice([0.1, 0.3, 1.0])
        bent = 0
        for at in range(rng.choice([0, 1, 1, 1]), len(packets)):
            if rng.random() < share:
                packets[at] = mutated(rng, packets[at], rng.choice(packets))
                bent += 1
        yield b"".join(packets), bent


def hostile(rng: random.Random, number: int) -> tuple[bytes, bool]:
    """What a peer that means harm says at once, and whether it stays connected for a while without reading."""
    level = rng.choice([4, 5])
    good = connect(level, client=f"hostile-{number % 500}")
    kinds = [
        b"",
        good[: rng.randrange(1, len(good))],
        good[:2] + b"\xff" * 40,
        b"\x10\xff\xff\xff\x7f" + b"x" * 100,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(60),
        b"GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n",
        rng.randbytes(rng.randrange(1, 2000)),
        # A flood that nobody reads the answers of.
        good + b"".join(publish(level, "a/b", b"x" * 100, qos=1, packet_id=at) for at in range(1, 200)),
        good + packet(0xC0) * 5000,
        good + subscribe(level, *[(f"s/{number}/{at}/#", 1) for at in range(200)]),
        # The same client id as everybody.
        connect(level, client="one-of-many") + subscribe(level, ("#", 2)),
        good + subscribe(level, ("#", 1)) + publish(level, "a/b", b"y" * 1000) * 50,
        connect(
            level,
            0x26,
            client=f"hostile-{number % 500}",
            after=_block(level) + text("will/x") + text("z" * 900),
        ),
    ]
    return rng.choice(kinds), rng.random() < 0.5

"""Checkpoint files: what is written is read back, and nothing damaged is taken for valid."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater import _native
from headwater.errors import DataDirectoryError
from headwater.streams import checkpoint
from headwater.streams.checkpoint import Encoded, Header, Stored, Writer, read_checkpoint
from tests.streams.harness import Inline

HEADER = Header(
    query="temp_5m",
    signature="0123456789abcdef",
    generation=0,
    step=7,
    steps_at=[9, 0],
    stream=16,
    offsets=[120, 40],
    highest=[1_700_000_000_000_000, None],
    idle=[False, True],
    watermark=None,
    amended=True,
    floor_us=None,
    lateness_us=10_000_000,
    held_windows=12,
    counters={"rows": 160},
    early_us=None,
)


def state(content: bytes) -> Encoded:
    return Encoded(_native.sealed(content))


def write(writer: Writer, step: int, windows: bytes = b"windows", keys: bytes | None = b"keys") -> int:
    """One checkpoint, whole where it has to be; its bytes."""
    header = replace(HEADER, step=step)
    kept = None if keys is None else state(keys)
    return writer.write(header, state(windows), kept, writer.next_is_whole).result()


def contents(found: Stored | None) -> list[tuple[int, bytes, bytes]]:
    """Step, window state and keys of each section, without checksums."""
    assert found is not None
    return [
        (section.header.step, windows[:-4], keys[:-4])
        for section, (windows, keys) in zip(found.sections, found.states(), strict=True)
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "engine" / "q.checkpoint"


def test_a_whole_state_and_what_changed_since_are_read_back(path: Path) -> None:
    assert read_checkpoint(path) is None
    writer = Writer(path, Inline())
    write(writer, 1, b"all")
    assert contents(read_checkpoint(path)) == [(1, b"all", b"keys")]
    write(writer, 2, b"more", b"")
    write(writer, 3, b"and more", None)
    found = read_checkpoint(path)
    assert contents(found) == [(1, b"all", b"keys"), (2, b"more", b""), (3, b"and more", b"")]
    assert found is not None
    assert found.header == replace(HEADER, step=3)
    assert found.problem is None
    assert sorted(file.name for file in path.parent.iterdir()) == ["q.checkpoint"]


def test_a_checkpoint_is_written_beside_what_goes_on(path: Path) -> None:
    with ThreadPoolExecutor(1) as executor:
        writer = Writer(path, executor)
        written = write(writer, 1)
    assert written == path.stat().st_size
    assert contents(read_checkpoint(path))[0][0] == 1


def test_after_so_many_changes_the_state_is_written_whole(path: Path) -> None:
    writer = Writer(path, Inline())
    for step in range(2 + checkpoint.MAX_CHANGES):
        assert writer.next_is_whole == (step in (0, 1 + checkpoint.MAX_CHANGES))
        write(writer, step)
    assert [step for step, *_ in contents(read_checkpoint(path))] == [1 + checkpoint.MAX_CHANGES]
    before = contents(read_checkpoint(checkpoint.previous(path)))
    assert [step for step, *_ in before] == list(range(1 + checkpoint.MAX_CHANGES))


def test_changes_as_large_as_the_state_are_followed_by_a_whole_one(path: Path) -> None:
    writer = Writer(path, Inline())
    write(writer, 1, bytes(3 << 20))
    for step in range(2, 5):
        assert not writer.next_is_whole
        write(writer, step, bytes(1 << 20))
    assert writer.next_is_whole


def test_a_new_process_begins_with_a_whole_state(path: Path) -> None:
    write(Writer(path, Inline()), 1)
    assert Writer(path, Inline()).next_is_whole


def test_damage_at_the_end_leaves_the_checkpoint_before(path: Path) -> None:
    writer = Writer(path, Inline())
    for step in (1, 2, 3):
        write(writer, step)
    path.write_bytes(path.read_bytes()[:-1])
    found = read_checkpoint(path)
    assert [step for step, *_ in contents(found)] == [1, 2]
    assert found is not None
    assert "q.checkpoint, change 2: " in (found.problem or "")


def test_a_damaged_whole_state_leaves_the_file_before(path: Path) -> None:
    for step in (1, 2):
        writer = Writer(path, Inline())
        write(writer, step)
        write(writer, step + 10)
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    assert [step for step, *_ in contents(read_checkpoint(path))] == [1, 11]
    checkpoint.previous(path).write_bytes(b"")
    with pytest.raises(DataDirectoryError, match=r"q\.checkpoint: .*Move both files away"):
        read_checkpoint(path)


def test_a_crash_between_the_renames_leaves_the_one_before(path: Path) -> None:
    write(Writer(path, Inline()), 1)
    path.rename(checkpoint.previous(path))
    assert contents(read_checkpoint(path))[0][0] == 1


def test_after_a_failure_the_state_is_written_whole(path: Path) -> None:
    writer = Writer(path, Inline())
    write(writer, 1)
    with path.open("ab") as file:
        file.write(b"what somebody else wrote")
    with pytest.raises(DataDirectoryError, match=r"writing checkpoint .*q\.checkpoint: it has \d+ bytes"):
        write(writer, 2)
    assert writer.next_is_whole
    write(writer, 3)
    assert [step for step, *_ in contents(read_checkpoint(path))] == [3]


def version_1(windows: bytes, keys: bytes) -> bytes:
    """A file as version 1 was, drawn in docs/formats/checkpoint.md."""
    fields = {name: value for name, value in asdict(HEADER).items() if name != "early_us"}
    header = json.dumps(fields, separators=(",", ":")).encode()
    lengths = len(header).to_bytes(4, "little") + b"".join(
        len(one).to_bytes(8, "little") for one in (windows, keys)
    )
    body = lengths + header + windows + keys
    return b"HWCK\x01\x00\x00\x00" + zlib.crc32(body).to_bytes(4, "little") + body


def test_a_file_of_version_1_is_read(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(version_1(b"windows", b"keys"))
    found = read_checkpoint(path)
    assert found is not None
    assert found.header == HEADER
    assert list(found.states()) == [(b"windows", b"keys")]
    path.write_bytes(version_1(b"windows", b"keys")[:-1])
    with pytest.raises(DataDirectoryError, match="checksum does not match"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda content: b"HWCK", "too few"),
        (lambda content: b"NOPE" + content[4:], "begins with b'NOPE'"),
        (lambda content: content[:4] + b"\x03\x00" + content[6:], "version 3 is not 2"),
        (lambda content: content[:6] + b"\x01\x00" + content[8:], "checksum does not match"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(path: Path, change: object, problem: str) -> None:
    write(Writer(path, Inline()), 1)
    assert callable(change)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataDirectoryError, match=problem):
        read_checkpoint(path)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), parts=st.lists(st.binary(max_size=40), min_size=1, max_size=3))
def test_no_damage_goes_unseen(path: Path, data: st.DataObject, parts: Sequence[bytes]) -> None:
    """Whatever is flipped or cut off: what is read is what was there before the damage."""
    path.unlink(missing_ok=True)
    checkpoint.previous(path).unlink(missing_ok=True)
    writer = Writer(path, Inline())
    ends = []
    for step, part in enumerate(parts):
        write(writer, step, part, part[::2] if len(part) % 2 else None)
        ends.append(path.stat().st_size)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[at] ^= data.draw(st.integers(1, 255))
    else:
        del content[at:]
    path.write_bytes(content)
    whole = sum(end <= at for end in ends)
    if whole == 0:
        with pytest.raises(DataDirectoryError):
            read_checkpoint(path)
    else:
        assert [step for step, *_ in contents(read_checkpoint(path))] == list(range(whole))


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "engine").write_bytes(b"a file, no directory")
    with pytest.raises(DataDirectoryError, match="writing checkpoint"):
        write(Writer(tmp_path / "engine" / "q.checkpoint", Inline()), 1)
    assert os.listdir(tmp_path) == ["engine"]

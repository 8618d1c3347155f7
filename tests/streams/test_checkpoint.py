"""Checkpoint files: what is written is read back, and nothing damaged is taken for valid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import DataDirectoryError
from headwater.streams import checkpoint
from headwater.streams.checkpoint import Checkpoint, Header, decode, encode, read_checkpoint, write_checkpoint

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
)
ONE = Checkpoint(HEADER, b"windows", b"keys")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "engine" / "q.checkpoint"
    assert read_checkpoint(path) is None
    write_checkpoint(path, ONE)
    assert read_checkpoint(path) == ONE
    assert sorted(file.name for file in path.parent.iterdir()) == ["q.checkpoint"]


def test_a_damaged_file_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "q.checkpoint"
    write_checkpoint(path, ONE)
    write_checkpoint(path, replace(ONE, header=replace(HEADER, step=8)))
    path.write_bytes(path.read_bytes()[:-1])
    assert read_checkpoint(path) == ONE
    checkpoint.previous(path).write_bytes(b"")
    with pytest.raises(DataDirectoryError, match=r"q\.checkpoint: .*Move both files away"):
        read_checkpoint(path)


def test_a_crash_between_the_renames_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "q.checkpoint"
    write_checkpoint(path, ONE)
    path.rename(checkpoint.previous(path))
    assert read_checkpoint(path) == ONE


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"HWCK", "too few"),
        (b"NOPE" + encode(ONE)[4:], "begins with b'NOPE'"),
        (encode(ONE)[:4] + b"\x02\x00" + encode(ONE)[6:], "version 2 is not 1"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(content: bytes, problem: str) -> None:
    with pytest.raises(DataDirectoryError, match=problem):
        decode(content, Path("q.checkpoint"))


@given(st.data())
def test_no_damage_goes_unseen(data: st.DataObject) -> None:
    content = bytearray(encode(ONE))
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
    else:
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    with pytest.raises(DataDirectoryError):
        decode(bytes(content), Path("q.checkpoint"))


@given(windows=st.binary(max_size=200), keys=st.binary(max_size=200), step=st.integers(0, 1 << 62))
def test_any_state_comes_back(windows: bytes, keys: bytes, step: int) -> None:
    one = Checkpoint(replace(HEADER, step=step), windows, keys)
    assert decode(encode(one), Path("q.checkpoint")) == one

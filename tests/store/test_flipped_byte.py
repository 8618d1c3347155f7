"""One flipped bit anywhere in the log, a table's transaction log or a data file is named, or it changes no answer."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from headwater.config import QuerySettings, StoreSettings
from headwater.errors import HeadwaterError
from headwater.log.embedded import EmbeddedLog
from headwater.store import delta
from headwater.store.embedded import EmbeddedStore
from tests.store.conftest import NOW, READINGS, batch, open_log, reading

#: All rows, rows that files are left out for, and what a statistic alone could answer.
QUERIES = (
    "SELECT device, ts, value, count, ok FROM readings ORDER BY device, ts",
    "SELECT device, value FROM readings WHERE ts >= make_timestamp(1795471200000150) ORDER BY device, value",
    "SELECT COUNT(*), MIN(ts), MAX(ts), SUM(value) FROM readings",
)

Answers = list[list[dict[str, Any]]]


@contextmanager
def opened(directory: Path) -> Iterator[tuple[EmbeddedLog, EmbeddedStore]]:
    """A log and its store. raises: HeadwaterError"""
    with closing(open_log(directory / "log")) as log:
        settings = StoreSettings(), QuerySettings(concurrent=1)
        with closing(EmbeddedStore(log, directory, *settings, lambda: NOW)) as store:
            store.create(READINGS)
            yield log, store


def answers(directory: Path) -> Answers:
    """What a server that starts on the directory would answer. raises: HeadwaterError"""
    with opened(directory) as (_, store):
        return [store.query(sql).to_pylist() for sql in QUERIES]


def write(directory: Path) -> None:
    """Transactions before and after a checkpoint, and rows that only the log has."""
    with opened(directory) as (log, store):
        for n in range(9):
            rows = [reading(f"d{i % 3}", n * 20 + i, i / 4, count=n, ok=i % 2 == 0) for i in range(20)]
            log.append([(READINGS, batch(READINGS, rows))])
            if n < 7:
                store.flush()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answers]:
    """A data directory, and what it answers."""
    directory = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta, "CHECKPOINT_COMMITS", 4)
        write(directory)
    # A start more: damage in the last commit before a stop cannot be told from a torn tail (docs/formats/log.md).
    expected = answers(directory)
    assert len(expected[0]) == 180
    return directory, expected


def flip(path: Path, bit: int) -> Callable[[], None]:
    """Turns one bit over; gives what turns it back."""

    def turn() -> None:
        with path.open("r+b", buffering=0) as file:
            file.seek(bit // 8)
            (byte,) = file.read(1)
            file.seek(bit // 8)
            file.write(bytes([byte ^ (1 << bit % 8)]))

    turn()
    return turn


def used(path: Path) -> int:
    """Bytes of the file without the zeros at its end, which are space not yet used."""
    return len(path.read_bytes().rstrip(b"\0"))


def damage_named(directory: Path, expected: Answers) -> str | None:
    """The error that opening or asking ends with; None when the answers are as before."""
    try:
        found = answers(directory)
    except HeadwaterError as error:
        return str(error)
    return None if found == expected else "nothing, and other answers"


def check(directory: Path, expected: Answers, into: Path, seed: int, flips: int) -> set[str]:
    """Flips bits one after the other; the kinds of files of which damage was found."""
    chance = random.Random(seed)
    files = sorted(path for path in directory.rglob("*") if path.is_file() and used(path))
    found = set()
    for number in range(flips):
        # A file first, then a bit, so that small files come up as often as large ones.
        original = chance.choice(files)
        copy = into / str(number)
        shutil.copytree(directory, copy)
        path = copy / original.relative_to(directory)
        bit = chance.randrange(used(path) * 8)
        flip(path, bit)
        place = f"seed {seed}, flip {number}: bit {bit} of {original.relative_to(directory)}"
        damage = damage_named(copy, expected)
        if damage is not None:
            assert path.name in damage, f"{place}: {damage}"
            found.add(path.suffix or path.name)
        shutil.rmtree(copy)
    return found


def test_a_flipped_bit_is_named_or_changes_nothing(whole: tuple[Path, Answers], tmp_path: Path) -> None:
    found = check(*whole, tmp_path, 1, 60)
    assert found >= {".json", ".parquet"}, found


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(2, 7))
def test_many_flipped_bits(whole: tuple[Path, Answers], tmp_path: Path, seed: int) -> None:
    assert check(*whole, tmp_path, seed, 300)

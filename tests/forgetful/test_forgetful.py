"""The forgetful file layer itself: what was not synced is lost, all of it; what was synced stays."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.forgetful.layer import Layer
from tests.forgetful.rollback import CannotForgetError
from tests.preload import COMPILER

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc) to build the layer with")

#: What every program below may use; it dies as by a power cut where it ends.
PRELUDE = """
import ctypes, mmap, os, sqlite3, subprocess, sys, threading
from pathlib import Path
os.chdir(sys.argv[1])
def sync(name):
    fd = os.open(name, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
"""


def run(layer: Layer, program: str) -> None:
    """Runs a Python program in the watched folder and kills it at its end."""
    text = PRELUDE + textwrap.dedent(program) + "\nos.kill(os.getpid(), 9)\n"
    done = subprocess.run(
        [sys.executable, "-c", text, layer.folder],
        env=os.environ | layer.variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -9, done.stderr


def contents(folder: Path) -> dict[str, str | None]:
    """Every name below the folder with a digest of its bytes; None for a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def layer(tmp_path: Path) -> Layer:
    """A watched folder with a file `old`, 10,000 bytes of `o`, and a folder `sub` with a file in it: all durable."""
    made = Layer(tmp_path / "watched")
    (made.folder / "old").write_bytes(b"o" * 10_000)
    (made.folder / "sub").mkdir()
    (made.folder / "sub" / "inner").write_bytes(b"inner")
    return made


def test_synced_bytes_stay_and_unsynced_ones_are_lost(layer: Layer) -> None:
    run(
        layer,
        """
        with open("old", "r+b", buffering=0) as file:
            file.write(b"synced")
            os.fdatasync(file.fileno())
            file.write(b"lost")
            os.pwrite(file.fileno(), b"beyond the end", 20_000)
        """,
    )
    report = layer.cut_power()
    assert (layer.folder / "old").read_bytes() == b"synced" + b"o" * 9_994
    assert report.writes_lost == 2


def test_a_new_file_needs_the_sync_of_its_folder(layer: Layer) -> None:
    run(
        layer,
        """
        for name, folder in (("sub/kept", "sub"), ("lost", None)):
            with open(name, "wb") as file:
                file.write(b"new")
                file.flush()
                os.fsync(file.fileno())
            if folder:
                sync(folder)
        with open("sub/kept", "ab") as file:
            file.write(b" and more")
        """,
    )
    layer.cut_power()
    assert (layer.folder / "sub" / "kept").read_bytes() == b"new"
    assert not (layer.folder / "lost").exists()


def test_a_name_whose_bytes_were_not_synced_is_an_empty_file(layer: Layer) -> None:
    run(layer, 'Path("empty").write_bytes(b"never synced"); sync(".")')
    layer.cut_power()
    assert (layer.folder / "empty").read_bytes() == b""


def test_a_rename_without_the_sync_of_its_folder_is_undone(layer: Layer) -> None:
    run(
        layer,
        """
        Path("new").write_bytes(b"new")
        sync("new"); sync(".")
        os.replace("new", "old")
        os.rename("sub/inner", "sub/other")
        sync("sub")
        """,
    )
    layer.cut_power()
    assert (layer.folder / "old").read_bytes() == b"o" * 10_000
    assert (layer.folder / "new").read_bytes() == b"new"
    assert not (layer.folder / "sub" / "inner").exists()
    assert (layer.folder / "sub" / "other").read_bytes() == b"inner"


def test_a_rename_between_folders_is_durable_as_a_whole(layer: Layer) -> None:
    run(layer, 'os.rename("old", "sub/old"); sync("sub"); os.rename("sub/inner", "inner")')
    layer.cut_power()
    assert sorted(contents(layer.folder)) == ["sub", "sub/inner", "sub/old"]


def test_every_change_without_a_sync_is_undone(layer: Layer) -> None:
    before = contents(layer.folder)
    run(
        layer,
        """
        os.truncate("old", 100)
        fd = os.open("old", os.O_WRONLY)
        os.posix_fallocate(fd, 0, 1 << 20)
        os.ftruncate(fd, 1 << 16)
        os.writev(fd, [b"a" * 5000, b"b" * 5000])
        os.pwritev(fd, [b"c" * 5000, b"d"], 300)
        copy = os.open("copy", os.O_CREAT | os.O_RDWR)
        source = os.open("sub/inner", os.O_RDONLY)
        os.sendfile(copy, source, 0, 5)
        os.copy_file_range(source, copy, 5, 0, 3)
        os.link("old", "sub/linked")
        os.symlink("old", "symbolic")
        os.rename("old", "sub/inner")
        os.unlink("sub/linked")
        os.mkdir("deep"); os.mkdir("deep/er")
        Path("deep/er/file").write_bytes(b"x")
        os.unlink("sub/inner"); os.rmdir("sub")
        open("copy", "wb").close()
        with open("appended", "ab") as file:
            file.write(b"1"); file.flush(); file.write(b"2")
        """,
    )
    layer.cut_power()
    assert contents(layer.folder) == before


def test_changes_of_a_whole_process_tree_are_recorded(layer: Layer) -> None:
    before = contents(layer.folder)
    run(
        layer,
        """
        def append(name, times):
            for _ in range(times):
                with open(name, "ab") as file:
                    file.write(b"thread")
        threads = [threading.Thread(target=append, args=(f"t{n}", 50)) for n in range(4)]
        [t.start() for t in threads]
        if os.fork() == 0:
            append("forked", 50)
            os._exit(0)
        subprocess.run(["sh", "-c", "echo shell >> old; mv old renamed; rm -r sub"], check=True)
        os.wait()
        [t.join() for t in threads]
        """,
    )
    layer.cut_power()
    assert contents(layer.folder) == before


def test_a_sync_covers_what_threads_wrote_before_it(layer: Layer) -> None:
    run(
        layer,
        """
        fd = os.open("old", os.O_WRONLY)
        def write(at):
            for n in range(100):
                os.pwrite(fd, b"t", at * 1000 + n)
        threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        os.fdatasync(os.dup(fd))
        os.pwrite(fd, b"lost", 9000)
        """,
    )
    layer.cut_power()
    data = (layer.folder / "old").read_bytes()
    assert data == b"".join(b"t" * 100 + b"o" * 900 for _ in range(8)) + b"o" * 2000


@pytest.mark.parametrize(
    "program",
    [
        'map = mmap.mmap(os.open("old", os.O_RDWR), 10_000); map[0] = 0',
        'ctypes.CDLL(None).fopen(b"old", b"w")',
    ],
    ids=["mapping", "stdio"],
)
def test_what_cannot_be_recorded_is_refused(layer: Layer, program: str) -> None:
    run(layer, program)
    with pytest.raises(CannotForgetError, match="old"):
        layer.cut_power()


# ---- what the product writes with


@pytest.mark.parametrize(("synchronous", "survives"), [("FULL", True), ("NORMAL", False), ("OFF", False)])
def test_a_sqlite_commit_survives_with_full_synchronisation_alone(
    layer: Layer, synchronous: str, survives: bool
) -> None:
    run(
        layer,
        """
        db = sqlite3.connect("a.db", isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL"); db.execute("PRAGMA synchronous=FULL")
        db.execute("CREATE TABLE t (n)")
        db.close()
        """,
    )
    layer.cut_power()
    run(
        layer,
        f"""
        db = sqlite3.connect("a.db", isolation_level=None)
        db.execute("PRAGMA synchronous={synchronous}")
        for n in range(10):
            db.execute("INSERT INTO t VALUES (?)", (n,))
        """,
    )
    layer.cut_power()
    database = sqlite3.connect(layer.folder / "a.db")
    rows = [n for (n,) in database.execute("SELECT n FROM t ORDER BY n")]
    database.close()
    assert rows == (list(range(10)) if survives else [])


@pytest.mark.parametrize("seed", range(5))
def test_sqlite_recovers_whatever_part_survives(layer: Layer, seed: int) -> None:
    run(
        layer,
        """
        db = sqlite3.connect("a.db", isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL"); db.execute("PRAGMA synchronous=FULL")
        db.execute("CREATE TABLE t (n)")
        for n in range(20):
            db.execute("INSERT INTO t VALUES (?)", (n,))
        db.execute("PRAGMA synchronous=OFF")
        for n in range(20, 40):
            db.execute("INSERT INTO t VALUES (?)", (n,))
        """,
    )
    layer.cut_power(seed)
    database = sqlite3.connect(layer.folder / "a.db")
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    rows = [n for (n,) in database.execute("SELECT n FROM t ORDER BY n")]
    database.close()
    assert 20 <= len(rows) <= 40
    assert rows == list(range(len(rows)))


def test_delta_and_parquet_without_syncs_leave_nothing(layer: Layer) -> None:
    before = contents(layer.folder)
    run(
        layer,
        """
        import deltalake, pyarrow as pa, pyarrow.parquet as pq
        table = pa.table({"n": list(range(1000))})
        for _ in range(3):
            deltalake.write_deltalake("table", table, mode="append")
        pq.write_table(table, "alone.parquet")
        """,
    )
    layer.cut_power()
    assert contents(layer.folder) == before


@pytest.mark.skipif(shutil.which("rustc") is None, reason="no rustc to build the program with")
def test_the_rust_standard_library_is_seen_whole(layer: Layer, tmp_path: Path) -> None:
    before = contents(layer.folder)
    (tmp_path / "program.rs").write_text(
        """
        use std::{env, fs, io::{Seek, SeekFrom, Write, IoSlice}, os::unix::fs::FileExt};
        fn main() -> std::io::Result<()> {
            env::set_current_dir(env::args().nth(1).unwrap())?;
            let mut file = fs::OpenOptions::new().read(true).write(true).open("old")?;
            file.write_all_at(b"written at", 7000)?;
            file.set_len(50)?;
            file.seek(SeekFrom::Start(20))?;
            file.write_all(b"written")?;
            file.write_vectored(&[IoSlice::new(b"a"), IoSlice::new(b"b")])?;
            fs::copy("sub/inner", "copied")?;
            fs::write("sub/inner", b"overwritten")?;
            fs::hard_link("old", "sub/linked")?;
            fs::rename("old", "renamed")?;
            fs::create_dir_all("a/b/c")?;
            fs::write("a/b/c/d", b"deep")?;
            fs::remove_file("renamed")?;
            fs::remove_dir_all("sub")?;
            let _ = std::process::Command::new("sh").args(["-c", "kill -9 $PPID"]).status();
            Ok(())
        }
        """
    )
    subprocess.run(["rustc", "-O", "-o", tmp_path / "program", tmp_path / "program.rs"], check=True)
    done = subprocess.run([tmp_path / "program", layer.folder], env=os.environ | layer.variables, check=False)
    assert done.returncode == -9
    layer.cut_power()
    assert contents(layer.folder) == before


# ---- what survives by chance


@pytest.mark.parametrize("seed", range(20))
def test_a_torn_file_is_made_of_blocks_that_were_written(layer: Layer, seed: int) -> None:
    run(
        layer,
        """
        fd = os.open("old", os.O_WRONLY)
        os.pwrite(fd, b"1" * 4096, 0)
        os.fdatasync(fd)
        os.pwrite(fd, b"2" * 8192, 0)
        os.pwrite(fd, b"3" * 8192, 4096)
        """,
    )
    report = layer.cut_power(seed)
    data = (layer.folder / "old").read_bytes()
    assert 10_000 <= len(data) <= 12_288
    # Per region, what may stand there: before the writes, or after one of them.
    regions = [(0, 4096, b"12"), (4096, 8192, b"o23"), (8192, 10_000, b"o3"), (10_000, 12_288, b"\x003")]
    for start, end, marks in regions:
        for at in range(start, min(end, len(data)), 512):
            block = data[at : min(at - at % 512 + 512, end)]
            assert len(set(block)) == 1, f"the block at {at} is of two writes"
            assert block[0] in marks
    assert report.writes_lost == 2


def test_names_survive_in_order_and_seeds_differ(layer: Layer) -> None:
    survivors = set()
    for seed in range(12):
        folder = Layer(layer.folder.with_name(f"seed{seed}"))
        run(folder, 'for n in range(6): Path(str(n)).write_bytes(b"")')
        folder.cut_power(seed)
        kept = sorted(path.name for path in folder.folder.iterdir())
        assert kept == [str(n) for n in range(len(kept))]
        survivors.add(len(kept))
    assert len(survivors) > 2

"""Takes a folder back to what a power cut would have left of it.

`forgetful.c` keeps the undo journal; after every process under it has been killed, `rollback` reads it and rebuilds the
folder. What survives:

- bytes and length of a file: those that an fsync or fdatasync of that file, begun later, has covered
- a name (created, renamed, linked, removed): when its folder was fsynced later. The fsync of a new file does not make
  its name durable, though ext4 does that: POSIX promises no more. SQLite and the log fsync their folders themselves.
- a rename between two folders: when either of them was fsynced later, with everything older in both, as one
  transaction of a journaling file system

With a seed, part of what was not synced survives as well: names up to a random moment, in order, as a journal keeps
them; bytes in whole blocks of 512 or 4096 bytes, each block in any of the versions that were written, in no order;
and any of the lengths that the file had on the way.

Records of the journal, little-endian, all fields 8 bytes but the first two:

    magic 4 | kind 4 | seq | inode | offset | size | data length | name length | name | data
    'W'  bytes: file `inode` had `data` at `offset`, and the length `size`
    'N'  name:  in folder `inode`, `name` meant inode `offset` (0: nothing); size = other folder * 2 + is a folder
    'S'  sync:  changes of file or folder `inode` (0: of all) up to sequence number `offset` are durable
    '!'  a file at path `name` is changed in a way that leaves no records: `data` says how
"""

from __future__ import annotations

import os
import random
import shutil
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_HEAD = struct.Struct("<4sI6Q")
_MAGIC = struct.pack("<I", 0x54475246)

#: SQLite maps its wal-index and rebuilds it after a crash: nothing in it has to be durable.
_EXPENDABLE = ("-shm",)


class CannotForgetError(Exception):
    """The folder was changed in a way that the layer does not record, so the result would prove nothing."""


@dataclass(frozen=True, slots=True)
class Record:
    kind: str
    seq: int
    inode: int
    offset: int
    size: int
    name: str
    data: bytes


@dataclass(slots=True)
class Report:
    """What the power cut took: changes of bytes and names undone, and with a seed what survived of them."""

    records: int = 0
    writes_lost: int = 0
    names_lost: int = 0
    blocks_kept: int = 0
    names_kept: int = 0
    files: dict[str, int] = field(default_factory=dict)


def rollback(watched: Path, journal: Path, seed: int | None = None) -> Report:
    """Rebuilds `watched` as after a power cut and empties `journal`.

    watched: the folder; no process may have anything in it open
    journal: the folder of the undo journal
    seed:    None: nothing that was not synced survives; else a random part of it does
    raises:  CannotForgetError when something was changed without a record
    """
    records = list(_read(journal / "journal"))
    for record in records:
        if record.kind == "!" and not record.name.endswith(_EXPENDABLE):
            raise CannotForgetError(f"{record.name} was {record.data.decode()}, which leaves no undo records")
    chance = None if seed is None else random.Random(seed)
    report = Report(records=len(records))
    synced = _synced(records)
    tree = _Tree(watched, journal / "graves")

    names = [r for r in records if r.kind == "N" and r.seq > synced[r.inode]]
    if chance is not None and names:
        cut = chance.choice([names[0].seq - 1, *(r.seq for r in names)])
        report.names_kept = sum(r.seq <= cut for r in names)
        names = [r for r in names if r.seq > cut]
    report.names_lost = len(names)
    for record in reversed(names):
        tree.undo(record)

    lost = defaultdict(list)
    for record in records:
        if record.kind == "W" and record.seq > synced[record.inode]:
            lost[record.inode].append(record)
    reachable = tree.reachable()
    for inode, writes in lost.items():
        if inode in reachable:
            report.writes_lost += len(writes)
            report.files[tree.path(inode).name] = len(writes)
            report.blocks_kept += _undo_writes(tree.path(inode), writes, chance)
    tree.rebuild()
    shutil.rmtree(journal)
    journal.mkdir()
    return report


def _read(path: Path) -> Iterator[Record]:
    """The whole records; a last one that was cut short belongs to a change that never began."""
    if not path.exists():
        return
    data = memoryview(path.read_bytes())
    at = 0
    while at + _HEAD.size <= len(data):
        magic, kind, seq, inode, offset, size, length, name = _HEAD.unpack_from(data, at)
        if magic != _MAGIC:
            raise CannotForgetError(f"the undo journal is broken at byte {at}")
        end = at + _HEAD.size + name + length
        if end > len(data):
            return
        text = bytes(data[at + _HEAD.size : at + _HEAD.size + name])
        yield Record(chr(kind), seq, inode, offset, size, os.fsdecode(text), bytes(data[end - length : end]))
        at = end


def _synced(records: list[Record]) -> defaultdict[int, int]:
    """Per inode, the last sequence number whose changes are durable."""
    everything = max((r.offset for r in records if r.kind == "S" and r.inode == 0), default=0)
    synced: defaultdict[int, int] = defaultdict(lambda: everything)
    for r in records:
        if r.kind == "S" and r.inode:
            synced[r.inode] = max(synced[r.inode], r.offset)
    between = [(r.seq, r.inode, r.size >> 1) for r in records if r.kind == "N" and r.size >> 1]
    moved = True
    while moved:
        moved = False
        for seq, folder, other in between:
            if synced[folder] < seq <= synced[other]:
                synced[folder] = seq
                moved = True
    return synced


class _Tree:
    """The watched folder as names and inodes: {folder inode: {name: (inode, is a folder)}}."""

    def __init__(self, watched: Path, graves: Path) -> None:
        self.watched = watched
        self.names: defaultdict[int, dict[str, tuple[int, bool]]] = defaultdict(dict)
        self.paths: dict[int, Path] = {}
        self.root = watched.stat().st_ino
        self._scan(watched, self.root)
        for grave in graves.iterdir() if graves.exists() else ():
            self.paths.setdefault(int(grave.name), grave)

    def _scan(self, folder: Path, inode: int) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                number, is_folder = entry.inode(), entry.is_dir(follow_symlinks=False)
                self.names[inode][entry.name] = (number, is_folder)
                if is_folder:
                    self._scan(Path(entry.path), number)
                else:
                    self.paths[number] = Path(entry.path)

    def undo(self, record: Record) -> None:
        if record.offset:
            self.names[record.inode][record.name] = (record.offset, bool(record.size & 1))
        else:
            self.names[record.inode].pop(record.name, None)

    def path(self, inode: int) -> Path:
        """Where the file can be found now: in the folder, or kept by the journal."""
        if inode not in self.paths:
            raise CannotForgetError(f"a name of inode {inode} must come back, but the file was not kept")
        return self.paths[inode]

    def reachable(self) -> set[int]:
        found: set[int] = set()
        waiting = [self.root]
        while waiting:
            for inode, is_folder in self.names[waiting.pop()].values():
                if is_folder:
                    waiting.append(inode)
                else:
                    found.add(inode)
        return found

    def rebuild(self) -> None:
        """Builds the folder anew from links to its files and puts it in the place of the old one."""
        fresh = self.watched.with_name(f"{self.watched.name}.fresh")
        stale = self.watched.with_name(f"{self.watched.name}.stale")
        self._build(fresh, self.root)
        shutil.copystat(self.watched, fresh)
        self.watched.rename(stale)
        fresh.rename(self.watched)
        shutil.rmtree(stale)

    def _build(self, folder: Path, inode: int) -> None:
        folder.mkdir()
        for name, (number, is_folder) in self.names[inode].items():
            if is_folder:
                self._build(folder / name, number)
            else:
                os.link(self.path(number), folder / name, follow_symlinks=False)


def _undo_writes(path: Path, writes: list[Record], chance: random.Random | None) -> int:
    """Takes these writes back, oldest last; with `chance` lets blocks of them survive. Returns how many did."""
    block = chance.choice([512, 4096]) if chance else 4096
    image = bytearray(path.read_bytes())
    versions: defaultdict[int, list[bytes]] = defaultdict(list)
    lengths = [len(image)]
    for record in reversed(writes):
        if chance is not None:
            # What this write changed: the bytes that it replaced, and those by which the file grew.
            grown = range(record.size // block, -(-len(image) // block)) if record.size < len(image) else ()
            replaced = range(record.offset // block, -(-(record.offset + len(record.data)) // block))
            for at in {*grown, *replaced}:
                versions[at].append(bytes(image[at * block : (at + 1) * block]))
        image[record.size :] = b""
        image[record.offset : record.offset + len(record.data)] = record.data
        lengths.append(len(image))
    kept = 0
    if chance is not None:
        length = chance.choice(lengths)
        durable = len(image)
        image.extend(bytes(max(length - durable, 0)))
        for at, written in versions.items():
            chosen = chance.randrange(len(written) + 1)
            if chosen < len(written):
                image[at * block : at * block + len(written[chosen])] = written[chosen]
                kept += 1
        del image[length:]
    with path.open("r+b") as file:
        file.truncate(len(image))
        file.write(image)
    return kept

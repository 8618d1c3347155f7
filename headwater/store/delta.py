"""One open Delta Lake table on the local disk: its transactions, what a crash leaves of them, and its files.

A commit adds data files and, in the same transaction, the log offsets they reach (Delta application transactions
`log/<partition>`), so rows and offsets are never apart. deltalake writes a commit but does not fsync it; here a commit
counts only once its file and directory are fsynced. Only this process writes the table; any program may read it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Field, PostCommitHookProperties, Transaction
from deltalake.exceptions import DeltaError
from deltalake.schema import PrimitiveType
from deltalake.transaction import AddAction

from headwater import durable
from headwater.errors import StoreError
from headwater.records import Column, ColumnType, Offsets
from headwater.store import parquet, recovery
from headwater.store.checksums import Checksums
from headwater.store.parquet import Written
from headwater.store.recovery import ACTIONS, LAST_CHECKPOINT

#: Partition column: the hour in which rows arrived, UTC, such as 2026-11-23T22.
HOUR: Final = "hour"

#: Commits between two checkpoints of the transaction log. Ours; Delta's own default too.
CHECKPOINT_COMMITS: Final = 100

_DATA_FILE: Final = re.compile(r"part-\d{10}-\d{3}-([0-9a-f]{8})-[0-9a-f]{8}\.parquet")
_NO_HOOKS: Final = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
_DELTA_TYPE: Final = {
    ColumnType.DOUBLE: "double",
    ColumnType.BIGINT: "long",
    ColumnType.BOOLEAN: "boolean",
    ColumnType.STRING: "string",
    ColumnType.TIMESTAMP: "timestamp",
    ColumnType.BINARY: "binary",
}
_COLUMN_TYPE: Final = {delta: type_ for type_, delta in _DELTA_TYPE.items()}


@dataclass(frozen=True, slots=True)
class DataFile:
    """A committed file.

    path:           absolute
    columns:        names of the columns it holds; a column declared later is absent
    low_us:         least `ts`, microseconds UTC; None: unknown
    high_us:        greatest `ts`
    revised:        whether some `revision` of a query's result is not 0
    """

    path: Path
    rows: int
    size: int
    columns: frozenset[str]
    low_us: int | None
    high_us: int | None
    revised: bool


class StoredTable:
    """A table in `directory`; made when it is not there, repaired when a crash has torn its end.

    raises: StoreError when what is on disk is damaged in a way that no crash of ours explains
    """

    def __init__(self, directory: Path, name: str, columns: Sequence[Column]) -> None:
        self.directory = directory
        self.name = name
        self.messages: list[str] = []
        self.files: tuple[DataFile, ...] = ()
        self._log = directory / "_delta_log"
        self._unsettled: Path | None = None
        with self._errors("opening"):
            self._checksums = Checksums(directory, name, self.messages)
            if not recovery.recover(self._log, self._checksums, self.messages):
                self._create(columns)
            self._table = DeltaTable(str(directory))
            # A commit may have been read back from memory before it reached the disk.
            self._sync(self._commit_file(self.version))
            self.evolve(columns)
            self._load()
            self._remove_orphans()

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns ever declared, in the order of their declaration, without the hour."""
        return tuple(
            Column(field.name, _COLUMN_TYPE[str(field.type.type)])
            for field in self._table.schema().fields
            if field.name != HOUR
        )

    @property
    def version(self) -> int:
        """Number of the last transaction."""
        version: int = self._table.version()
        return version

    def offsets(self, partitions: int) -> Offsets | None:
        """Where the committed rows end; None before the first commit."""
        found = [self._table.transaction_version(f"log/{partition}") for partition in range(partitions)]
        return None if all(offset is None for offset in found) else tuple(offset or 0 for offset in found)

    def stem(self, number: int, columns: Sequence[str]) -> str:
        """Beginning of the name of the next commit's data file. It tells which columns the file has."""
        return f"part-{self.version + 1:010d}-{number:03d}-{_tag(columns)}"

    def hour_directory(self, hour: str) -> Path:
        """Where the files of one hour of arrival lie."""
        return self.directory / f"{HOUR}={hour}"

    def commit(self, written: Sequence[tuple[str, Written]], offsets: Offsets, now_us: int) -> None:
        """Adds files and moves the offsets, in one transaction, durably.

        written: (hour, what was written into its directory)
        raises:  StoreError; then either nothing was committed or all of it: `offsets` tells
        """
        adds = [
            AddAction(
                path=f"{HOUR}={hour}/{file.name}",
                size=file.size,
                partition_values={HOUR: hour},
                modification_time=now_us // 1000,
                data_change=True,
                stats=file.stats,
            )
            for hour, file in written
        ]
        properties = CommitProperties(
            custom_metadata={ACTIONS: str(len(adds) + len(offsets))},
            app_transactions=[Transaction(f"log/{p}", offset) for p, offset in enumerate(offsets)],
        )
        with self._errors("committing to"):
            self.settle()
            before = self.version
            try:
                self._table.create_write_transaction(
                    adds,
                    "append",
                    self._table.schema(),
                    [HOUR],
                    commit_properties=properties,
                    post_commithook_properties=_NO_HOOKS,
                )
            finally:
                # Also after an error: it may have come after the commit.
                self._table.update_incremental()
            self._unsettled = self._commit_file(self.version)
            if self.version == before + 1:
                self.files += tuple(self._data_file(hour, file) for hour, file in written)
            else:
                self._load()
            self._sync(self._unsettled)
            if self.version % CHECKPOINT_COMMITS == 0:
                self._checkpoint()

    def settle(self) -> None:
        """Makes an earlier commit durable whose fsync failed. raises: StoreError"""
        if self._unsettled is not None:
            with self._errors("settling"):
                durable.rewrite(self._unsettled)
                self._sync(self._unsettled)

    def _create(self, columns: Sequence[Column]) -> None:
        if self.directory.exists():
            # The table's first transaction is fsynced before any data file is begun.
            if any(self.directory.glob(f"{HOUR}=*/*.parquet")):
                raise StoreError(
                    f"table {self.name!r}: {self.directory} holds data files but no transaction log; restore _delta_log"
                    " from a copy, or move the directory away to begin anew"
                )
            durable.remove(self.directory)
        durable.make_directory(self.directory)
        schema = pa.schema([*((c.name, c.type.arrow) for c in columns), (HOUR, pa.string())])
        # Metadata lies beside each commit; 30 days is Delta's own default.
        DeltaTable.create(
            str(self.directory),
            schema,
            partition_by=[HOUR],
            name=self.name,
            configuration={"delta.checkpointInterval": str(CHECKPOINT_COMMITS)},
            commit_properties=CommitProperties(custom_metadata={ACTIONS: "2"}),
        )
        durable.sync_directory(self.directory)
        self._sync(self._commit_file(0))

    def evolve(self, columns: Sequence[Column]) -> None:
        """Gives the table the columns it lacks, durably. raises: StoreError when one changes its type"""
        known = {column.name: column.type for column in self.columns}
        for column in columns:
            if known.get(column.name, column.type) is not column.type:
                raise StoreError(
                    f"table {self.name!r}: column {column.name!r} is stored as {known[column.name]} and now declared"
                    f" {column.type}; a column never changes type, so give the new one another name"
                )
        new = [column for column in columns if column.name not in known]
        if new:
            self.settle()
            self._table.alter.add_columns(
                [
                    Field(column.name, PrimitiveType(_DELTA_TYPE[column.type]), nullable=True)
                    for column in new
                ],
                commit_properties=CommitProperties(custom_metadata={ACTIONS: "1"}),
                post_commithook_properties=_NO_HOOKS,
            )
            self._table.update_incremental()
            self._unsettled = self._commit_file(self.version)
            self._sync(self._unsettled)

    def _load(self) -> None:
        """Reads the list of files from the table, and checks that each is there in its full size."""
        actions = pa.table(self._table.get_add_actions(flatten=True))
        columns_of: dict[str, frozenset[str]] = {}
        found = []
        for row in actions.to_pylist():
            path = self.directory / row["path"]
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                raise StoreError(
                    f"table {self.name!r}: its file {row['path']} is missing; restore it from a copy"
                ) from None
            if size != row["size_bytes"]:
                raise StoreError(
                    f"table {self.name!r}: its file {row['path']} has {size} bytes, committed were {row['size_bytes']};"
                    " restore it from a copy"
                )
            match = _DATA_FILE.fullmatch(path.name)
            tag = match[1] if match else path.name
            if tag not in columns_of:
                columns_of[tag] = self._columns_of(path)
            found.append(
                DataFile(
                    path,
                    row["num_records"],
                    size,
                    columns_of[tag],
                    _micros(row.get("min.ts")),
                    _micros(row.get("max.ts")),
                    bool(row.get("min.revision") or row.get("max.revision")),
                )
            )
        self.files = tuple(sorted(found, key=lambda file: file.path.name))

    def _columns_of(self, path: Path) -> frozenset[str]:
        # A flipped bit in the footer could hide a column.
        parquet.verify(path, self.name)
        return frozenset(pq.read_schema(path).names)

    def _data_file(self, hour: str, file: Written) -> DataFile:
        stats = json.loads(file.stats)
        low, high = (_micros(stats[bound].get("ts")) for bound in ("minValues", "maxValues"))
        columns = frozenset(stats["nullCount"])
        revised = any(stats[bound].get("revision") for bound in ("minValues", "maxValues"))
        path = self.hour_directory(hour) / file.name
        return DataFile(path, file.rows, file.size, columns, low, high, revised)

    def _remove_orphans(self) -> None:
        """Data files that no transaction names: written before a crash, their rows are still in the log."""
        known = {file.path for file in self.files}
        for hour in self.directory.glob(f"{HOUR}=*"):
            for path in hour.iterdir():
                if path not in known and (path.name.endswith(".tmp") or path.name.startswith("part-")):
                    durable.remove(path)
                    self.messages.append(
                        f"table {self.name!r}: removed {hour.name}/{path.name}, which a stop had left before its commit"
                    )

    def _sync(self, commit: Path) -> None:
        """Makes the last transaction durable, then its checksum: what has none yet may be what a stop has left."""
        durable.sync_file(commit)
        durable.sync_directory(self._log)
        if commit not in self._checksums:
            self._checksums.add(commit)
        self._unsettled = None

    def _checkpoint(self) -> None:
        self._table.create_checkpoint()
        new = [self._log / f"{self.version:020d}.checkpoint.parquet", self._log / LAST_CHECKPOINT]
        for path in new:
            durable.sync_file(path)
        durable.sync_directory(self._log)
        kept = [path for path in self._log.iterdir() if path in self._checksums and path not in new]
        self._checksums.replace(kept, new)
        # Only now: commits older than Delta's retention may go, the checkpoint holds what they said.
        self._table.cleanup_metadata()

    def _commit_file(self, version: int) -> Path:
        return self._log / f"{version:020d}.json"

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Any:
        try:
            yield
        except (OSError, DeltaError, pa.ArrowException) as error:
            raise StoreError(f"{doing} table {self.name!r}: {error}") from error


def _tag(columns: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(columns).encode()).hexdigest()[:8]


def _micros(value: object) -> int | None:
    """Microseconds since the epoch of a bound, as deltalake gives it or as the statistics have it."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime):
        return None
    value = value if value.tzinfo else value.replace(tzinfo=UTC)
    whole = value - datetime(1970, 1, 1, tzinfo=UTC)
    return (whole.days * 86_400 + whole.seconds) * 1_000_000 + whole.microseconds

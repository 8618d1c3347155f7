"""A real log and database, and a fleet's stream to watch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from headwater.config import LogSettings
from headwater.database import Database
from headwater.log.embedded import EmbeddedLog
from headwater.records import OWN_SCHEMAS, ColumnType
from tests.tables import table

TELEMETRY = table(
    "telemetry",
    "site string, device string, ts timestamp, received_at timestamp, temperature double, state string",
)
SECOND = 1_000_000


class Plant:
    """A data directory with its log and database, and a clock that stands still until it is moved."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now_us = 1_700_000_000 * SECOND
        settings = LogSettings(segment_bytes=1 << 20, retention_bytes=0)
        self.log = EmbeddedLog(directory / "log", settings, [*OWN_SCHEMAS, TELEMETRY])
        self.database = Database.in_directory(directory, None)

    def clock(self) -> int:
        return self.now_us

    def append(self, *rows: dict[str, Any]) -> None:
        """Rows of `telemetry` in one commit; `ts` in seconds."""
        columns = {
            column.name: pa.array([row.get(column.name) for row in rows], column.type.arrow)
            for column in TELEMETRY.columns
            if column.name != "ts"
        }
        columns["ts"] = pa.array([round(row["ts"] * SECOND) for row in rows], pa.int64()).cast(
            ColumnType.TIMESTAMP.arrow
        )
        self.log.append([(TELEMETRY, pa.RecordBatch.from_pydict(columns, schema=TELEMETRY.arrow))])

    def close(self) -> None:
        self.database.close()
        self.log.close()

"""What every row is given: where to work, how long, and the programs to measure with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benches.peers import Yardstick

NO_YARDSTICK = "YARDSTICK is not set"


@dataclass
class Bench:
    """Options of one run.

    scratch:   folder on the disk to measure; everything in it is removed at the end
    rounds:    of each comparison; figures are medians
    secs:      of load per server and round
    long_secs: of load of the row that must be sustained
    log_gb:    size of the log that a restart reads
    yardstick: None: rows that need it are not measured
    mosquitto: path of the broker, if there is one
    """

    scratch: Path
    rounds: int
    secs: float
    long_secs: float
    log_gb: float
    yardstick: Yardstick | None
    mosquitto: str | None

    def other(self) -> Path:
        """A directory for a second server."""
        other = self.scratch / "other"
        other.mkdir(exist_ok=True)
        return other

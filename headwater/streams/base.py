"""What any stream engine owes its users. The embedded engine is the first implementation; Flink runs the same SQL.

A query reads one stream and appends its windows to another. Between what it has read and what it has written there is
no gap at any moment: after `kill -9` no window result is lost, none is written twice.
"""

from __future__ import annotations

from typing import Literal, Protocol, TypedDict

from headwater.records import Schema
from headwater.streams.plan import Plan


class QueryMetrics(TypedDict):
    """Counters of one query since its state began, restarts included, and where it stands now."""

    rows: int
    """Rows read from the source."""
    filtered: int
    """Rows that WHERE left out."""
    late: int
    """Rows that amended a window already closed."""
    dropped: int
    """Rows too late for any window, and rows without event time."""
    amendments_skipped: int
    """Rows of another query's result that only amend: a query over a query reads first results."""
    windows: int
    """Results: the three below."""
    windows_closed: int
    """First results: one per window and key, those that HAVING leaves out included."""
    amendments: int
    """Further revisions."""
    early: int
    """Results of windows that were still open."""
    watermark_us: int | None
    """Microseconds UTC; None before the first one."""
    lag_rows: int
    """Durable rows of the source not read yet."""
    steps: int
    """Number of the last recorded step."""
    state_bytes: int
    """Memory of open and held windows; while a checkpoint is written, what changes of it is held twice."""
    checkpoint_bytes: int
    """Of the newest checkpoint: all of the state, or what had changed."""
    checkpoint_us: int
    """From when its state was taken until it was on disk; the query went on meanwhile."""
    checkpoint_pause_us: int
    """For how long the query stood still while the state was taken."""


class Engine(Protocol):
    """Runs continuous queries. Driven by one thread."""

    def add(
        self,
        plan: Plan,
        source: Schema,
        result: Schema,
        lateness_us: int,
        late: Literal["amend", "drop"],
        early_us: int | None = None,
    ) -> None:
        """Starts a query, or goes on where it stood; `result` has the plan's columns and is registered.

        early_us: open windows show results each time the watermark passes a multiple of it; None: none do

        raises: DataDirectoryError when its stored state cannot be read
        """

    def remove(self, name: str) -> None:
        """Ends a query between two steps, its state on disk: added again it goes on, as far as the log has its rows.

        raises: DataDirectoryError when the disk refuses; then it is ended all the same, and what is not on disk is read
                again
        """

    def forget(self, name: str) -> None:
        """Removes the stored state of a query that does not run."""

    def step(self) -> bool:
        """Does what is available and says whether it did something; never waits for rows.

        raises: HeadwaterError; whatever failed is done again by a later step
        """

    def checkpoint(self) -> None:
        """Makes the state durable, so that a restart has less to read again."""

    def metrics(self) -> dict[str, QueryMetrics]:
        """By query name."""

    def close(self) -> None:
        """Checkpoints and stops. The log must still be open."""

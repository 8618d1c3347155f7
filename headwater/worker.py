"""A thread that drives one service: steps while there is work, else waits for the log's next commit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from headwater.log.base import Log

logger = structlog.get_logger(__name__)

#: Longest wait for a commit, seconds: services also act on the clock (flush, idle partitions, retries).
IDLE_S = 0.25
#: A step that takes longer than this is taken for stuck, seconds.
STUCK_S = 60.0
#: Longest pause after failures in a row, seconds.
MAX_BACKOFF_S = 10.0


class Worker(threading.Thread):
    """Calls `step` until `stop`; a failing step is reported and tried again with back-off.

    step:   does what is available, returns whether it did something
    pace_s: least time between two steps
    """

    def __init__(self, name: str, step: Callable[[], bool], log: Log, pace_s: float) -> None:
        super().__init__(name=name, daemon=True)
        self._step = step
        self._log = log
        self._pace_s = pace_s
        self._stop_asked = threading.Event()
        self._between = threading.Lock()
        self.failures = 0
        self._error: str | None = None
        #: When its step began, monotonic seconds; None between steps.
        self._stepping_since: float | None = None

    def run(self) -> None:
        name_thread(self.name)
        seen = 0
        while not self._stop_asked.is_set():
            try:
                self._stepping_since = time.monotonic()
                with self._between:
                    busy = self._step()
                self.failures, self._error = 0, None
            except Exception as error:
                # Whatever a service meets, the others go on; its offsets make the next try start where this did.
                self.failures += 1
                self._error = f"{type(error).__name__}: {error}"
                self._stepping_since = None
                pause = min(MAX_BACKOFF_S, 0.1 * 2 ** min(self.failures, 10))
                logger.exception(
                    "service failed", service=self.name, failures=self.failures, retry_in_s=pause
                )
                self._stop_asked.wait(pause)
                continue
            self._stepping_since = None
            if not busy:
                seen = self._log.wait(seen, IDLE_S)
            self._stop_asked.wait(self._pace_s)

    def still(self) -> threading.Lock:
        """To be held while the service is changed: it is between two steps then."""
        return self._between

    def stop(self) -> None:
        """Asks the thread to end after its current step."""
        self._stop_asked.set()

    @property
    def healthy(self) -> bool:
        """Whether the thread runs and its last step succeeded."""
        return self.is_alive() and self.last_error is None

    @property
    def last_error(self) -> str | None:
        """Why its last step failed, or that it does not come to an end."""
        since = self._stepping_since
        stuck_s = 0.0 if since is None else time.monotonic() - since
        if stuck_s > STUCK_S:
            return f"its step has not ended for {stuck_s:.0f} s"
        return self._error


def name_thread(name: str) -> None:
    """Gives this thread its name in the operating system too, where profilers read it; 15 bytes of it are kept."""
    with suppress(OSError):
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name[:15], encoding="utf-8")

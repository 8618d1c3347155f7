"""A thread that drives one service: steps while there is work, else waits for the log's next commit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from headwater.log.base import Log

logger = structlog.get_logger(__name__)

#: Longest wait for a commit, seconds: services also act on the clock (flush, idle partitions, retries).
IDLE_S = 0.25
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
        self.failures = 0
        self.last_error: str | None = None

    def run(self) -> None:
        name_thread(self.name)
        seen = 0
        while not self._stop_asked.is_set():
            try:
                busy = self._step()
                self.failures, self.last_error = 0, None
            except Exception as error:
                # Whatever a service meets, the others go on; its offsets make the next try start where this did.
                self.failures += 1
                self.last_error = f"{type(error).__name__}: {error}"
                pause = min(MAX_BACKOFF_S, 0.1 * 2 ** min(self.failures, 10))
                logger.exception(
                    "service failed", service=self.name, failures=self.failures, retry_in_s=pause
                )
                self._stop_asked.wait(pause)
                continue
            if not busy:
                seen = self._log.wait(seen, IDLE_S)
            self._stop_asked.wait(self._pace_s)

    def stop(self) -> None:
        """Asks the thread to end after its current step."""
        self._stop_asked.set()

    @property
    def healthy(self) -> bool:
        """Whether the thread runs and its last step succeeded."""
        return self.is_alive() and self.failures == 0


def name_thread(name: str) -> None:
    """Gives this thread its name in the operating system too, where profilers read it; 15 bytes of it are kept."""
    with suppress(OSError):
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name[:15], encoding="utf-8")

"""Lines of the log are bounded too: a flood of refusals must not become a flood of lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

#: Lines of one kind and reason in a second. Ours.
_LINES: Final = 20


class LogPace:
    """Picks the events that become lines: at most 20 of one kind and reason in a second.

    clock: seconds, of any beginning
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._lines: dict[tuple[str, str], int] = {}
        self._left_out: dict[tuple[str, str], int] = {}

    def pick(self, events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The events to show, in their order; one that follows others of its kind that were not shown says in
        `left_out` how many."""
        now = self._clock()
        if now - self._since >= 1.0:
            self._since = now
            self._lines.clear()
        shown = []
        for event in events:
            kind = (event["kind"], event["reason"])
            lines = self._lines.get(kind, 0)
            if lines >= _LINES:
                self._left_out[kind] = self._left_out.get(kind, 0) + 1
                continue
            self._lines[kind] = lines + 1
            left_out = self._left_out.pop(kind, 0)
            shown.append({**event, "left_out": left_out} if left_out else event)
        return shown

"""What went wrong with each client lately: refusals, disconnects with a reason, messages not accepted."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from typing import Any, Final

from headwater.gateway.listener import Gateway

#: Clients whose events are kept, and events of each; the client that has been quiet longest goes first, and each
#: client's oldest event. Some 70 MB when full. Ours.
_CLIENTS: Final = 10_000
_EVENTS: Final = 10


class Troubles:
    """The gateway's events, handed on in their order and kept by client since the start, bounded."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._lock = threading.Lock()
        self._of: OrderedDict[str, deque[dict[str, Any]]] = OrderedDict()
        self._untaken: list[dict[str, Any]] = []

    def take(self) -> list[dict[str, Any]]:
        """Events that were not taken yet, oldest first, for the operator's log."""
        with self._lock:
            self._collect()
            taken, self._untaken = self._untaken, []
        return taken

    def of(self, client: str) -> list[dict[str, Any]]:
        """The client's last events, newest first: `at_us`, `kind`, `reason`, `detail`, `origin`."""
        with self._lock:
            self._collect()
            return list(reversed(self._of.get(client, ())))

    def _collect(self) -> None:
        for event in self._gateway.events():
            self._untaken.append(event)
            if event["client"]:
                self._of.setdefault(event["client"], deque(maxlen=_EVENTS)).append(event)
                self._of.move_to_end(event["client"])
                if len(self._of) > _CLIENTS:
                    self._of.popitem(last=False)

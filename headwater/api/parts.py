"""What the routes may call: the services of one running pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from headwater.alerts.notify import Notifier
from headwater.alerts.service import AlarmService
from headwater.config import Settings
from headwater.database import Database
from headwater.devices.shadow import ShadowService
from headwater.gateway.letters import Letters
from headwater.gateway.listener import Gateway
from headwater.gateway.logins import LoginService
from headwater.gateway.troubles import Troubles
from headwater.ledger import Ledger
from headwater.live import Live
from headwater.log.embedded import EmbeddedLog
from headwater.schemas import Schemas
from headwater.store.base import Store
from headwater.streams.base import Engine


class ServiceThread(Protocol):
    """A thread that drives a service, as health reports see it."""

    name: str

    @property
    def healthy(self) -> bool: ...

    @property
    def last_error(self) -> str | None: ...


@dataclass
class Parts:
    """Services of one pipeline; those behind the log are None when `pipeline.enabled` is false.

    settings: with everything that is declared now; a change puts others in their place
    live:     changes of what is declared; None like those behind the log
    logins:   None where nobody needs to say who it is
    """

    settings: Settings
    clock: Callable[[], int]
    database: Database
    log: EmbeddedLog
    gateway: Gateway
    logins: LoginService | None
    troubles: Troubles
    schemas: Schemas
    store: Store | None
    ledger: Ledger | None
    letters: Letters | None
    engine: Engine | None
    alarms: AlarmService | None
    shadows: ShadowService | None
    notifier: Notifier | None
    live: Live | None
    workers: Sequence[ServiceThread]

    def counters(self) -> dict[str, Any]:
        """The gateway's counters, one balanced snapshot."""
        return self.gateway.counters()

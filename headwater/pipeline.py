"""The only file that knows all parts: builds them from the settings, joins them and drives them.

Every service reads the log behind its own offsets on a thread of its own; nothing calls upstream.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Protocol

import structlog

from headwater import database as db
from headwater import durable, schemas
from headwater.config import Settings
from headwater.errors import DataDirectoryError
from headwater.gateway.listener import Gateway
from headwater.gateway.logins import login_service, waiting_logins
from headwater.gateway.logpace import LogPace
from headwater.gateway.retained import RetainedKeeper
from headwater.gateway.troubles import Troubles
from headwater.log.embedded import EmbeddedLog
from headwater.records import DEAD_LETTERS_SCHEMA, REPLAYS_SCHEMA
from headwater.worker import Worker

if TYPE_CHECKING:
    from headwater.streams.plan import Plan

logger = structlog.get_logger(__name__)

#: Who holds the log until the services are there.
STARTING: Final = "starting"

#: Least time between two steps of a service, seconds: bounds what a reader costs when commits are frequent.
PACE_S = {
    "store": 0.05,
    "ledger": 0.5,
    "streams": 0.05,
    "alarms": 0.01,
    "shadows": 0.005,
    "notifier": 0.02,
    "retained": 0.05,
    "selfcheck": 1.0,
}


class _Service(Protocol):
    def step(self) -> bool: ...

    def close(self) -> None: ...


def now_us() -> int:
    """Wall clock, microseconds since the Unix epoch, UTC."""
    return time.time_ns() // 1000


class Pipeline:
    """Everything of one data directory, running from construction to `stop`.

    raises: ConfigError, DataDirectoryError, LogCorruptError, ListenError
    """

    def __init__(self, settings: Settings, clock: Callable[[], int] = now_us) -> None:
        self.settings = settings
        self.directory = settings.data_dir
        self._lock = _lock(self.directory)
        # Of a process that was killed: its addresses are nobody's now.
        (self.directory / "run.json").unlink(missing_ok=True)
        self.database = db.Database.in_directory(self.directory, settings.database_url)
        schemas.planned(settings)
        with self.database.read() as connection:
            every_version = db.schemas(connection)
        self.log = EmbeddedLog(self.directory / "log", settings.log, every_version)
        # Nothing may be trimmed before everybody has said what it still needs. Without the pipeline nothing reads, so
        # everything stays: a later start with it finds every row.
        self.log.hold_all(STARTING if settings.pipeline.enabled else "pipeline disabled")
        logger.info("log opened", **self.log.recovery())
        self.schemas, plans = schemas.registered(self.database, self.log, settings)
        for name, stream in settings.streams.items():
            if stream.dedupe:
                window, most = stream.dedupe_window, stream.dedupe_max_keys
                self.log.dedupe(self.schemas[name], stream.dedupe, window, most, clock())
        self._workers: list[Worker] = []
        self._closers: list[_Service] = []
        self._stopping = threading.Event()
        self._events = threading.Thread(target=self._report_events, name="events", daemon=True)
        self.logins = login_service(settings.auth, settings.policies, self.directory)
        keeps = settings.mqtt.retain_available
        retained = RetainedKeeper(self.log, self.database, clock) if keeps else None
        self.gateway = Gateway(
            self.log,
            settings.mqtt,
            settings.listeners,
            self.directory / "ca",
            {name: (stream, self.schemas[name]) for name, stream in settings.streams.items()},
            self.logins.native if self.logins else None,
            loads_retained=keeps,
            sessions=self.directory / "sessions",
        )
        self.troubles = Troubles(self.gateway)
        self._events.start()
        try:
            if retained is not None:
                retained.hand_over(self.gateway)
                self._drive("retained", retained)
            self._start_services(plans, clock)
        except BaseException:
            # Devices have been accepted already; what was acknowledged is in the log.
            self.stop(0)
            raise
        self.log.release_all(STARTING)

    def _start_services(self, plans: Mapping[str, Plan], clock: Callable[[], int]) -> None:
        """Everything that reads the log. Its libraries are loaded here, so that no device waits for them."""
        from headwater.alerts.notify import Notifier
        from headwater.alerts.routing import Router
        from headwater.alerts.service import AlarmService
        from headwater.api.parts import Parts
        from headwater.devices.shadow import ShadowService
        from headwater.gateway.letters import Letters
        from headwater.ledger import Ledger
        from headwater.selfcheck import SelfCheck, own_alarms
        from headwater.store.embedded import EmbeddedStore
        from headwater.streams.embedded import EmbeddedEngine

        settings = self.settings
        router = Router(settings.routes)
        store = ledger = letters = engine = alarms = notifier = shadows = None
        if settings.pipeline.enabled:
            store = EmbeddedStore(self.log, self.directory, settings.store, settings.query, clock)
            store.create(DEAD_LETTERS_SCHEMA)
            store.create(REPLAYS_SCHEMA)
            letters = Letters(self.log, store.query, settings.streams, self.schemas, clock)
            for name in settings.streams:
                store.create(self.schemas[name])
            ledger = Ledger(self.log, self.database, store, settings.streams, self.schemas, clock)
            engine = EmbeddedEngine(self.log, self.directory, settings.engine, clock)
            for name, query in plans.items():
                store.create(self.schemas[name], latest_by=query.latest_by)
                # A result comes out in the order of its windows, so a query over a query waits for nobody.
                source = settings.streams.get(query.source)
                late = settings.queries[name].late or (source.late if source else "amend")
                lateness = source.lateness if source else 0
                engine.add(query, self.schemas[query.source], self.schemas[name], lateness, late)
            alarms = AlarmService(self.log, self.database, settings.alarms, self.schemas, clock, router)
            notifier = Notifier(self.database, self.log, settings.notify, clock)
            shadows = ShadowService(self.log, self.database, settings.shadow, clock)
            for message in store.messages():
                logger.warning("store repaired", detail=message)
        self.parts = Parts(
            settings=settings,
            clock=clock,
            database=self.database,
            log=self.log,
            gateway=self.gateway,
            logins=self.logins,
            troubles=self.troubles,
            schemas=self.schemas,
            store=store,
            ledger=ledger,
            letters=letters,
            engine=engine,
            alarms=alarms,
            shadows=shadows,
            notifier=notifier,
            workers=self._workers,
        )
        selfcheck = SelfCheck(self.database, own_alarms(self.parts, settings.system.notify), clock, router)
        services = {
            "store": store,
            "ledger": ledger,
            "streams": engine,
            "alarms": alarms,
            "shadows": shadows,
            "notifier": notifier,
            "selfcheck": selfcheck,
        }
        for name, service in services.items():
            if service is not None:
                self._drive(name, service)

    def _drive(self, name: str, service: _Service) -> None:
        """Steps the service on a thread of its own, until `stop`, which closes it."""
        self._closers.append(service)
        self._workers.append(Worker(name, service.step, self.log, PACE_S[name]))
        self._workers[-1].start()

    def announce(self, http: str) -> None:
        """Writes `run.json` (renamed into place): addresses and pid, for scripts that started us."""
        listeners = {each["name"]: each["address"] for each in self.gateway.listeners()}
        ready = {**listeners, "http": http, "pid": os.getpid()}
        temporary = self.directory / "run.json.new"
        temporary.write_text(json.dumps(ready) + "\n", encoding="utf-8")
        temporary.rename(self.directory / "run.json")

    def stop(self, drain_s: float = 5.0) -> None:
        """Acknowledges what becomes durable in time, lets the services finish their step, closes everything."""
        (self.directory / "run.json").unlink(missing_ok=True)
        self._stopping.set()
        self.gateway.stop(drain_s)
        if self.logins is not None:
            self.logins.stop()
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.join(drain_s)
        for service in self._closers:
            service.close()
        self.log.close()
        self.database.close()
        self._lock.close()

    def reload(self) -> None:
        """Reads the certificates of the listeners anew, beside what runs; the outcome is an event of the gateway."""
        threading.Thread(target=self.gateway.reload, name="reload", daemon=True).start()

    def _report_events(self) -> None:
        pace = LogPace()
        while not self._stopping.wait(0.5):
            for event in pace.pick(self.troubles.take()):
                logger.info("gateway", **event)


def _lock(directory: Path) -> IO[str]:
    """An exclusive lock that ends with the process, however it ends."""
    try:
        durable.make_directory(directory)
        file = (directory / "lock").open("w", encoding="utf-8")
    except OSError as error:
        raise DataDirectoryError(f"opening the data directory {directory}: {error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise DataDirectoryError(
            f"opening the data directory {directory}: another Headwater runs on it; stop that one or name another "
            f"directory with --data-dir"
        ) from None
    return file


def check(settings: Settings) -> None:
    """Everything of the settings that can be checked without a data directory: queries and alarm conditions.

    raises: ConfigError
    """
    from headwater.alerts.notify import Notifier
    from headwater.alerts.routing import Router
    from headwater.alerts.service import AlarmService

    tables, _ = schemas.planned(settings)
    AlarmService.check(settings.alarms, tables)
    waiting_logins(settings.auth, settings.policies)
    Notifier.check(settings.notify)
    Router(settings.routes)

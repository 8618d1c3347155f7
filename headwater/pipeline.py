"""The only file that knows all parts: builds them from the settings, joins them and drives them.

Every service reads the log behind its own offsets on a thread of its own; nothing calls upstream.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Protocol

import structlog

from headwater import database as db
from headwater import declared, durable, registry, schemas
from headwater.config import Settings
from headwater.declarations import StreamSettings
from headwater.errors import DataDirectoryError
from headwater.gateway.listener import Gateway
from headwater.gateway.logins import login_service, waiting_logins
from headwater.gateway.logpace import LogPace
from headwater.gateway.retained import RetainedKeeper
from headwater.gateway.troubles import Troubles
from headwater.log.embedded import EmbeddedLog
from headwater.notify_settings import named
from headwater.records import DEAD_LETTERS_SCHEMA, REPLAYS_SCHEMA, Schema
from headwater.registry import Kind
from headwater.schemas import Schemas
from headwater.worker import Worker

if TYPE_CHECKING:
    from headwater.alarm_settings import AlarmSettings
    from headwater.alerts.routing import Router
    from headwater.effects import Running
    from headwater.store.base import Store
    from headwater.streams.base import Engine

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
    "registry": 1.0,
}

#: Services whose step may not run while what is declared changes.
_STILL: Final = ("ledger", "streams", "alarms")


class _Service(Protocol):
    def step(self) -> bool: ...

    def close(self) -> None: ...


def now_us() -> int:
    """Wall clock, microseconds since the Unix epoch, UTC."""
    return time.time_ns() // 1000


@dataclass(slots=True)
class _Given:
    """What parts were given last, to see what a change concerns.

    filled: to the gateway, deduped: to the log by stream, tables: to the store, tasks: to the engine
    """

    filled: dict[str, StreamSettings]
    deduped: dict[int, tuple[tuple[str, ...], int, int]] = field(default_factory=dict)
    tables: dict[str, object] = field(default_factory=dict)
    tasks: dict[str, object] = field(default_factory=dict)


class Pipeline:
    """Everything of one data directory, running from construction to `stop`.

    raises: ConfigError, DataDirectoryError, LogCorruptError, ListenError
    """

    def __init__(self, settings: Settings, clock: Callable[[], int] = now_us) -> None:
        self.directory = settings.data_dir
        self._lock = _lock(self.directory)
        # Of a process that was killed: its addresses are nobody's now.
        (self.directory / "run.json").unlink(missing_ok=True)
        self.database = db.Database.in_directory(self.directory, settings.database_url)
        file, settings = settings, declared.started(self.database, settings, clock())
        with self.database.read() as connection:
            every_version = db.schemas(connection)
            objects = registry.objects(connection)
        self.log = EmbeddedLog(self.directory / "log", settings.log, every_version)
        # Nothing may be trimmed before everybody has said what it still needs. Without the pipeline nothing reads, so
        # everything stays: a later start with it finds every row.
        self.log.hold_all(STARTING if settings.pipeline.enabled else "pipeline disabled")
        logger.info("log opened", **self.log.recovery())
        self.schemas, self._plans = schemas.registered(self.database, self.log, settings)
        self._clock = clock
        self._given = _Given(_filled(settings))
        for name, stream in settings.streams.items():
            self._dedupe(stream, self.schemas[name])
        # Tables that deleted streams and queries have left behind: their last rows may still be in the log.
        newest = {schema.name: schema for schema in every_version}
        self._deleted = [
            (self.log.newest(newest[name]), each.latest_by)
            for (_, name), each in objects.items()
            if each.deleted and name in newest
        ]
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
            {name: (stream, self.schemas[name]) for name, stream in self._given.filled.items()},
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
            self._start_services(file, settings, clock)
        except BaseException:
            # Devices have been accepted already; what was acknowledged is in the log.
            self.stop(0)
            raise
        self.log.release_all(STARTING)

    def _start_services(self, file: Settings, settings: Settings, clock: Callable[[], int]) -> None:
        """Everything that reads the log. Its libraries are loaded here, so that no device waits for them.

        file: settings without what came through the API
        """
        from headwater.alerts.notify import Notifier
        from headwater.alerts.service import AlarmService
        from headwater.api.parts import Parts
        from headwater.devices.shadow import ShadowService
        from headwater.gateway.letters import Letters
        from headwater.ledger import Ledger
        from headwater.live import Live
        from headwater.selfcheck import SelfCheck, own_alarms
        from headwater.store.embedded import EmbeddedStore
        from headwater.streams.embedded import EmbeddedEngine

        router = _router(settings)
        store = ledger = letters = engine = alarms = notifier = shadows = live = None
        if settings.pipeline.enabled:
            store = EmbeddedStore(self.log, self.directory, settings.store, settings.query, clock)
            store.create(DEAD_LETTERS_SCHEMA)
            store.create(REPLAYS_SCHEMA)
            letters = Letters(self.log, store.query, settings.streams, self.schemas, clock)
            for schema, latest_by in self._deleted:
                store.create(schema, latest_by)
            self._create_tables(store, settings, self.schemas)
            ledger = Ledger(self.log, self.database, store, settings.streams, self.schemas, clock)
            engine = EmbeddedEngine(self.log, self.directory, settings.engine, clock)
            self._change_queries(engine, settings)
            alarms = AlarmService(
                self.log,
                self.database,
                _judged(settings),
                self.schemas,
                clock,
                router,
                ended=True,
                paused=settings.alarms.keys() - _judged(settings).keys(),
            )
            notifier = Notifier(self.database, self.log, settings.notify, clock)
            shadows = ShadowService(self.log, self.database, settings.shadow, clock)
            for message in store.messages():
                logger.warning("store repaired", detail=message)
            live = Live(self.database, self.log, file, self._running, self.settle, self._drop, clock)
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
            live=live,
            workers=self._workers,
        )
        own = own_alarms(self.parts, settings.system.notify)
        self._selfcheck = SelfCheck(self.database, own, clock, router)
        services = {
            "store": store,
            "ledger": ledger,
            "streams": engine,
            "alarms": alarms,
            "shadows": shadows,
            "notifier": notifier,
            "selfcheck": self._selfcheck,
            "registry": live,
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

    # ---- what is declared changes

    def settle(self, settings: Settings) -> None:
        """Brings what runs to these settings; only streams, queries, alarms and routes may be others.

        Each part compares what it was given with what it is to have, restarts what differs as a start would, and leaves
        all else alone. After an error it is called again.

        raises: what a start raises
        """
        parts, router = self.parts, _router(settings)
        assert parts.store is not None and parts.ledger is not None  # noqa: PT018
        assert parts.letters is not None and parts.engine is not None and parts.alarms is not None  # noqa: PT018
        with contextlib.ExitStack() as stack:
            for worker in self._workers:
                if worker.name in _STILL:
                    stack.enter_context(worker.still())
            found, self._plans = schemas.registered(self.database, self.log, settings)
            for name, stream in settings.streams.items():
                self._dedupe(stream, found[name])
            # Tables first: whoever sees a schema finds its table.
            self._create_tables(parts.store, settings, found)
            self.schemas.adopt(found)
            parts.settings = settings
            filled = _filled(settings)
            changed = {name: each for name, each in filled.items() if self._given.filled.get(name) != each}
            gone = self._given.filled.keys() - filled.keys()
            if changed or gone:
                bound = {name: (stream, self.schemas[name]) for name, stream in changed.items()}
                self.gateway.rebind(bound, sorted(gone))
                self._given.filled = filled
            parts.letters.change(settings.streams)
            parts.ledger.change(settings.streams, self.schemas)
            self._change_queries(parts.engine, settings)
            judged = _judged(settings)
            paused = settings.alarms.keys() - judged.keys()
            parts.alarms.change(judged, self.schemas, router, paused)
        self._selfcheck.router = router

    def _running(self) -> Running:
        from headwater.effects import Running

        return Running(self.parts.settings, self.schemas, self._plans)

    def _dedupe(self, stream: StreamSettings, schema: Schema) -> None:
        """Before the first row of a stream, or of one that takes none now."""
        wanted = (tuple(stream.dedupe), stream.dedupe_window, stream.dedupe_max_keys)
        was = self._given.deduped.get(schema.stream)
        if stream.dedupe and was != wanted:
            window, most = stream.dedupe_window, stream.dedupe_max_keys
            self.log.dedupe(schema, stream.dedupe, window, most, self._clock())
        elif was is not None and was[0] and not stream.dedupe:
            self.log.dedupe_end(schema.stream)
        self._given.deduped[schema.stream] = wanted

    def _create_tables(self, store: Store, settings: Settings, found: Schemas) -> None:
        wanted: dict[str, object] = {}
        for name, stream in settings.streams.items():
            named_by_rules = schemas.named_columns(settings, name) if stream.infer else []
            wanted[name] = schemas.stream_columns(stream), named_by_rules
        for name, plan in self._plans.items():
            wanted[name] = found[name], plan.latest_by
        for name, columns in wanted.items():
            if self._given.tables.get(name) != columns:
                store.create(found[name], self._plans[name].latest_by if name in self._plans else ())
                self._given.tables[name] = columns

    def _change_queries(self, engine: Engine, settings: Settings) -> None:
        wanted: dict[str, object] = {}
        for name, plan in self._plans.items():
            query, stream = settings.queries[name], settings.streams.get(plan.source)
            if query.paused:
                continue
            # A result comes out in the order of its windows, so a query over a query waits for nobody.
            late = query.late or (stream.late if stream else "amend")
            lateness = stream.lateness if stream else 0
            source, result = self.schemas[plan.source], self.schemas[name]
            wanted[name] = plan.signature(source), result, lateness, late, query.early
            if name in self._given.tasks and self._given.tasks[name] != wanted[name]:
                engine.remove(name)
                del self._given.tasks[name]
            if name not in self._given.tasks:
                engine.add(plan, source, result, lateness, late, query.early)
                self._given.tasks[name] = wanted[name]
        for name in self._given.tasks.keys() - wanted.keys():
            engine.remove(name)
            del self._given.tasks[name]

    def _drop(self, kind: Kind, name: str) -> None:
        """Removes what a deleted stream or query has left: its table, its state, its name."""
        assert self.parts.store is not None and self.parts.engine is not None  # noqa: PT018
        self.parts.store.drop(name)
        self._given.tables.pop(name, None)
        if kind == "queries":
            self.parts.engine.forget(name)
        with self.database.begin() as connection:
            db.retire(connection, name)

    def _report_events(self) -> None:
        pace = LogPace()
        while not self._stopping.wait(0.5):
            for event in pace.pick(self.troubles.take()):
                logger.info("gateway", **event)


def _router(settings: Settings) -> Router:
    from headwater.alerts.routing import Router

    return Router([route for route in named(settings.routes).values() if not route.paused])


def _judged(settings: Settings) -> dict[str, AlarmSettings]:
    return {name: alarm for name, alarm in settings.alarms.items() if not alarm.paused}


def _filled(settings: Settings) -> dict[str, StreamSettings]:
    return {name: stream for name, stream in settings.streams.items() if not stream.paused}


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
    from headwater.alerts.service import AlarmService

    tables, _ = schemas.planned(settings)
    AlarmService.check(settings.alarms, tables)
    waiting_logins(settings.auth, settings.policies)
    Notifier.check(settings.notify)
    _router(settings)

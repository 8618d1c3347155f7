"""The outbox worker: brings committed notifications to their targets, at least once and in order per target.

Every target has at most one delivery under way, on a thread of its own, so that a slow or dead one delays no other. A
failed try counts for everything that waits for that target: the target is asked again with growing pauses, and what has
waited through MAX_ATTEMPTS tries, about a day, is dead. So a target that stays away holds a day of notifications.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import orjson
import pyarrow as pa
import sqlalchemy as sa
import structlog

from headwater.alerts.targets import Delivery, Notification, Target, target_of
from headwater.database import NOTIFICATIONS, Database
from headwater.declarations import NotifySettings
from headwater.latency import Latency
from headwater.log.base import Log

MAX_ATTEMPTS: Final = 20
FIRST_PAUSE_US: Final = 5_000_000
LONGEST_PAUSE_US: Final = 7_200_000_000

#: Deliveries under way at a time, over all targets.
MAX_PARALLEL: Final = 16

#: Delivered and dead notifications stay visible for so long.
KEEP_US: Final = 7 * 86_400_000_000

_PURGE_INTERVAL_US: Final = 3_600_000_000
_CLOSE_TIMEOUT_S: Final = 2.0

_logger = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Run:
    """A delivery under way; `delivery` is set by its thread as the last thing."""

    notifications: Sequence[Notification]
    thread: threading.Thread | None = None
    delivery: Delivery | None = None
    done_us: int = 0


class Notifier:
    """All `[notify.*]` targets; driven by one thread that calls `step`.

    clock:  microseconds UTC
    raises: ConfigError that names `notify.<name>.url`, without its text
    """

    def __init__(
        self, database: Database, log: Log, targets: Mapping[str, NotifySettings], clock: Callable[[], int]
    ) -> None:
        self._database = database
        self._clock = clock
        self._targets = {
            name: target_of(name, settings.url.get_secret_value(), log, clock)
            for name, settings in targets.items()
        }
        #: From the arrival of the reading that fired an alarm until a target has its first notification.
        self.latency = Latency()
        self._runs: dict[str, _Run] = {}
        self._purged_us = 0
        gone = _waiting().where(NOTIFICATIONS.c.target.not_in(list(self._targets)))
        with database.begin() as connection:
            connection.execute(
                gone.values(state="dead", next_at=clock(), last_error="the target is no longer configured")
            )

    @staticmethod
    def check(targets: Mapping[str, NotifySettings]) -> None:
        """Reads every URL and sends nothing. raises: ConfigError"""
        for name, settings in targets.items():
            target_of(name, settings.url.get_secret_value(), None, lambda: 0)

    def step(self) -> bool:
        """Records what has been delivered and starts what is due; never waits for a target.

        gives: True where something was recorded or started
        """
        worked = self._record()
        for name, target in self._targets.items():
            if name not in self._runs and len(self._runs) < MAX_PARALLEL:
                worked |= self._start(name, target)
        self._purge()
        return worked

    def status(self) -> dict[str, dict[str, int]]:
        """Notifications by target and state: `waiting`, `sent`, `dead` (those of the last days)."""
        found = {name: {"waiting": 0, "sent": 0, "dead": 0} for name in self._targets}
        count = sa.select(NOTIFICATIONS.c.target, NOTIFICATIONS.c.state, sa.func.count().label("number"))
        with self._database.read() as connection:
            for row in connection.execute(count.group_by(NOTIFICATIONS.c.target, NOTIFICATIONS.c.state)):
                found.setdefault(row.target, {"waiting": 0, "sent": 0, "dead": 0})[row.state] = row.number
        return found

    def close(self) -> None:
        """Waits shortly for deliveries under way; those that take longer are sent again at the next start."""
        for run in self._runs.values():
            if run.thread is not None:
                run.thread.join(_CLOSE_TIMEOUT_S)
        self._record()

    def _start(self, name: str, target: Target) -> bool:
        due = sa.select(NOTIFICATIONS).where(
            NOTIFICATIONS.c.target == name, NOTIFICATIONS.c.state == "waiting"
        )
        with self._database.read() as connection:
            rows = connection.execute(due.order_by(NOTIFICATIONS.c.sequence).limit(target.run)).all()
        # The first in order decides: what came later waits behind it, also when it is not due itself.
        if not rows or rows[0].next_at > self._clock():
            return False
        run = _Run([Notification(row.id, orjson.loads(row.body)) for row in rows])
        run.thread = threading.Thread(
            target=_deliver, args=(target, run, self._clock), name=f"notify {name}", daemon=True
        )
        self._runs[name] = run
        run.thread.start()
        return True

    def _record(self) -> bool:
        done = {name: run for name, run in self._runs.items() if run.delivery is not None}
        if not done:
            return False
        now_us = self._clock()
        with self._database.begin() as connection:
            for name, run in done.items():
                _record_run(connection, name, run, now_us)
        for name, run in done.items():
            del self._runs[name]
            self._observe(run)
            if run.delivery is not None and run.delivery.error is not None:
                _logger.warning("notification not delivered", target=name, error=run.delivery.error)
        return True

    def _observe(self, run: _Run) -> None:
        """How long the delivered notifications of firing alarms took since their readings arrived."""
        assert run.delivery is not None
        delivered = [one.alarm for one in run.notifications[: run.delivery.delivered]]
        readings = [alarm["reading"] for alarm in delivered if alarm["state"] == "firing"]
        arrived = [reading["received_at"] for reading in readings if reading.get("received_at")]
        times = [datetime.fromisoformat(text) for text in arrived]
        self.latency.observe(pa.array(times, pa.timestamp("us", "UTC")), run.done_us)

    def _purge(self) -> None:
        now_us = self._clock()
        if now_us - self._purged_us < _PURGE_INTERVAL_US:
            return
        old = sa.delete(NOTIFICATIONS).where(
            NOTIFICATIONS.c.state != "waiting", NOTIFICATIONS.c.next_at < now_us - KEEP_US
        )
        with self._database.begin() as connection:
            connection.execute(old)
        self._purged_us = now_us


def pause_us(attempts: int, retry_after_s: float | None) -> int:
    """How long to wait after that many failed tries; the receiver's own wish counts where it is longer.

    >>> [pause_us(attempts, None) // 1_000_000 for attempts in (1, 2, 3, 11, 12, 19)]
    [5, 10, 20, 5120, 7200, 7200]
    """
    grown = min(FIRST_PAUSE_US << min(attempts - 1, 30), LONGEST_PAUSE_US)
    return max(grown, round((retry_after_s or 0.0) * 1_000_000))


def _deliver(target: Target, run: _Run, clock: Callable[[], int]) -> None:
    try:
        delivery = target.deliver(run.notifications)
    except Exception as error:  # the run must end, or its target would never be asked again
        delivery = Delivery(0, f"delivering failed: {type(error).__name__}")
    run.done_us = clock()
    run.delivery = delivery


def _waiting() -> sa.Update:
    return sa.update(NOTIFICATIONS).where(NOTIFICATIONS.c.state == "waiting")


def _record_run(connection: sa.Connection, target: str, run: _Run, now_us: int) -> None:
    delivery = run.delivery
    assert delivery is not None  # only finished runs are recorded
    ids = [one.id for one in run.notifications]
    by_id = _waiting().where(NOTIFICATIONS.c.id == sa.bindparam("id_"))
    if delivery.delivered:
        sent = by_id.values(
            state="sent", attempts=NOTIFICATIONS.c.attempts + 1, next_at=now_us, last_error=None
        )
        connection.execute(sent, [{"id_": id_} for id_ in ids[: delivery.delivered]])
    if delivery.error is None:
        return
    failed = ids[delivery.delivered]
    if delivery.refused:
        dead = by_id.values(
            state="dead", attempts=NOTIFICATIONS.c.attempts + 1, next_at=now_us, last_error=delivery.error
        )
        connection.execute(dead, [{"id_": failed}])
        return
    attempts = connection.scalar(sa.select(NOTIFICATIONS.c.attempts).where(NOTIFICATIONS.c.id == failed)) or 0
    mine = NOTIFICATIONS.c.target == target
    connection.execute(
        _waiting()
        .where(mine)
        .values(
            attempts=NOTIFICATIONS.c.attempts + 1,
            next_at=now_us + pause_us(attempts + 1, delivery.retry_after_s),
            last_error=delivery.error,
        )
    )
    connection.execute(
        _waiting().where(mine, NOTIFICATIONS.c.attempts >= MAX_ATTEMPTS).values(state="dead", next_at=now_us)
    )

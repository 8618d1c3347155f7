"""The outbox worker: brings committed notifications to their targets, at least once and in order per target.

Every target has a worker of its own with at most one delivery under way, so that a slow or dead one delays no
other. A failed try counts for everything that waits for that target: the target is asked again with growing pauses,
and what has waited through MAX_ATTEMPTS tries, about a day, is dead. So a target that stays away holds a day of
notifications, and at most MAX_WAITING of them.

Where a target takes only so many messages, or collects them, several waiting ones go as one digest. Which ones is
written down before it is sent, so that a digest that is sent again is the same one, with the same idempotency key.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson
import pyarrow as pa
import sqlalchemy as sa
import structlog

from headwater.alarm_settings import SEVERITIES
from headwater.alerts import escalation
from headwater.alerts.targets import Delivery, Notification, Target, target_of
from headwater.alerts.times import iso
from headwater.database import NOTIFICATIONS, Database
from headwater.errors import NotFoundError
from headwater.latency import Latency
from headwater.log.base import Log
from headwater.notify_settings import NotifySettings, RateLimitSettings

MAX_ATTEMPTS: Final = 20
FIRST_PAUSE_US: Final = 5_000_000
LONGEST_PAUSE_US: Final = 7_200_000_000

#: Notifications that wait for one target; beyond, the oldest are dead. Notifications of one digest.
MAX_WAITING: Final = 100_000
MAX_DIGEST: Final = 100

#: Delivered and dead notifications stay visible for so long.
KEEP_US: Final = 7 * 86_400_000_000

_PURGE_INTERVAL_US: Final = 3_600_000_000
_ESCALATION_INTERVAL_US: Final = 250_000
_CLOSE_TIMEOUT_S: Final = 2.0

_logger = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Run:
    """A delivery under way; `delivery` is set by its thread as the last thing.

    ids:    the rows that it takes
    digest: they are sent as one message
    """

    ids: Sequence[str]
    notifications: Sequence[Notification]
    digest: bool
    thread: threading.Thread | None = None
    delivery: Delivery | None = None
    done_us: int = 0


class RateLimit:
    """At most `count` messages in any `per_us`: remembers when the last ones were sent."""

    def __init__(self, settings: RateLimitSettings) -> None:
        self._count, self._per_us = settings.count, settings.per
        self._sent: list[int] = []

    def allowed(self, now_us: int) -> int:
        """How many may be sent now."""
        self._sent = [at for at in self._sent if at > now_us - self._per_us]
        return self._count - len(self._sent)

    def take(self, count: int, now_us: int) -> None:
        self._sent += [now_us] * count


@dataclass(slots=True)
class _Worker:
    """One target and the delivery to it that is under way."""

    target: Target
    limit: RateLimit | None
    digest_us: int
    run: _Run | None = None


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
        self._workers = {
            name: _Worker(
                target_of(name, settings, log, clock),
                None if settings.rate_limit is None else RateLimit(settings.rate_limit),
                settings.digest or 0,
            )
            for name, settings in targets.items()
        }
        #: From the arrival of the reading that fired an alarm until a target has its first notification.
        self.latency = Latency()
        self._purged_us = 0
        self._escalated_us = 0
        gone = _waiting().where(NOTIFICATIONS.c.target.not_in(list(self._workers)))
        with database.begin() as connection:
            connection.execute(
                gone.values(state="dead", next_at=clock(), last_error="the target is no longer configured")
            )

    @staticmethod
    def check(targets: Mapping[str, NotifySettings]) -> None:
        """Reads every URL and template and sends nothing. raises: ConfigError"""
        for name, settings in targets.items():
            target_of(name, settings, None, lambda: 0)

    @property
    def targets(self) -> Sequence[str]:
        """Names of the targets."""
        return list(self._workers)

    def step(self) -> bool:
        """Records what has been delivered and starts what is due; never waits for a target.

        gives: True where something was recorded or started
        """
        now_us = self._clock()
        worked = self._record()
        if now_us - self._escalated_us >= _ESCALATION_INTERVAL_US or now_us < self._escalated_us:
            self._escalated_us = now_us
            while escalation.take_due(self._database, now_us):
                worked = True
        for name, worker in self._workers.items():
            if worker.run is None:
                worked |= self._start(name, worker, now_us)
        self._purge()
        return worked

    def test(self, name: str) -> dict[str, Any]:
        """Sends one message to a target now, past its outbox, and says what became of it.

        gives:  `target`, `delivered`, `error` (None where it was delivered)
        raises: NotFoundError
        """
        if name not in self._workers:
            known = ", ".join(self._workers) or "none"
            raise NotFoundError(f"testing target {name!r}: there is no [notify.{name}]; there are {known}")
        now = iso(self._clock())
        alarm = {
            "id": "test",
            "alarm": "test",
            "key": {},
            "state": "test",
            "severity": "info",
            "since": now,
            "fired_at": now,
            "resolved_at": None,
            "reading": {"detail": "this is a test of a notification target"},
            "acknowledged_at": None,
            "acknowledged_by": None,
            "assignee": None,
            "labels": {"alarm": "test", "severity": "info"},
            "dedupe_key": "test",
        }
        message = Notification(f"test-{secrets.token_hex(8)}-{name}", alarm)
        delivery = _delivered(self._workers[name].target, [message])
        return {"target": name, "delivered": delivery.error is None, "error": delivery.error}

    def status(self) -> dict[str, dict[str, int]]:
        """Notifications by target and state: `waiting`, `sent`, `dead` (those of the last days)."""
        found = {name: {"waiting": 0, "sent": 0, "dead": 0} for name in self._workers}
        count = sa.select(NOTIFICATIONS.c.target, NOTIFICATIONS.c.state, sa.func.count().label("number"))
        with self._database.read() as connection:
            for row in connection.execute(count.group_by(NOTIFICATIONS.c.target, NOTIFICATIONS.c.state)):
                found.setdefault(row.target, {"waiting": 0, "sent": 0, "dead": 0})[row.state] = row.number
        return found

    def close(self) -> None:
        """Waits shortly for deliveries under way; those that take longer are sent again at the next start."""
        for run in self.running.values():
            if run.thread is not None:
                run.thread.join(_CLOSE_TIMEOUT_S)
        self._record()

    @property
    def running(self) -> dict[str, _Run]:
        """Deliveries under way, by target."""
        return {name: worker.run for name, worker in self._workers.items() if worker.run is not None}

    def _start(self, name: str, worker: _Worker, now_us: int) -> bool:
        due = sa.select(NOTIFICATIONS).where(
            NOTIFICATIONS.c.target == name, NOTIFICATIONS.c.state == "waiting"
        )
        most = MAX_DIGEST if worker.limit is not None or worker.digest_us else worker.target.run
        with self._database.read() as connection:
            rows = connection.execute(due.order_by(NOTIFICATIONS.c.sequence).limit(most)).all()
        # The first in order decides: what came later waits behind it, also when it is not due itself.
        if not rows or rows[0].next_at > now_us:
            return False
        allowed = worker.limit.allowed(now_us) if worker.limit is not None else len(rows)
        if allowed < 1:
            return False
        if rows[0].digest is not None:  # one that was tried before
            rows = [row for row in rows if row.digest == rows[0].digest]
            run = _digest(rows[0].digest, rows)
        else:
            fresh = [row for row in rows if row.digest is None]
            if worker.digest_us and now_us < (fresh[0].created_at or 0) + worker.digest_us:
                return False
            if len(fresh) > 1 and (worker.digest_us or len(fresh) > allowed):
                run = self._new_digest(name, fresh)
            else:
                some = fresh[: worker.target.run]
                run = _Run(
                    [row.id for row in some],
                    [Notification(row.id, orjson.loads(row.body)) for row in some],
                    digest=False,
                )
        if worker.limit is not None:
            worker.limit.take(len(run.notifications), now_us)
        run.thread = threading.Thread(
            target=_deliver, args=(worker.target, run, self._clock), name=f"notify {name}", daemon=True
        )
        worker.run = run
        run.thread.start()
        return True

    def _new_digest(self, name: str, rows: Sequence[Any]) -> _Run:
        id_ = f"digest-{secrets.token_hex(12)}-{name}"
        mine = sa.update(NOTIFICATIONS).where(NOTIFICATIONS.c.id == sa.bindparam("id_"))
        with self._database.begin() as connection:
            connection.execute(mine.values(digest=id_), [{"id_": row.id} for row in rows])
        return _digest(id_, rows)

    def _record(self) -> bool:
        done = {name: run for name, run in self.running.items() if run.delivery is not None}
        if not done:
            return False
        now_us = self._clock()
        with self._database.begin() as connection:
            for name, run in done.items():
                _record_run(connection, name, run, now_us)
        for name, run in done.items():
            self._workers[name].run = None
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


def _digest(id_: str, rows: Sequence[Any]) -> _Run:
    alarms = [orjson.loads(row.body) for row in rows]
    body = {
        "id": id_,
        "alarm": "digest",
        "key": {},
        "state": "digest",
        "severity": max((alarm["severity"] for alarm in alarms), key=SEVERITIES.index),
        "since": min(alarm["since"] for alarm in alarms),
        "fired_at": None,
        "resolved_at": None,
        "reading": None,
        "acknowledged_at": None,
        "acknowledged_by": None,
        "assignee": None,
        "labels": {},
        "dedupe_key": id_,
        "count": len(alarms),
        "alarms": [alarm | {"notification": row.id} for alarm, row in zip(alarms, rows, strict=True)],
    }
    return _Run([row.id for row in rows], [Notification(id_, body)], digest=True)


def _deliver(target: Target, run: _Run, clock: Callable[[], int]) -> None:
    delivery = _delivered(target, run.notifications)
    run.done_us = clock()
    run.delivery = delivery


def _delivered(target: Target, notifications: Sequence[Notification]) -> Delivery:
    try:
        return target.deliver(notifications)
    except Exception as error:  # a run must end, or its target would never be asked again
        return Delivery(0, f"delivering failed: {type(error).__name__}")


def _waiting() -> sa.Update:
    return sa.update(NOTIFICATIONS).where(NOTIFICATIONS.c.state == "waiting")


def _record_run(connection: sa.Connection, target: str, run: _Run, now_us: int) -> None:
    delivery = run.delivery
    assert delivery is not None  # only finished runs are recorded
    delivered = len(run.ids) if run.digest and delivery.delivered else delivery.delivered
    by_id = _waiting().where(NOTIFICATIONS.c.id == sa.bindparam("id_"))
    if delivered:
        sent = by_id.values(
            state="sent", attempts=NOTIFICATIONS.c.attempts + 1, next_at=now_us, last_error=None
        )
        connection.execute(sent, [{"id_": id_} for id_ in run.ids[:delivered]])
    _bound(connection, target, now_us)
    if delivery.error is None:
        return
    failed = run.ids[delivered]
    if delivery.refused:
        dead = by_id.values(
            state="dead", attempts=NOTIFICATIONS.c.attempts + 1, next_at=now_us, last_error=delivery.error
        )
        connection.execute(dead, [{"id_": id_} for id_ in (run.ids if run.digest else [failed])])
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


def _bound(connection: sa.Connection, target: str, now_us: int) -> None:
    """Of more than MAX_WAITING that wait for a target the oldest are dead."""
    mine = sa.and_(NOTIFICATIONS.c.target == target, NOTIFICATIONS.c.state == "waiting")
    newest = sa.select(NOTIFICATIONS.c.sequence).where(mine).order_by(NOTIFICATIONS.c.sequence.desc())
    last = connection.scalar(newest.offset(MAX_WAITING).limit(1))
    if last is not None:
        full = f"more than {MAX_WAITING} wait for this target"
        connection.execute(
            _waiting()
            .where(mine, NOTIFICATIONS.c.sequence <= last)
            .values(state="dead", next_at=now_us, last_error=full)
        )

"""The end of instances whose alarm was deleted, or names other keys now: nobody would ever resolve them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
import sqlalchemy as sa

from headwater.alerts import escalation, history
from headwater.alerts.machine import Mark, State
from headwater.alerts.routing import Router
from headwater.alerts.tracker import Transition
from headwater.database import ALARM_STATES, ALARMS

#: Alarms about Headwater itself, which nobody declares, begin so.
_OWN: Final = "headwater:"


@dataclass(frozen=True, slots=True)
class _Gone:
    """What is left of an alarm: enough to tell those who were told that it is over."""

    name: str
    labels: Mapping[str, str]
    notify: Sequence[str]
    severities: Sequence[str] = ()
    incident: None = None


def resolve_gone(
    connection: sa.Connection,
    keys: Mapping[str, Sequence[str]],
    paused: Collection[str],
    now_us: int,
    router: Router,
    which: Collection[str] | None = None,
) -> None:
    """Resolves every open instance, and forgets every other memory, of alarms that are not declared, or whose key
    columns are not those of the instance.

    keys:   key columns by alarm that is judged
    paused: alarms that are declared and not judged: what they have stays
    which:  alarms that are looked at; None: all
    """
    names = _remembered(connection) if which is None else iter(which)
    gone = {alarm: _misfits(connection, alarm, keys.get(alarm)) for alarm in names}
    for alarm in [name for name, rows in gone.items() if not rows or name in paused or name.startswith(_OWN)]:
        del gone[alarm]
    for alarm, rows in gone.items():
        _resolve(connection, alarm, {row.alarm_id: row for row in rows}, now_us, router)
        mine = sa.and_(ALARM_STATES.c.alarm == alarm, ALARM_STATES.c.key == sa.bindparam("key_"))
        connection.execute(sa.delete(ALARM_STATES).where(mine), [{"key_": row.key} for row in rows])


def _remembered(connection: sa.Connection) -> Iterator[str]:
    """Names of alarms of which something is remembered, by one look at the index for each."""
    last = ""
    names = sa.select(sa.func.min(ALARM_STATES.c.alarm))
    while (name := connection.scalar(names.where(ALARM_STATES.c.alarm > last))) is not None:
        last = name
        yield name


def _misfits(connection: sa.Connection, alarm: str, key: Sequence[str] | None) -> list[Any]:
    """What is remembered of an alarm under other key columns than these; None: all of it."""
    mine = ALARM_STATES.c.alarm == alarm
    if key is not None:
        # Keys of one kind are many, and lie side by side: the first and the last tell whether there are others.
        bounds = connection.execute(
            sa.select(sa.func.min(ALARM_STATES.c.key), sa.func.max(ALARM_STATES.c.key)).where(mine)
        ).one()
        if all(text is None or _fits(text, key) for text in bounds):
            return []
    rows = connection.execute(sa.select(ALARM_STATES).where(mine).order_by(ALARM_STATES.c.key)).all()
    return [row for row in rows if key is None or not _fits(row.key, key)]


def _fits(text: str, key: Sequence[str]) -> bool:
    return sorted(orjson.loads(text)) == sorted(key)


def _resolve(
    connection: sa.Connection, alarm: str, rows: Mapping[str, Any], now_us: int, router: Router
) -> None:
    still = sa.select(ALARMS).where(ALARMS.c.alarm == alarm, ALARMS.c.resolved_at.is_(None))
    open_ = [row for row in connection.execute(still) if row.id in rows]
    if not open_:
        return
    transitions = []
    for one in open_:
        row = rows[one.id]
        shown = Mark(row.pending_since, row.partition, row.offset)
        # No row of the log has caused it, so the moment names it.
        transitions.append(Transition(row.key, State.RESOLVED, shown, now_us, 0, now_us))
    told = {target: None for one in open_ for target in orjson.loads(one.told or "[]")}
    labels = orjson.loads(open_[0].labels or "{}")
    history.save(connection, _Gone(alarm, labels, list(told)), transitions, {}, now_us, router)
    escalation.stop(connection, [one.id for one in open_])

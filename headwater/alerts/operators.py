"""What people do with an alarm: acknowledge, assign, comment, shelve. Each is kept with who and when.

None of it changes what the alarm's condition says: an acknowledged or shelved alarm goes on, and is resolved, as any.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from headwater.alerts import escalation
from headwater.alerts.labels import row_labels
from headwater.alerts.listing import shown
from headwater.alerts.muting import MAX_LENGTH_US, Mutes
from headwater.alerts.times import iso
from headwater.database import ALARM_ACTIONS, ALARM_SHELVES, ALARM_TRANSITIONS, ALARMS, Database
from headwater.errors import AlarmStateError, NotFoundError, RecordError

#: Characters of a comment and of a name; actions kept of one alarm. Ours.
MAX_TEXT: Final = 4000
MAX_NAME: Final = 128
MAX_ACTIONS: Final = 1000


class Operators:
    """The actions of operators on one database.

    Every method raises NotFoundError for an alarm that never fired, RecordError for a text that is too long or a time
    that makes no sense, and gives the alarm as it is afterwards (`detail`).
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def detail(self, id_: str, now_us: int) -> dict[str, Any]:
        """An alarm with its labels, who mutes it, and its history: every transition and action, in their order."""
        with self._database.read() as connection:
            return _detail(connection, _alarm(connection, id_), now_us)

    def acknowledge(self, id_: str, who: str, comment: str, now_us: int) -> dict[str, Any]:
        """Somebody takes care: escalation stops. raises: AlarmStateError when it is resolved"""
        with self._database.begin() as connection:
            row = _alarm(connection, id_)
            if row.resolved_at is not None:
                raise AlarmStateError(
                    f"acknowledging alarm {id_}: it is resolved since {iso(row.resolved_at)}"
                )
            if row.acknowledged_at is None:
                values = {"acknowledged_at": now_us, "acknowledged_by": who}
                connection.execute(sa.update(ALARMS).where(ALARMS.c.id == id_).values(values))
            escalation.stop(connection, [id_])
            _act(connection, row, "acknowledge", who, comment, now_us)
            return _detail(connection, _alarm(connection, id_), now_us)

    def assign(self, id_: str, who: str, to: str, now_us: int) -> dict[str, Any]:
        """to: the empty text takes the assignment back"""
        if len(to) > MAX_NAME:
            raise RecordError(f"assigning alarm {id_}: a name has at most {MAX_NAME} characters")
        with self._database.begin() as connection:
            row = _alarm(connection, id_)
            connection.execute(sa.update(ALARMS).where(ALARMS.c.id == id_).values(assignee=to or None))
            _act(connection, row, "assign", who, to, now_us)
            return _detail(connection, _alarm(connection, id_), now_us)

    def comment(self, id_: str, who: str, text: str, now_us: int) -> dict[str, Any]:
        if not text:
            raise RecordError(f"commenting on alarm {id_}: the comment is empty")
        with self._database.begin() as connection:
            row = _alarm(connection, id_)
            _act(connection, row, "comment", who, text, now_us)
            return _detail(connection, row, now_us)

    def shelve(self, id_: str, who: str, until_us: int, reason: str, now_us: int) -> dict[str, Any]:
        """This alarm of this key does not notify until then, also when it is resolved and fires again."""
        if not now_us < until_us <= now_us + MAX_LENGTH_US:
            raise RecordError(
                f"shelving alarm {id_} until {iso(until_us)}: give a time within the next 366 days"
            )
        with self._database.begin() as connection:
            row = _alarm(connection, id_)
            _unshelve(connection, row)
            values = {"alarm": row.alarm, "key": row.key, "until": until_us, "at": now_us, "who": who}
            connection.execute(sa.insert(ALARM_SHELVES), [values])
            _act(
                connection,
                row,
                "shelve",
                who,
                f"until {iso(until_us)}{': ' + reason if reason else ''}",
                now_us,
            )
            return _detail(connection, row, now_us)

    def unshelve(self, id_: str, who: str, now_us: int) -> dict[str, Any]:
        """It may notify again. raises: AlarmStateError when it is not shelved"""
        with self._database.begin() as connection:
            row = _alarm(connection, id_)
            if not _unshelve(connection, row, now_us):
                raise AlarmStateError(f"unshelving alarm {id_}: it is not shelved")
            _act(connection, row, "unshelve", who, "", now_us)
            return _detail(connection, row, now_us)


def _alarm(connection: sa.Connection, id_: str) -> Any:
    row = connection.execute(sa.select(ALARMS).where(ALARMS.c.id == id_)).first()
    if row is None:
        raise NotFoundError(f"alarm {id_!r}: no alarm of this id has fired; GET /api/v1/alarms gives ids")
    return row


def _act(connection: sa.Connection, row: Any, action: str, who: str, detail: str, now_us: int) -> None:
    if len(detail) > MAX_TEXT:
        raise RecordError(f"alarm {row.id}: {len(detail)} characters of text; at most {MAX_TEXT}")
    if not who or len(who) > MAX_NAME:
        raise RecordError(f"alarm {row.id}: say who does this, in 1 to {MAX_NAME} characters")
    done = sa.select(sa.func.count()).select_from(ALARM_ACTIONS).where(ALARM_ACTIONS.c.alarm_id == row.id)
    if (connection.scalar(done) or 0) >= MAX_ACTIONS:
        raise AlarmStateError(f"alarm {row.id}: {MAX_ACTIONS} actions are kept of it already, and no more")
    values = {"alarm_id": row.id, "at": now_us, "who": who, "action": action, "detail": detail}
    connection.execute(sa.insert(ALARM_ACTIONS), [values])


def _unshelve(connection: sa.Connection, row: Any, now_us: int = 0) -> bool:
    mine = sa.and_(ALARM_SHELVES.c.alarm == row.alarm, ALARM_SHELVES.c.key == row.key)
    until = connection.scalar(sa.select(ALARM_SHELVES.c.until).where(mine))
    connection.execute(sa.delete(ALARM_SHELVES).where(mine))
    return until is not None and until > now_us


def _detail(connection: sa.Connection, row: Any, now_us: int) -> dict[str, Any]:
    labels = row_labels(row)
    mutes = Mutes.load(connection, now_us)
    shelved = mutes.shelved_until(row.alarm, row.key)
    return {
        **shown(row),
        "labels": labels,
        "shelved_until": None if shelved is None else iso(shelved),
        "silenced_by": mutes.silenced_by(labels),
        "history": _history(connection, row.id),
    }


def _history(connection: sa.Connection, id_: str) -> list[dict[str, Any]]:
    mine = sa.select(ALARM_TRANSITIONS).where(ALARM_TRANSITIONS.c.alarm_id == id_)
    # What one row caused: pending before firing; else its own time tells the order.
    found: list[tuple[tuple[int, int, int, int], dict[str, Any]]] = []
    for row in connection.execute(mine):
        entry = {"recorded_at": iso(row.recorded_at), "state": row.state, "at": iso(row.at)}
        if row.severity is not None:
            entry["severity"] = row.severity
        found.append(((row.recorded_at, 0, row.at, _ORDER.get(row.state, 1)), entry))
    actions = sa.select(ALARM_ACTIONS).where(ALARM_ACTIONS.c.alarm_id == id_)
    for row in connection.execute(actions):
        entry = {"recorded_at": iso(row.at), "action": row.action, "who": row.who}
        if row.detail:
            entry["detail"] = row.detail
        found.append(((row.at, 1, row.id, 0), entry))
    return [entry for _, entry in sorted(found, key=lambda each: each[0])]


_ORDER: Final = {"pending": 0, "resolved": 2, "inactive": 2}

"""What keeps an alarm from notifying: a shelf for one key, or a silence for all that match. Neither changes its
state."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
import sqlalchemy as sa

from headwater.alerts.labels import Matcher, match, parsed
from headwater.alerts.times import iso
from headwater.database import ALARM_SHELVES, SILENCES, Database
from headwater.errors import NotFoundError, RecordError

#: Silences that are not over, at a time. Ours: every alarm that fires is held against each.
MAX_SILENCES: Final = 1000
#: A silence stays listed for so long after its end.
KEEP_US: Final = 90 * 86_400_000_000
#: The longest silence and shelf: a year.
MAX_LENGTH_US: Final = 366 * 86_400_000_000


@dataclass(frozen=True, slots=True)
class Silence:
    """One silence window. Times are microseconds UTC, wall clock."""

    id: str
    matchers: tuple[Matcher, ...]
    starts_us: int
    ends_us: int


class Mutes:
    """Everything that mutes at one moment."""

    def __init__(self, silences: Sequence[Silence], shelves: Mapping[tuple[str, str], int]) -> None:
        self._silences = silences
        self._shelves = shelves

    @classmethod
    def load(cls, connection: sa.Connection, now_us: int) -> Mutes:
        rows = connection.execute(
            sa.select(SILENCES).where(SILENCES.c.starts_at <= now_us, SILENCES.c.ends_at > now_us)
        )
        shelved = connection.execute(sa.select(ALARM_SHELVES).where(ALARM_SHELVES.c.until > now_us))
        return cls([_silence(row) for row in rows], {(row.alarm, row.key): row.until for row in shelved})

    def until(self, alarm: str, key: str, labels: Mapping[str, str]) -> int | None:
        """When this alarm may notify again, as things are now; None: it may.

        key: in JSON
        """
        ends = [each.ends_us for each in self._silences if match(each.matchers, labels)]
        shelved = self._shelves.get((alarm, key))
        return max(ends if shelved is None else [*ends, shelved], default=None)

    def silenced_by(self, labels: Mapping[str, str]) -> list[str]:
        """Ids of the silences that match."""
        return [each.id for each in self._silences if match(each.matchers, labels)]

    def shelved_until(self, alarm: str, key: str) -> int | None:
        return self._shelves.get((alarm, key))


def create_silence(
    database: Database,
    matchers: Sequence[str],
    starts_us: int,
    ends_us: int,
    who: str,
    comment: str,
    now_us: int,
) -> dict[str, Any]:
    """A new silence window.

    raises: RecordError for matchers or times that make no sense, or when there are MAX_SILENCES
    """
    compiled = parsed(matchers)
    if not starts_us < ends_us <= starts_us + MAX_LENGTH_US or ends_us <= now_us:
        raise RecordError(
            f"a silence from {iso(starts_us)} to {iso(ends_us)}: it must end after it starts, in the "
            f"future, and last at most 366 days"
        )
    row = {
        "id": secrets.token_hex(6),
        "matchers": orjson.dumps([str(each) for each in compiled]).decode(),
        "starts_at": starts_us,
        "ends_at": ends_us,
        "who": who,
        "comment": comment,
        "created_at": now_us,
        "ended_by": None,
    }
    with database.begin() as connection:
        open_ = sa.select(sa.func.count()).select_from(SILENCES).where(SILENCES.c.ends_at > now_us)
        if (connection.scalar(open_) or 0) >= MAX_SILENCES:
            raise RecordError(f"there are {MAX_SILENCES} silences that are not over; end one first")
        connection.execute(sa.delete(SILENCES).where(SILENCES.c.ends_at < now_us - KEEP_US))
        connection.execute(sa.insert(SILENCES), [row])
        return _shown(connection.execute(sa.select(SILENCES).where(SILENCES.c.id == row["id"])).one(), now_us)


def silences(database: Database, now_us: int, over: bool = False) -> list[dict[str, Any]]:
    """Silences that are active or to come, the next to end first; with `over` also those that were, for 90 days."""
    query = sa.select(SILENCES).order_by(SILENCES.c.ends_at, SILENCES.c.id)
    if not over:
        query = query.where(SILENCES.c.ends_at > now_us)
    with database.read() as connection:
        return [_shown(row, now_us) for row in connection.execute(query)]


def end_silence(database: Database, id_: str, who: str, now_us: int) -> dict[str, Any]:
    """Ends a silence now; one that is over stays as it is. raises: NotFoundError"""
    mine = SILENCES.c.id == id_
    with database.begin() as connection:
        connection.execute(
            sa.update(SILENCES)
            .where(mine, SILENCES.c.ends_at > now_us)
            .values(
                ends_at=now_us,
                starts_at=sa.case((SILENCES.c.starts_at > now_us, now_us), else_=SILENCES.c.starts_at),
                ended_by=who,
            )
        )
        row = connection.execute(sa.select(SILENCES).where(mine)).first()
        if row is None:
            raise NotFoundError(f"ending silence {id_!r}: there is none; see GET /api/v1/silences")
        return _shown(row, now_us)


def _silence(row: Any) -> Silence:
    return Silence(row.id, parsed(orjson.loads(row.matchers)), row.starts_at, row.ends_at)


def _shown(row: Any, now_us: int) -> dict[str, Any]:
    state = "over" if row.ends_at <= now_us else "active" if row.starts_at <= now_us else "to come"
    return {
        "id": row.id,
        "state": state,
        "matchers": orjson.loads(row.matchers),
        "starts_at": iso(row.starts_at),
        "ends_at": iso(row.ends_at),
        "who": row.who,
        "comment": row.comment,
        "created_at": iso(row.created_at),
        "ended_by": row.ended_by,
    }

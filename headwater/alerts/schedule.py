"""The hours in which an alarm can be raised: days of the week and local times, in a time zone of the IANA database.

Every instant is judged by its own local time, so on the two odd days of the year an hour that does not exist has no
active minute and one that comes twice is active twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from headwater.alarm_settings import DAYS, ScheduleSettings

_MINUTE_US: Final = 60_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: What `datetime` can hold, in minutes since the epoch, with a margin for any zone.
_FIRST, _LAST = -62_135_500_000 // 60, 253_402_200_000 // 60
#: Offsets are remembered for so many minutes.
_MAX_MINUTES: Final = 10_000


class Schedule:
    """Active hours; without settings every instant is active."""

    def __init__(self, settings: Sequence[ScheduleSettings]) -> None:
        self._hours = []
        for each in settings:
            days = frozenset(DAYS.index(day) for day in each.days)
            self._hours.append((ZoneInfo(each.zone), days, *each.minutes))
        self._known: dict[int, bool] = {}

    def __bool__(self) -> bool:
        return bool(self._hours)

    def active(self, at_us: int) -> bool:
        """Whether this instant, microseconds since the epoch UTC, lies within the hours.

        >>> office = Schedule([ScheduleSettings(**{"days": ["thu"], "from": "08:00", "to": "17:00"})])
        >>> [office.active(hour * 3_600_000_000) for hour in (7, 8, 16, 17, 32)]  # 1 January 1970 was a Thursday
        [False, True, True, False, False]
        """
        return not self._hours or self._minute(at_us // _MINUTE_US)

    def mask(self, at_us: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """`active` of many instants; Python runs once per distinct minute."""
        if not self._hours:
            return np.ones(len(at_us), np.bool_)
        minutes, inverse = np.unique(at_us // _MINUTE_US, return_inverse=True)
        return np.array([self._minute(minute) for minute in minutes.tolist()], np.bool_)[inverse]

    def next_active(self, at_us: int) -> int:
        """The first active instant from `at_us` on; `at_us` itself where none comes within nine days."""
        if self.active(at_us):
            return at_us
        minute = at_us // _MINUTE_US
        for later in range(minute + 1, minute + 9 * 1440):
            if self._minute(later):
                return later * _MINUTE_US
        return at_us

    def _minute(self, minute: int) -> bool:
        found = self._known.get(minute)
        if found is None:
            if len(self._known) >= _MAX_MINUTES:
                self._known.clear()
            found = self._known[minute] = self._judge(min(max(minute, _FIRST), _LAST))
        return found

    def _judge(self, minute: int) -> bool:
        utc = _EPOCH + timedelta(minutes=minute)
        for zone, days, begin, end in self._hours:
            local = utc.astimezone(zone)
            now, day = local.hour * 60 + local.minute, local.weekday()
            if day in days and begin <= now < end:
                return True
            # Hours that began yesterday and go on beyond midnight.
            if (day - 1) % 7 in days and now + 1440 < end:
                return True
        return False

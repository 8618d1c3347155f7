"""Times as the API writes them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def iso(at_us: int) -> str:
    """Microseconds since the epoch as ISO 8601, UTC.

    >>> iso(1_500_000)
    '1970-01-01T00:00:01.500000Z'
    """
    return (_EPOCH + timedelta(microseconds=at_us)).isoformat().replace("+00:00", "Z")

"""Labels of an alarm and what matches them: the one way in which silences and routes name alarms."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

import orjson

from headwater.errors import RecordError

_MATCHER: Final = re.compile(r"\s*([a-z][a-z0-9_]{0,62})\s*(!?=)\s*(.*?)\s*", re.S)

#: Matchers of one silence or route, and characters of one value. Ours.
MAX_MATCHERS: Final = 16
MAX_VALUE: Final = 256


def labels_of(
    alarm: str, severity: str, key: Mapping[str, Any], declared: Mapping[str, str]
) -> dict[str, str]:
    """All labels: `alarm`, `severity`, the key columns as text, and those declared.

    >>> labels_of("hot", "major", {"device": "d1", "zone": 2, "on": True}, {"team": "a"})
    {'device': 'd1', 'zone': '2', 'on': 'true', 'team': 'a', 'alarm': 'hot', 'severity': 'major'}
    """
    found = {name: _text(value) for name, value in key.items()}
    return {**found, **declared, "alarm": alarm, "severity": severity}


@dataclass(frozen=True, slots=True)
class Matcher:
    """One condition on a label: `device=pump-*`, `severity!=critical`. `*` stands for any text, `?` for one character;
    a label that is not there is the empty text."""

    label: str
    equal: bool
    pattern: str

    @classmethod
    def parse(cls, text: str) -> Matcher:
        """raises: RecordError"""
        found = _MATCHER.fullmatch(text)
        if found is None or len(found[3]) > MAX_VALUE:
            raise RecordError(
                f"matcher {text[:80]!r}: write LABEL=VALUE or LABEL!=VALUE, such as device=pump-* (* is any text, "
                f"at most {MAX_VALUE} characters)"
            )
        return cls(found[1], found[2] == "=", found[3])

    def __str__(self) -> str:
        return f"{self.label}{'=' if self.equal else '!='}{self.pattern}"

    def matches(self, labels: Mapping[str, str]) -> bool:
        # fnmatch also knows [sets]; here they are plain text.
        pattern = self.pattern.replace("[", "[[]")
        return fnmatchcase(labels.get(self.label, ""), pattern) is self.equal


def parsed(texts: Sequence[str]) -> tuple[Matcher, ...]:
    """Matchers of which all must match. raises: RecordError"""
    if not 1 <= len(texts) <= MAX_MATCHERS:
        raise RecordError(f"found {len(texts)} matchers; give 1 to {MAX_MATCHERS}, such as alarm=overheat")
    return tuple(Matcher.parse(text) for text in texts)


def match(matchers: Iterable[Matcher], labels: Mapping[str, str]) -> bool:
    return all(each.matches(labels) for each in matchers)


def row_labels(row: Any) -> dict[str, str]:
    """Labels of a row of `alarms`."""
    declared = orjson.loads(row.labels) if row.labels else {}
    return labels_of(row.alarm, row.severity, orjson.loads(row.key), declared)


def _text(value: object) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)

"""Texts of notifications: `${alarm}`, `${key.device}`, `${reading.temperature}`. Names alone: no code runs.

A name that is not known is refused when the configuration is read; a value that is missing in one alarm is the
empty text.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from headwater.errors import ConfigError

_PLACEHOLDER: Final = re.compile(r"\$(?:\$|\{([^{}]*)\})?")
_PATH: Final = re.compile(r"[a-z][a-z0-9_]*(\.[A-Za-z0-9_]+)?")

#: What a name may begin with; those of _INNER are objects, and a name of theirs follows a point.
_NAMES: Final = (
    "id", "alarm", "state", "severity", "since", "fired_at", "resolved_at", "acknowledged_by", "assignee", "count",
    "notification", "dedupe_key", "title", "key", "reading", "labels",
)  # fmt: skip
_INNER: Final = ("key", "reading", "labels")

MAX_LENGTH: Final = 10_000
#: Characters of one value, and of the whole.
_MAX_VALUE: Final = 1000
_MAX_RENDERED: Final = 100_000


class Template:
    """One text with placeholders; `$$` is a dollar sign.

    setting: its name, for errors
    raises:  ConfigError with the place of what is wrong

    >>> Template("notify.ops.text", "${severity}: ${alarm} of ${key.device}").render(
    ...     {"severity": "major", "alarm": "hot", "key": {"device": "d1"}})
    'major: hot of d1'
    """

    def __init__(self, setting: str, text: str) -> None:
        if len(text) > MAX_LENGTH:
            raise ConfigError(f"{setting}: {len(text)} characters; at most {MAX_LENGTH}")
        self._text = text
        for found in _PLACEHOLDER.finditer(text):
            if found[0] == "$":
                raise ConfigError(
                    f"{setting}: at character {found.start()}: write ${{name}}, or $$ for a dollar sign"
                )
            if found[1] is not None:
                _check(f"{setting}: at character {found.start()}", found[1])

    def render(self, values: Mapping[str, Any], escape: Callable[[str], str] = str) -> str:
        """The text with these values; each goes through `escape`."""

        def put(found: re.Match[str]) -> str:
            return "$" if found[1] is None else escape(_value(values, found[1]))

        return _PLACEHOLDER.sub(put, self._text)[:_MAX_RENDERED]


def json_escape(text: str) -> str:
    """A text as the inside of a JSON string.

    >>> json_escape('a "b"')
    'a \\\\"b\\\\"'
    """
    return orjson.dumps(text.encode("utf-8", "replace").decode()).decode()[1:-1]


def _check(where: str, path: str) -> None:
    name, _, inner = path.partition(".")
    if not _PATH.fullmatch(path) or name not in _NAMES:
        close = difflib.get_close_matches(name, _NAMES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(_NAMES)}"
        raise ConfigError(f"{where}: no value {path!r}; {hint}")
    if (name in _INNER) != bool(inner):
        raise ConfigError(
            f"{where}: {path!r}: write {name}.NAME" if name in _INNER else f"{where}: {name!r} has no parts"
        )


def _value(values: Mapping[str, Any], path: str) -> str:
    name, _, inner = path.partition(".")
    value = values.get(name)
    if inner:
        value = value.get(inner) if isinstance(value, Mapping) else None
    if value is None:
        return ""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text[:_MAX_VALUE]

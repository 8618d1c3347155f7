"""Policy documents, those in files read again when they change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import structlog

from headwater.security import PolicySettings

logger = structlog.get_logger(__name__)

#: Inode, time of change and size of each file; None: it cannot be looked at.
_Stamps = dict[Path, tuple[int, int, int] | None]


class PolicyFiles:
    """The documents of `[policies.*]`; their settings have read the files once."""

    def __init__(self, policies: Mapping[str, PolicySettings]) -> None:
        self._policies = policies
        self._stamps = self._look()

    def documents(self) -> list[tuple[str, str]]:
        """Name and JSON of each, not checked, as the settings have them."""
        return [(name, policy.text) for name, policy in self._policies.items()]

    def changed(self) -> list[tuple[str, str]] | None:
        """All documents anew where a file has changed since the last look and can be read; else None."""
        stamps = self._look()
        if stamps == self._stamps:
            return None
        self._stamps = stamps
        try:
            return [
                (name, policy.text if policy.file is None else policy.file.read_text(encoding="utf-8"))
                for name, policy in self._policies.items()
            ]
        except (OSError, UnicodeDecodeError) as error:
            logger.warning("policies not read again, the former ones hold", detail=str(error))
            return None

    def _look(self) -> _Stamps:
        return {policy.file: _stamp(policy.file) for policy in self._policies.values() if policy.file}


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size)

"""Fixtures that several test files use, and which tests a plain run leaves out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from headwater.config import LogSettings
from headwater.records import OWN_SCHEMAS
from tests.integration.server import TELEMETRY, Server

if TYPE_CHECKING:
    from headwater.log.embedded import EmbeddedLog


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The full counts of kills and cuts run only when asked for: `pytest -m chaos`, `make chaos`."""
    if config.getoption("-m"):
        return
    left_out = [item for item in items if item.get_closest_marker("chaos")]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers, `server(config, environment=...)`, not yet started; ends those that a test leaves running."""
    made: list[Server] = []

    def make(config: str = TELEMETRY, **options: dict[str, str]) -> Server:
        made.append(Server(tmp_path / f"data{len(made)}", config, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EmbeddedLog]:
    """An embedded log in an empty directory, with the product's own streams."""
    from headwater.log.embedded import EmbeddedLog  # the native module, which tests of pure parts do not need

    opened = EmbeddedLog(tmp_path / "log", LogSettings(segment_bytes=1 << 20), OWN_SCHEMAS)
    yield opened
    opened.close()


class Clock:
    """Microseconds UTC that a test moves by hand."""

    def __init__(self, now_us: int = 1_790_000_000_000_000) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us

    def advance(self, us: int) -> None:
        self.now_us += us


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still until it is advanced."""
    return Clock()


@pytest.fixture
def ids() -> Callable[[], str]:
    """Ids in a fixed order: id-1, id-2, ..."""
    numbers = itertools.count(1)
    return lambda: f"id-{next(numbers)}"

"""A real log and database for every test that asks for a plant."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from plant import Plant


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    plant = Plant(tmp_path)
    yield plant
    plant.close()

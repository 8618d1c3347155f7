"""Starts processes later than now: their wall clock is ahead (ahead.c)."""

from __future__ import annotations

from pathlib import Path

from tests.preload import library

SOURCE = Path(__file__).with_name("ahead.c")


def ahead(seconds: int) -> dict[str, str]:
    """Environment variables of a process whose wall clock is so many seconds ahead."""
    return {"LD_PRELOAD": str(library(SOURCE)), "AHEAD_S": str(seconds)}

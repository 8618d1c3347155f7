"""`kill -9` in the middle of live changes under load: windows and alarms are those of an undisturbed run.

As test_kill.py, with everything declared by the API, and somebody who changes it all the time: alarms beside those
that are checked, so that these are taken up again each time; the checked query paused and resumed; the stream's
binding; other streams and queries that come and go.
"""

from __future__ import annotations

import contextlib
import threading
import tomllib
from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from tests.integration.server import Server
from tests.integration.test_kill import CONFIG, run

#: The file has what is set at a start, the API all else.
_BEFORE, _, _OBJECTS = CONFIG.partition("[streams.telemetry]")
OBJECTS = tomllib.loads(f"[streams.telemetry]{_OBJECTS}")
#: Readings a second: what is checked is computed again, in plain Python.
RATE = 2000
BESIDE = """SELECT device, window_start, window_end, COUNT(*) AS n
            FROM TABLE(TUMBLE(TABLE beside, DESCRIPTOR(ts), INTERVAL '1' MINUTES))
            GROUP BY device, window_start, window_end"""


class Changer(threading.Thread):
    """Changes one thing after the other, as often as the server answers."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._enough = threading.Event()
        self.made = 0
        self.refused: list[str] = []

    def run(self) -> None:
        with httpx.Client(timeout=60) as http:
            for turn in count():
                self._enough.wait(0.02)
                # Killed: what was asked for is done or not done, and another round begins.
                with contextlib.suppress(httpx.TransportError):
                    for method, path, body in steps(turn):
                        if self._enough.is_set():
                            return
                        url = f"http://{self._server.running['http']}/api/v1/objects/{path}"
                        answer = http.request(method, url, json=body)
                        self.made += answer.status_code == 200
                        if answer.status_code not in (200, 404):
                            self.refused.append(f"{method} {path}: {answer.text}")

    def end(self) -> None:
        self._enough.set()
        self.join(60)


def steps(turn: int) -> list[tuple[str, str, dict[str, Any]]]:
    """One round; good however far the one before has come."""
    beside = {"topic": "dt/{site}/{device}/telemetry", "time": "ts", "fields": {"temperature": "double"}}
    telemetry = dict(OBJECTS["streams"]["telemetry"])
    if turn % 2:
        telemetry["books"] = ["device"]
    alarm = {"on": "telemetry", "where": f"temperature > {60 + turn % 40}"}
    return [
        ("PUT", "alarms/beside", alarm),
        ("POST", "queries/minutes/pause", {}),
        ("PUT", "streams/beside", beside),
        ("PUT", "queries/beside_minutes", {"sql": BESIDE}),
        ("POST", "queries/minutes/resume", {}),
        ("PUT", "streams/telemetry", telemetry),
        ("DELETE", "alarms/beside", {}),
        ("DELETE", "queries/beside_minutes", {}),
        ("DELETE", "streams/beside", {}),
    ]


def changes_and_kills(up: Server, acks: Path, kills: int, seed: int) -> None:
    up.start()
    applied = up.http.post("/api/v1/apply", json=OBJECTS)
    assert applied.status_code == 200, applied.text
    up.stop()
    changer, random = Changer(up), Random(seed)
    goal = 1

    def moment() -> bool:
        """Some changes after the last kill; then within another one, since they are made one after the other."""
        if not changer.is_alive():
            changer.start()
        return changer.made >= goal

    def between(kill: int) -> None:
        nonlocal goal
        goal = changer.made + random.randint(1, 8)
        if kill == kills - 1:
            changer.end()

    def finish() -> None:
        # However far the last round came: what is checked runs.
        restored = up.http.post("/api/v1/apply", json=OBJECTS)
        assert restored.status_code == 200, restored.text

    run(up, acks, kills, seed, between, finish, moment, RATE)
    assert changer.refused == []
    assert changer.made > kills, "too few changes were made to show anything"


@pytest.mark.parametrize("seed", [31])
def test_four_kills_while_everything_changes(
    server: Callable[..., Server], tmp_path: Path, seed: int
) -> None:
    changes_and_kills(server(_BEFORE), tmp_path / "acks", 4, seed)


@pytest.mark.chaos
def test_thirty_kills_while_everything_changes(server: Callable[..., Server], tmp_path: Path) -> None:
    changes_and_kills(server(_BEFORE), tmp_path / "acks", 30, 32)

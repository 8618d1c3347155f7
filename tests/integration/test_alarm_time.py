"""Alarms that time alone raises and resolves, in a running Headwater and over kills."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.integration.server import TELEMETRY, Server

CONFIG = (
    TELEMETRY
    + """
[alarms.quiet]
on     = "telemetry"
silent = "3s"
[alarms.hot]
on          = "telemetry"
where       = "temperature > 80"
clear_after = "3s"
"""
)


def ingest(server: Server, device: str, temperature: float, ts: float) -> None:
    body = {"site": "a", "device": device, "ts": 1_790_000_000 + ts, "temperature": temperature}
    assert server.http.post("/api/v1/ingest/telemetry", json=body).status_code == 200


def states(found: list[dict[str, Any]], alarm: str) -> list[str]:
    return sorted(each["state"] for each in found if each["alarm"] == alarm)


def test_silence_and_quiet_come_by_the_wall_clock_and_once_over_kills(server: Callable[..., Server]) -> None:
    up = server(CONFIG).start()
    for device in ("d1", "d2"):
        ingest(up, device, 90.0, 0)
    up.await_alarms(lambda found: states(found, "hot") == ["firing", "firing"])
    up.kill()
    up.start()
    found = up.await_alarms(lambda found: states(found, "quiet") == ["firing", "firing"])
    # At its own time, or later by what a restart took that counts as a standstill.
    assert all(each["fired_at"] >= "2026-09-21T14:13:23Z" for each in found if each["alarm"] == "quiet")
    found = up.await_alarms(lambda found: states(found, "hot") == ["resolved", "resolved"])
    assert all(each["resolved_at"] >= "2026-09-21T14:13:23Z" for each in found if each["alarm"] == "hot")
    ids = {each["id"] for each in found}
    up.kill()
    up.start()
    ingest(up, "d1", 20.0, 1)
    found = up.await_alarms(lambda found: states(found, "quiet") == ["firing", "resolved"])
    assert {each["id"] for each in found} == ids
    [back] = [each for each in found if each["state"] == "resolved" and each["alarm"] == "quiet"]
    assert back["key"] == {"device": "d1"}
    assert back["reading"]["last_seen"] >= "2026-09-21T14:13:20Z"
    up.stop()

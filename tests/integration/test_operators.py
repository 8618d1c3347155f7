"""Operators by HTTP and by the command line, against a running Headwater."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from tests.integration.server import TELEMETRY, Server, await_that

CONFIG = (
    TELEMETRY
    + """
[alarms.hot]
on     = "telemetry"
where  = "temperature > 80"
notify = ["bus"]
labels = { team = "pumps" }
[notify.bus]
url = "mqtt:alarms/{device}"
"""
)


def cli(server: Server, *words: str) -> list[dict[str, Any]]:
    """One object per line of `headwater ... --json`."""
    command = [sys.executable, "-m", "headwater", *words, "--data-dir", str(server.directory), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def ingest(server: Server, device: str, temperature: float, ts: int) -> None:
    body = {"site": "a", "device": device, "ts": ts, "temperature": temperature}
    answer = server.http.post("/api/v1/ingest/telemetry", json=body)
    assert answer.status_code == 200, answer.text


def state_of(server: Server, device: str) -> str | None:
    found = [each for each in server.get("/api/v1/alarms") if each["key"] == {"device": device}]
    return found[0]["state"] if found else None


def sent(server: Server) -> int:
    text = server.http.get("/metrics").text
    return sum(
        "alarm_latency_seconds_count" in line and int(float(line.split()[-1])) for line in text.splitlines()
    )


def test_an_alarm_is_acknowledged_assigned_shelved_and_keeps_its_history(
    server: Callable[..., Server],
) -> None:
    up = server(CONFIG).start()
    ingest(up, "d1", 85.0, 1_790_000_000)
    [alarm] = up.await_alarms(lambda found: [each["state"] for each in found] == ["firing"])
    id_ = alarm["id"]

    [shown] = cli(up, "alarms", "ack", id_[:8], "--who", "ann", "--comment", "on my way")
    assert (shown["state"], shown["acknowledged_by"]) == ("acknowledged", "ann")
    cli(up, "alarms", "assign", id_[:8], "bob", "--who", "ann")
    cli(up, "alarms", "comment", id_[:8], "a filter", "--who", "bob")
    [listed] = cli(up, "alarms", "list", "--state", "acknowledged")
    assert (listed["id"], listed["assignee"]) == (id_, "bob")
    cli(up, "alarms", "shelve", id_, "--until", "2h", "--who", "bob")
    [shown] = cli(up, "alarms", "show", id_)
    assert shown["labels"]["team"] == "pumps"
    assert shown["shelved_until"] is not None
    up.kill()
    up.start()
    [shown] = cli(up, "alarms", "unshelve", id_, "--who", "ann")
    assert [each.get("state") or each["action"] for each in shown["history"]] == [
        "pending", "firing", "acknowledge", "assign", "comment", "shelve", "unshelve",
    ]  # fmt: skip
    assert {each["who"] for each in shown["history"] if "who" in each} == {"ann", "bob"}

    refused = up.http.post(f"/api/v1/alarms/{id_}/unshelve", json={"who": "ann"})
    assert (refused.status_code, refused.json()["title"]) == (409, "AlarmStateError")
    assert up.http.post("/api/v1/alarms/nothing/comment", json={"text": "x"}).status_code == 404
    assert up.http.post(f"/api/v1/alarms/{id_}/comment", json={"text": ""}).status_code == 400
    assert up.http.post(f"/api/v1/alarms/{id_}/comment", json={"txt": "x"}).status_code == 422
    up.stop()


def test_a_silence_mutes_what_matches_until_it_ends(server: Callable[..., Server]) -> None:
    up = server(CONFIG).start()
    [made] = cli(up, "silences", "add", "device=d-*", "--until", "1h", "--who", "ann", "--comment", "work")
    [listed] = cli(up, "silences", "list")
    assert (listed["id"], listed["state"], listed["matchers"]) == (made["id"], "active", ["device=d-*"])
    ingest(up, "d-1", 85.0, 1_790_000_000)
    await_that("the silenced alarm fires", lambda: state_of(up, "d-1") == "firing")
    ingest(up, "e", 85.0, 1_790_000_000)
    await_that("the other one is told", lambda: sent(up) == 1)
    [ended] = cli(up, "silences", "end", made["id"], "--who", "bob")
    assert (ended["state"], ended["ended_by"]) == ("over", "bob")
    assert cli(up, "silences", "list") == []
    ingest(up, "d-2", 85.0, 1_790_000_000)
    await_that("the next one is told", lambda: sent(up) == 2)
    assert (
        up.http.post(
            "/api/v1/silences", json={"matchers": ["x"], "ends_at": "2090-01-01T00:00:00Z"}
        ).status_code
        == 400
    )
    assert up.http.delete("/api/v1/silences/nothing").status_code == 404
    up.stop()

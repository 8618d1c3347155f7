"""Changes of a running Headwater: in effect with the answer, without a restart, and state that fits is kept."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.integration.client import MqttClient
from tests.integration.server import Server, await_that

FILE = """
[engine]
idle_timeout = "200ms"
[notify.bus]
url = "mqtt:alarms/{alarm}/{device}"

[streams.telemetry]
topic    = "dt/{site}/{device}/telemetry"
time     = "ts"
lateness = "0s"
fields   = { temperature = "double" }
"""
#: Event time of second 0, a whole minute.
T0 = 1_790_000_040

SQL = """SELECT device, window_start, window_end, COUNT(*) AS n, MAX(temperature) AS high
         FROM TABLE(TUMBLE(TABLE telemetry, DESCRIPTOR(ts), INTERVAL '1' MINUTES))
         GROUP BY device, window_start, window_end"""


def ask(up: Server, method: str, path: str, body: Any = None, status: int = 200, **headers: str) -> Any:
    """The answer's JSON."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = up.http.request(method, f"/api/v1/{path}", json={} if body is None else body, headers=names)
    assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
    return answer.json()


def ingest(up: Server, temperature: float, second: int, device: str = "d1") -> None:
    reading = {"site": "a", "device": device, "ts": T0 + second, "temperature": temperature}
    assert up.http.post("/api/v1/ingest/telemetry", json=reading).status_code == 200


def states(up: Server, alarm: str) -> list[tuple[str, str]]:
    return [(each["id"], each["state"]) for each in up.get("/api/v1/alarms", alarm=alarm)]


def test_an_alarm_keeps_its_open_instances_when_its_threshold_changes(server: Callable[..., Server]) -> None:
    up = server(FILE).start()
    hot = {"on": "telemetry", "where": "temperature > 80", "notify": ["bus"], "labels": {"team": "a"}}
    ask(up, "PUT", "objects/alarms/hot", hot, if_none_match="*")
    ingest(up, 85, 1)
    [alarm] = up.await_alarms(lambda found: [each["state"] for each in found] == ["firing"], alarm="hot")
    changed = ask(up, "PUT", "objects/alarms/hot", {**hot, "where": "temperature > 70"}, if_match='"1"')
    [change] = changed["changes"]
    assert (change["action"], change["from_version"], change["to_version"]) == ("change", 1, 2)
    assert change["effect"].startswith("1 open instance kept")
    assert changed["in_effect"]
    ask(up, "PUT", "objects/alarms/hot", hot, if_match='"1"', status=412)
    ingest(up, 75, 2)  # still hot by the new threshold
    ingest(up, 85, 3, "d2")
    up.await_alarms(lambda found: len(found) == 2, alarm="hot")
    assert (alarm["id"], "firing") in states(up, "hot")
    ingest(up, 65, 4)
    await_that("it is resolved", lambda: (alarm["id"], "resolved") in states(up, "hot"))
    # Over a restart as well.
    up.kill()
    up.start()
    assert ask(up, "GET", "objects/alarms/hot")["version"] == 2
    assert ask(up, "POST", "objects/alarms/hot/pause")["changes"][0]["effect"].startswith(
        "1 open instance kept"
    )
    ingest(up, 20, 5, "d2")
    ask(up, "POST", "objects/alarms/hot/resume")
    assert sorted(state for _, state in states(up, "hot")) == ["firing", "resolved"]
    # Another key names other instances; and deleting resolves what is left.
    replaced = ask(up, "PUT", "objects/alarms/hot", {**hot, "key": ["site"]})
    assert replaced["changes"][0]["action"] == "replace"
    await_that(
        "its instance of the old key is resolved", lambda: {"resolved"} == {s for _, s in states(up, "hot")}
    )
    ingest(up, 90, 6)
    await_that("it fires by site", lambda: "firing" in {state for _, state in states(up, "hot")})
    assert ask(up, "DELETE", "objects/alarms/hot")["changes"][0]["effect"] == "1 open instance resolved"
    assert {state for _, state in states(up, "hot")} == {"resolved"}
    history = ask(up, "GET", "objects/changes?kind=alarms&name=hot")
    assert [each["action"] for each in history] == [
        "delete",
        "replace",
        "resume",
        "pause",
        "change",
        "create",
    ]
    sent = up.get("/api/v1/notifications", target="bus")
    assert len([each for each in sent if each["notification"].split("-")[1] == "resolved"]) == 3


def test_a_route_tells_of_alarms_from_now_on(server: Callable[..., Server]) -> None:
    up = server(FILE).start()
    ask(up, "PUT", "objects/alarms/hot", {"on": "telemetry", "where": "temperature > 80"})
    with MqttClient(up.mqtt, "operator") as operator:
        operator.subscribe("alarms/#")
        ingest(up, 85, 1, "d1")
        up.await_alarms(lambda found: len(found) == 1)
        ask(up, "PUT", "objects/routes/all", {"steps": [{"to": ["bus"]}]})
        ingest(up, 85, 2, "d2")
        [(topic, _)] = operator.received_until("alarms/hot/d2")
        assert topic == "alarms/hot/d2"
        # One that is asked before it, and ends the search.
        night = {"order": 1, "match": {"device": "d3"}, "steps": [{"after": "1h", "to": ["bus"]}]}
        ask(up, "PUT", "objects/routes/night", night)
        ingest(up, 85, 3, "d3")
        up.await_alarms(lambda found: len(found) == 3)
        ask(up, "DELETE", "objects/routes/night")
        ingest(up, 85, 4, "d4")
        assert [topic for topic, _ in operator.received_until("alarms/hot/d4")] == ["alarms/hot/d4"]


def test_a_stream_takes_messages_of_connected_devices_at_once(server: Callable[..., Server]) -> None:
    up = server(FILE).start()
    pumps = {"topic": "pumps/{device}", "fields": {"flow": "double"}}
    with MqttClient(up.mqtt, "pump") as device:

        def publish(**reading: Any) -> None:
            assert device.publish("pumps/p1", json.dumps(reading).encode()) in (0, 16)

        publish(flow=1)
        ask(up, "PUT", "objects/streams/pumps", pumps)
        publish(flow=2)
        assert up.rows("SELECT device, flow FROM pumps") == [["p1", 2.0]]
        # Further fields, from the next message on.
        ask(up, "PUT", "objects/streams/pumps", {**pumps, "fields": {"flow": "double", "rpm": "bigint"}})
        publish(flow=3, rpm=900)
        assert up.rows("SELECT flow, rpm FROM pumps ORDER BY flow") == [[2.0, None], [3.0, 900]]
        ask(up, "POST", "objects/streams/pumps/pause")
        publish(flow=4)
        assert up.http.post("/api/v1/ingest/pumps", json={"device": "p1", "flow": 4}).status_code == 409
        ask(up, "POST", "objects/streams/pumps/resume")
        publish(flow=5, rpm=None)
        flows = "SELECT flow FROM pumps ORDER BY flow"
        assert up.rows(flows) == [[2.0], [3.0], [5.0]]
        # Deleted, its rows stay, over restarts; also those that were in no file yet.
        [deleted] = ask(up, "DELETE", "objects/streams/pumps")["changes"]
        assert "until it is purged" in deleted["effect"]
        publish(flow=6)
        assert up.rows(flows) == [[2.0], [3.0], [5.0]]
    up.kill()
    up.start()
    assert up.rows(flows) == [[2.0], [3.0], [5.0]]
    assert ask(up, "GET", "objects/streams/pumps")["state"] == "deleted"
    back = ask(up, "PUT", "objects/streams/pumps", pumps)
    assert back["changes"][0]["effect"] == "its table goes on with the rows it has"
    ask(up, "DELETE", "objects/streams/pumps")
    ask(up, "POST", "objects/streams/pumps/purge")
    assert up.http.post("/api/v1/query", json={"sql": flows, "params": []}).status_code == 400
    ask(up, "GET", "objects/streams/pumps", status=404)
    # Its name is free for columns of other types, and nothing of the old rows comes back.
    with MqttClient(up.mqtt, "pump") as device:
        ask(up, "PUT", "objects/streams/pumps", {**pumps, "fields": {"flow": "string"}})
        assert device.publish("pumps/p2", b'{"flow": "much"}') in (0, 16)
    assert up.rows("SELECT device, flow FROM pumps") == [["p2", "much"]]
    up.stop()
    up.start()
    assert up.rows("SELECT device, flow FROM pumps") == [["p2", "much"]]
    assert up.get("/api/v1/books")["balanced"]


def windows(up: Server, name: str) -> list[list[Any]]:
    return up.rows(f"SELECT device, n, high FROM {name} ORDER BY window_start")


def test_a_query_keeps_its_windows_where_they_fit_and_begins_anew_where_not(
    server: Callable[..., Server],
) -> None:
    up = server(FILE).start()
    made = ask(up, "PUT", "objects/queries/minutes", {"sql": SQL})
    assert made["changes"][0]["effect"] == "begins with the oldest row of the log"
    ingest(up, 10, 1)
    ingest(up, 30, 2)
    # Written differently, and read while it was paused: the window that is open goes on.
    same = ask(up, "PUT", "objects/queries/minutes", {"sql": " ".join(SQL.split())})
    assert (same["changes"][0]["action"], same["changes"][0]["effect"]) == ("change", "windows are kept")
    ask(up, "POST", "objects/queries/minutes/pause")
    ingest(up, 20, 3)
    ask(up, "POST", "objects/queries/minutes/resume")
    ingest(up, 15, 61)
    await_that("the first window is closed", lambda: windows(up, "minutes"))
    assert windows(up, "minutes") == [["d1", 3, 30.0]]
    # Another condition: the open window (second 61) is not finished, and nothing is read twice.
    warm = SQL.replace("GROUP BY", "WHERE temperature > 15 GROUP BY")
    assert warm != SQL
    changed = ask(up, "PUT", "objects/queries/minutes", {"sql": warm})
    assert (changed["changes"][0]["action"], changed["changes"][0]["effect"].split(":")[0]) == (
        "replace",
        "windows do not fit",
    )
    ingest(up, 40, 62)
    ingest(up, 10, 63)
    ingest(up, 50, 121)
    await_that("the second window is closed", lambda: len(windows(up, "minutes")) == 2)
    assert windows(up, "minutes") == [["d1", 3, 30.0], ["d1", 1, 40.0]]
    # An alarm over the query; the query cannot go before it.
    ask(up, "PUT", "objects/alarms/high", {"on": "minutes", "where": "high > 45"})
    ask(up, "DELETE", "objects/queries/minutes", status=400)
    ingest(up, 60, 181)
    up.await_alarms(lambda found: [each["state"] for each in found] == ["firing"], alarm="high")
    up.kill()
    up.start()
    ingest(up, 20, 241)
    up.await_alarms(lambda found: len(found) == 1 and found[0]["state"] == "firing", alarm="high")
    await_that("the fourth window is closed", lambda: len(windows(up, "minutes")) == 4)
    ask(up, "DELETE", "objects/alarms/high")
    ask(up, "DELETE", "objects/queries/minutes")
    assert len(windows(up, "minutes")) == 4
    assert up.get("/api/v1/books")["balanced"]


def test_what_the_file_declares_changes_there(server: Callable[..., Server]) -> None:
    up = server(FILE).start()
    refused = ask(up, "DELETE", "objects/streams/telemetry", status=409)
    assert str(up.file) in refused["detail"]
    ask(up, "PUT", "objects/streams/telemetry", {"topic": "a/{device}", "fields": "infer"}, status=409)
    ask(up, "GET", "objects/streams/none", status=404)
    ask(up, "GET", "objects/things/none", status=404)
    ask(up, "PUT", "objects/alarms/hot", {"on": "telemetry", "where": "nothing > 1"}, status=400)
    ask(up, "PUT", "objects/alarms/hot", {"on": "telemetry", "where": "true"}, status=400, if_match='"x"')
    ask(up, "PUT", "objects/alarms/hot", {"on": "telemetry", "where": "temperature > 1"})
    up.stop()
    up.file.write_text(FILE.replace("[streams.telemetry]", "[streams.renamed]"), encoding="utf-8")
    process = up.spawn()
    assert process.wait(60) == 1
    assert "together with what the API has declared: alarms.hot.on" in up.stderr()
    up.file.write_text(FILE, encoding="utf-8")
    up.start()
    assert ask(up, "GET", "objects/alarms/hot")["state"] == "running"


def test_with_the_pipeline_off_nothing_changes(server: Callable[..., Server]) -> None:
    up = server(FILE).start(["pipeline.enabled=false"])
    assert "pipeline.enabled" in ask(up, "GET", "objects", status=404)["detail"]


APPLIED = """
[streams.pumps]
topic  = "pumps/{device}"
fields = { flow = "double" }

[queries.flows]
sql = \"\"\"
SELECT device, window_start, window_end, AVG(flow) AS flow
FROM TABLE(TUMBLE(TABLE pumps, DESCRIPTOR(ts), INTERVAL '1' MINUTES))
GROUP BY device, window_start, window_end\"\"\"

[alarms.dry]
on     = "flows"
where  = "flow < 1"
for    = "90s"
labels = { team = "water \\"works\\"" }

[[routes]]
match = { team = "water*" }
steps = [{ to = ["bus"] }]
"""


def cli(up: Server, *words: str, text: str | None = None, code: int = 0) -> str:
    """What a verb prints, to standard output or, where it fails, to standard error."""
    command = [sys.executable, "-m", "headwater", *words, "--data-dir", str(up.directory)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
    return done.stderr if code else done.stdout


def test_files_are_planned_applied_and_exported(server: Callable[..., Server], tmp_path: Path) -> None:
    up = server(FILE).start()
    file = tmp_path / "pumps.toml"
    file.write_text(APPLIED, encoding="utf-8")
    planned = cli(up, "plan", str(file)).splitlines()
    assert [line.split(" (")[0] for line in planned] == [
        "+ create  streams.pumps",
        "+ create  queries.flows",
        "+ create  alarms.dry",
        "+ create  routes.route_1",
    ]
    assert "nothing was applied" in cli(up, "apply", str(file), text="n\n", code=1)
    revision = json.loads(cli(up, "plan", str(file), "--json"))["revision"]
    assert "applied: revision" in cli(up, "apply", str(file), "--yes", "--who", "ann")
    assert "No such file" in cli(up, "apply", str(tmp_path / "none.toml"), "--yes", code=1)
    assert cli(up, "plan", str(file)) == "no changes\n"
    exported = cli(up, "export")
    assert tomllib.loads(exported)["alarms"]["dry"]["labels"] == {"team": 'water "works"'}
    assert "telemetry" in tomllib.loads(exported)["streams"]
    assert cli(up, "plan", "-", text=exported) == "no changes\n"
    # What was planned before is refused, as is what the file would break; and then nothing is changed.
    less = APPLIED.replace("[alarms.dry]", "[alarms.drier]")
    file.write_text(less, encoding="utf-8")
    assert "plan again" in cli(up, "apply", str(file), "--yes", "--revision", str(revision), code=1)
    file.write_text(
        APPLIED.partition("[queries.flows]")[0] + "[alarms.dry]" + APPLIED.partition("[alarms.dry]")[2]
    )
    assert "'flows' is no stream or query" in cli(up, "apply", str(file), "--yes", code=1)
    assert cli(up, "plan", "-", text=exported) == "no changes\n"
    file.write_text(less, encoding="utf-8")
    cli(up, "apply", str(file), "--yes")
    names = {
        each["name"]: each for each in map(json.loads, cli(up, "objects", "list", "--json").splitlines())
    }
    assert names["drier"]["owner"] == "api"
    assert names["telemetry"]["owner"] == "file"
    assert "dry" not in names
    history = [json.loads(line) for line in cli(up, "objects", "history", "--json").splitlines()]
    assert {each["who"] for each in history} >= {"ann", str(up.file)}
    assert {(each["action"], each["name"]) for each in history[:2]} == {
        ("delete", "dry"),
        ("create", "drier"),
    }
    assert len({each["revision"] for each in history[:2]}) == 1


def test_objects_by_the_command_line(server: Callable[..., Server]) -> None:
    up = server(FILE).start()
    made = cli(up, "objects", "put", "alarms", "hot", "on=telemetry", "where=temperature > 80", "for=10s")
    assert made.startswith("+ create  alarms.hot (version 1)")
    changed = cli(up, "objects", "set", "alarms", "hot", 'key=["site"]')
    assert changed.startswith("! replace alarms.hot (version 1 -> 2)")
    assert 'key = [\n    "site",\n]' in cli(up, "objects", "show", "alarms", "hot")
    for verb in ("pause", "resume", "delete"):
        cli(up, "objects", verb, "alarms", "hot")
    assert "no such object" in cli(up, "objects", "show", "alarms", "hot", code=1)
    cli(up, "objects", "put", "streams", "pumps", "topic=pumps/{device}", "fields.flow=double")
    cli(up, "objects", "delete", "streams", "pumps")
    assert "purge" in cli(up, "objects", "purge", "streams", "pumps")

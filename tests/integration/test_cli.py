"""The command line as a user has it: the verbs, their output, their exit codes and what they say when it goes wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.server import TELEMETRY, Server, await_that


def headwater(
    *arguments: str | Path, stdin: str | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADWATER_")}
    return subprocess.run(
        [sys.executable, "-m", "headwater", *arguments],
        input=stdin or "",
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=60,
    )


def good(*arguments: str | Path, stdin: str | None = None) -> str:
    done = headwater(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*arguments: str | Path, cwd: Path | None = None) -> str:
    done = headwater(*arguments, cwd=cwd)
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    # Structured log lines may stand before it; the message is the last word.
    message = done.stderr[done.stderr.index("headwater: ") :]
    assert message.count("headwater: ") == 1
    return message


# ---- without a running Headwater


def test_init_writes_a_configuration_that_works_and_overwrites_nothing(tmp_path: Path) -> None:
    file = tmp_path / "headwater.toml"
    assert str(file) in good("init", file).replace("\n", "")
    text = file.read_text(encoding="utf-8")
    assert "good" in good("config", "check", "--config", file)
    assert "exists" in refused("init", file)
    assert file.read_text(encoding="utf-8") == text


def test_version_and_help_name_every_verb() -> None:
    assert good("version").strip()
    text = good("--help")
    for verb in ("up", "init", "demo", "simulate", "query", "pub", "sub", "streams", "deadletters", "config"):
        assert verb in text


def test_an_unknown_key_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "headwater.toml").write_text("[mqtt]\nprot = 1\n", encoding="utf-8")
    message = refused("up", "--data-dir", tmp_path / "data", cwd=tmp_path)
    assert "mqtt.prot" in message
    assert "did you mean 'port'" in message
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("section", ["mqtt", "http"])
def test_a_taken_port_is_named_with_the_remedy(tmp_path: Path, section: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        other = "http" if section == "mqtt" else "mqtt"
        settings = ["--set", f"{section}.port={port}", "--set", f"{other}.port=0"]
        message = refused("up", "--data-dir", tmp_path / "data", *settings, cwd=tmp_path)
    assert f"127.0.0.1:{port}" in message
    assert f"{section}.port" in message
    assert not (tmp_path / "data" / "run.json").exists()


def test_verbs_without_a_server_say_where_they_looked(tmp_path: Path) -> None:
    for verb in (["query", "SELECT 1"], ["streams", "list"], ["deadletters", "list"], ["pub", "a", "b"]):
        message = refused(*verb, "--data-dir", tmp_path)
        assert str(tmp_path) in message.replace("\n", "")


# ---- with one


@pytest.fixture
def up(server: Callable[..., Server]) -> Server:
    return server(TELEMETRY).start()


def test_a_data_directory_belongs_to_one_process(up: Server) -> None:
    ports = ["--set", "mqtt.port=0", "--set", "http.port=0"]
    message = refused("up", "--data-dir", up.directory, *ports)
    assert "another Headwater" in message
    up.kill()
    up.start()  # the lock does not outlive kill -9
    up.stop()


def test_up_prints_a_line_per_listener_and_drains_on_sigint(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "headwater", "up", "--data-dir", str(tmp_path / "data")]
    command += ["--set", "mqtt.port=0", "--set", "http.port=0"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADWATER_")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    ) as process:
        run_json = tmp_path / "data" / "run.json"
        await_that("run.json", lambda: process.poll() is not None or run_json.exists())
        running = json.loads(run_json.read_text())
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert running["pid"] == process.pid
    for listener in ("mqtt", "http"):
        [line] = [line for line in out.splitlines() if line.startswith(listener)]
        assert running[listener] in line
    assert "anonymous" in out
    assert not run_json.exists()


def test_pub_query_and_sub(up: Server) -> None:
    where = ["--data-dir", str(up.directory)]
    lines = "\n".join(json.dumps({"seq": n, "temperature": n / 2}) for n in range(10))
    assert "10 acknowledged" in good("pub", "dt/hall/d1/telemetry", "-", *where, stdin=lines)
    rows = good("query", "SELECT seq, temperature FROM telemetry ORDER BY seq", "--json", *where)
    assert [json.loads(line) for line in rows.splitlines()] == [
        {"seq": n, "temperature": n / 2} for n in range(10)
    ]
    table = good("query", "SELECT COUNT(*) AS readings FROM telemetry", *where)
    assert "readings" in table
    assert "10" in table
    good("pub", "state/lamp", "retained", "--retain", *where)
    heard = good("sub", "state/+", "--count", "1", "--json", *where)
    message = json.loads(heard)
    assert (message["topic"], message["retain"]) == ("state/lamp", True)
    refused("query", "SELECT FROM", *where)
    assert "character" in refused("query", "SELECT * FROM telemetri", *where)


def test_unmatched_topics_and_dead_letters_are_shown(up: Server) -> None:
    where = ["--data-dir", str(up.directory)]
    good("pub", "plant/7/level", '{"level": 3.5}', *where)
    text = good("streams", "unmatched", *where)
    assert "plant/7/level: 1 messages" in text
    # The suggestion is a stream that takes the message.
    suggestion = text.split("messages\n", 1)[1]
    file = up.file.with_name("suggested.toml")
    file.write_text(TELEMETRY + suggestion, encoding="utf-8")
    assert "2 streams" in good("config", "check", "--config", file)

    failed = headwater("pub", "dt/hall/d1/telemetry", "{", *where)
    assert failed.returncode == 1
    assert "refused" in failed.stderr
    [letter] = good("deadletters", "list", "--json", *where).splitlines()
    assert json.loads(letter)["reason"] == "invalid-json"
    assert "invalid-json" in good("deadletters", "count", *where)
    [stream] = good("streams", "list", "--json", *where).splitlines()
    assert json.loads(stream)["name"] == "telemetry"


def test_a_token_is_asked_for_where_one_is_set(server: Callable[..., Server]) -> None:
    up = server(TELEMETRY, environment={"HEADWATER_ADMIN_TOKEN": "secret"}).start()
    assert up.http.get("/healthz").status_code == 200
    assert up.http.get("/readyz").status_code == 200
    for path in ("/metrics", "/api/v1/books", "/things/t/shadow"):
        assert up.http.get(path).status_code == 401
    where = ["--data-dir", str(up.directory)]
    assert "TOKEN" in refused("query", "SELECT 1 AS one", *where)
    assert "one" in good("query", "SELECT 1 AS one", "--token", "secret", *where)


def test_without_the_pipeline_the_gateway_the_log_and_the_probes_run_alone(
    server: Callable[..., Server],
) -> None:
    up = server(TELEMETRY).start(["pipeline.enabled=false"])
    assert "1 acknowledged" in good("pub", "dt/h/d1/telemetry", '{"seq": 1}', "--data-dir", str(up.directory))
    assert up.http.get("/readyz").status_code == 200
    assert up.http.get("/metrics").status_code == 200
    assert up.http.post("/api/v1/query", json={"sql": "SELECT 1"}).status_code == 404
    up.stop()
    # What was acknowledged meanwhile is there when the pipeline runs again.
    up.start()
    up.await_ready()
    assert up.rows("SELECT device, seq FROM telemetry") == [["d1", 1]]


def test_http_ingest_is_durable_and_queryable_when_answered(up: Server) -> None:
    reading = {
        "site": "hall",
        "device": "d9",
        "seq": 5,
        "ts": "2026-01-02T03:04:05.25Z",
        "radio": {"rssi": -60},
    }
    answer = up.http.post("/api/v1/ingest/telemetry", json=[reading, {**reading, "seq": 6}])
    assert (answer.status_code, answer.json()) == (200, {"rows": 2})
    up.kill()
    up.start()
    rows = up.rows("SELECT site, device, seq, rssi, ts FROM telemetry ORDER BY seq")
    assert [row[:4] for row in rows] == [["hall", "d9", 5, -60], ["hall", "d9", 6, -60]]
    assert rows[0][4].startswith("2026-01-02T03:04:05.25")
    for accept, magic in (("application/vnd.apache.parquet", b"PAR1"), ("text/csv", b'"seq"')):
        answer = up.http.post(
            "/api/v1/query", json={"sql": "SELECT seq FROM telemetry"}, headers={"Accept": accept}
        )
        assert answer.headers["content-type"].startswith(accept)
        assert answer.content.startswith(magic)


@pytest.mark.parametrize("path", ["/openapi.json", "/healthz", "/readyz"])
def test_pages_for_machines(up: Server, path: str) -> None:
    assert up.http.get(path).status_code == 200

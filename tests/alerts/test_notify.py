"""Notifications leave the outbox at least once, in order per target, and no target delays another."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import sqlalchemy as sa
from plant import SECOND, TELEMETRY, Plant
from pydantic import SecretStr

from headwater.alarm_settings import AlarmSettings
from headwater.alerts import letters
from headwater.alerts.notify import KEEP_US, MAX_ATTEMPTS, Notifier
from headwater.alerts.service import AlarmService
from headwater.alerts.targets import signature
from headwater.database import NOTIFICATIONS
from headwater.errors import ConfigError, NotFoundError
from headwater.notify_settings import NotifySettings
from headwater.records import DOWNLINK


@dataclass
class Hook:
    """A web server that keeps what it is sent and answers as told; by default 204."""

    url: str = ""
    received: list[tuple[dict[str, str], Any]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    answers: queue.SimpleQueue[tuple[int, dict[str, str]]] = field(default_factory=queue.SimpleQueue)
    stuck: threading.Event | None = None


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if hook.stuck is not None and "stuck" in self.path:
                hook.stuck.wait(30)
            status, headers = (204, {}) if hook.answers.empty() else hook.answers.get()
            hook.bodies.append(body)
            hook.received.append(
                ({name.lower(): value for name, value in self.headers.items()}, json.loads(body))
            )
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    hook.url = f"http://127.0.0.1:{server.server_port}/hook"
    yield hook
    if hook.stuck is not None:
        hook.stuck.set()
    server.shutdown()
    server.server_close()
    thread.join()


def notifier_of(plant: Plant, **urls: str) -> Notifier:
    targets = {name: NotifySettings(url=SecretStr(url)) for name, url in urls.items()}
    return Notifier(plant.database, plant.log, targets, plant.clock)


def settle(notifier: Notifier) -> None:
    """Steps until nothing is due or under way."""
    while notifier.step() or notifier.running:
        for run in list(notifier.running.values()):
            assert run.thread is not None
            run.thread.join(20)


def fire(plant: Plant, *devices: str, notify: tuple[str, ...] = ("ops",), resolve: bool = False) -> None:
    """Puts notifications into the outbox, as the alarm service does."""
    settings = {"hot": AlarmSettings(on="telemetry", where="temperature > 80", notify=list(notify))}
    service = AlarmService(plant.log, plant.database, settings, {"telemetry": TELEMETRY}, plant.clock)
    for device in devices:
        plant.append({"device": device, "ts": 1, "temperature": 90.0})
        if resolve:
            plant.append({"device": device, "ts": 2, "temperature": 20.0})
    while service.step():
        pass
    service.close()


def outbox(plant: Plant) -> list[Any]:
    with plant.database.read() as connection:
        return list(connection.execute(sa.select(NOTIFICATIONS).order_by(NOTIFICATIONS.c.sequence)))


def test_a_webhook_gets_firing_and_resolved_in_order(plant: Plant, hook: Hook) -> None:
    notifier = notifier_of(plant, ops=hook.url)
    fire(plant, "d1", "d2", resolve=True)
    settle(notifier)
    assert [(body["key"]["device"], body["state"]) for _, body in hook.received] == [
        ("d1", "firing"), ("d1", "resolved"), ("d2", "firing"), ("d2", "resolved"),
    ]  # fmt: skip
    headers, body = hook.received[0]
    assert headers["idempotency-key"] == body["notification"] == f"{body['id']}-firing-ops"
    assert headers["content-type"] == "application/json"
    assert (body["severity"], body["reading"]["temperature"], body["resolved_at"]) == ("major", 90.0, None)
    assert hook.received[1][1]["resolved_at"] == "1970-01-01T00:00:02Z"
    assert notifier.status() == {"ops": {"waiting": 0, "sent": 4, "dead": 0}}


def test_a_failure_is_tried_again_with_growing_pauses(plant: Plant, hook: Hook) -> None:
    notifier = notifier_of(plant, ops=hook.url)
    fire(plant, "d1", "d2")
    for pause_s in (5, 10, 20):
        hook.answers.put((500, {}))
        settle(notifier)
        assert [(row.state, row.attempts > 0, row.last_error) for row in outbox(plant)] == [
            ("waiting", True, "POST was answered with 500")
        ] * 2
        plant.now_us += pause_s * SECOND - 1
        assert not notifier.step()
        plant.now_us += 1
    settle(notifier)
    assert [body["key"]["device"] for _, body in hook.received] == ["d1", "d1", "d1", "d1", "d2"]
    assert {headers["idempotency-key"] for headers, _ in hook.received[:4]} == {outbox(plant)[0].id}
    assert [row.state for row in outbox(plant)] == ["sent", "sent"]


def test_retry_after_is_honoured(plant: Plant, hook: Hook) -> None:
    notifier = notifier_of(plant, ops=hook.url)
    fire(plant, "d1")
    hook.answers.put((429, {"retry-after": "120"}))
    settle(notifier)
    assert outbox(plant)[0].next_at == plant.now_us + 120 * SECOND


def test_a_body_that_is_refused_is_dead_at_once_and_blocks_nobody(plant: Plant, hook: Hook) -> None:
    notifier = notifier_of(plant, ops=hook.url)
    fire(plant, "d1", "d2")
    hook.answers.put((422, {}))
    settle(notifier)
    assert [(row.state, row.last_error) for row in outbox(plant)] == [
        ("dead", "POST was answered with 422"),
        ("sent", None),
    ]


def test_attempts_are_bounded(plant: Plant, hook: Hook) -> None:
    notifier = notifier_of(plant, ops="http://127.0.0.1:1/closed?token=hunter2")
    fire(plant, "d1")
    begin = plant.now_us
    for attempt in range(MAX_ATTEMPTS):
        if attempt == MAX_ATTEMPTS - 1:
            fire(plant, "d2")
        settle(notifier)
        plant.now_us = max(row.next_at for row in outbox(plant))
    first, second = outbox(plant)
    assert (first.state, first.attempts, first.last_error) == (
        "dead",
        MAX_ATTEMPTS,
        "POST failed: ConnectError",
    )
    assert (second.state, second.attempts) == ("waiting", 1)
    assert 0.5 < (first.next_at - begin) / (86_400 * SECOND) < 1.5
    plant.now_us += KEEP_US + SECOND
    notifier.step()
    assert [row.key for row in outbox(plant) if row.id == first.id] == []


def test_a_stuck_target_delays_no_other(plant: Plant, hook: Hook) -> None:
    hook.stuck = threading.Event()
    notifier = notifier_of(plant, slow=f"{hook.url}/stuck", ops=hook.url)
    fire(plant, "d1", notify=("slow", "ops"))
    while notifier.status()["ops"]["sent"] == 0:
        notifier.step()
        notifier.running["slow"].thread.join(0.01)  # type: ignore[union-attr]
    assert notifier.status()["slow"] == {"waiting": 1, "sent": 0, "dead": 0}
    hook.stuck.set()
    settle(notifier)
    assert notifier.status()["slow"]["sent"] == 1


def test_what_was_under_way_at_a_kill_is_sent_again(plant: Plant, hook: Hook) -> None:
    first = notifier_of(plant, ops=hook.url)
    fire(plant, "d1")
    first.step()
    first.running["ops"].thread.join(20)  # type: ignore[union-attr]  # delivered, and killed before it is recorded
    settle(notifier_of(plant, ops=hook.url))
    keys = [headers["idempotency-key"] for headers, _ in hook.received]
    assert len(keys) == 2
    assert len(set(keys)) == 1


def test_close_records_what_ends_in_time(plant: Plant, hook: Hook) -> None:
    notifier = notifier_of(plant, ops=hook.url)
    fire(plant, "d1")
    notifier.step()
    notifier.close()
    assert [row.state for row in outbox(plant)] == ["sent"]


def test_a_target_that_is_gone_leaves_dead_notifications(plant: Plant, hook: Hook) -> None:
    fire(plant, "d1")
    notifier = notifier_of(plant, other=hook.url)
    settle(notifier)
    assert [(row.state, row.last_error) for row in outbox(plant)] == [
        ("dead", "the target is no longer configured")
    ]
    assert hook.received == []


def test_our_own_broker_gets_a_record_on_the_downlink(plant: Plant) -> None:
    notifier = notifier_of(plant, ops="mqtt:alarms/{alarm}/{device}/{state}/{nothing}")
    fire(plant, "d1", "a/../#", "+", "$SYS", resolve=False)
    settle(notifier)
    batch = plant.log.reader(DOWNLINK, ()).read(100)
    assert batch is not None
    assert batch.column("topic").to_pylist() == [
        "alarms/hot/d1/firing/_",
        "alarms/hot/a_.._\N{LOW LINE}/firing/_",
        "alarms/hot/_/firing/_",
        "alarms/hot/$SYS/firing/_",
    ]
    payload = json.loads(batch.column("payload")[0].as_py())
    assert (payload["alarm"], payload["state"], payload["notification"]) == (
        "hot",
        "firing",
        outbox(plant)[0].id,
    )
    assert batch.column("qos").to_pylist() == [1] * 4


def test_a_key_cannot_reach_the_servers_topics(plant: Plant) -> None:
    notifier = notifier_of(plant, ops="mqtt:{device}/x")
    fire(plant, "$SYS", "")
    settle(notifier)
    batch = plant.log.reader(DOWNLINK, ()).read(100)
    assert batch is not None
    assert batch.column("topic").to_pylist() == ["_SYS/x", "_/x"]


def test_apprise_targets(plant: Plant, hook: Hook) -> None:
    url = hook.url.replace("http://", "json://") + "?method=POST"
    notifier = notifier_of(plant, ops=url)
    fire(plant, "d1")
    settle(notifier)
    body = hook.received[0][1]
    assert body["title"] == "major: hot firing for device d1"
    assert "temperature = 90.0" in body["message"]
    assert f"notification: {outbox(plant)[0].id}" in body["message"]
    hook.answers.put((500, {}))
    fire(plant, "d2")
    settle(notifier)
    assert outbox(plant)[1].last_error == "Apprise could not deliver"


@pytest.mark.parametrize(
    "url",
    [
        "nonsense://user:hunter2@host",
        "hunter2",
        "json://",
        "mailto://user:hunter2@host",
        "http://",
        "https://:hunter2@/x",
        "mqtt:",
        "mqtt:$SYS/{device}",
        "mqtt:alarms/#",
        "mqtt:alarms/{Device}",
    ],
)
def test_a_bad_url_is_named_and_not_quoted(url: str) -> None:
    with pytest.raises(ConfigError, match=r"notify\.ops\.url: ") as caught:
        Notifier.check({"ops": NotifySettings(url=SecretStr(url))})
    assert "hunter2" not in str(caught.value)


def test_no_url_in_logs(plant: Plant, hook: Hook, caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    caplog.set_level(logging.DEBUG)
    notifier = notifier_of(
        plant,
        ops=f"{hook.url}?token=hunter2",
        closed="http://user:hunter2@127.0.0.1:1/",
        more=hook.url.replace("http://", "json://user:hunter2@"),
    )
    fire(plant, "d1", notify=("ops", "closed", "more"))
    settle(notifier)
    captured = capfd.readouterr()
    assert len(hook.received) == 2
    assert "hunter2" not in caplog.text + captured.out + captured.err
    assert "hunter2" not in "".join(str(row.last_error) for row in outbox(plant))


def notifier_with(plant: Plant, url: str, **words: Any) -> Notifier:
    settings = NotifySettings.model_validate({"url": url, **words})
    return Notifier(plant.database, plant.log, {"ops": settings}, plant.clock)


SECRET = "0123456789abcdef"


def test_a_webhook_is_signed(plant: Plant, hook: Hook) -> None:
    notifier = notifier_with(plant, hook.url, secret=SECRET)
    fire(plant, "d1")
    settle(notifier)
    given = dict(part.split("=", 1) for part in hook.received[0][0]["headwater-signature"].split(","))
    signed = f"{given['t']}.".encode() + hook.bodies[0]
    assert given["v1"] == hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert int(given["t"]) == plant.now_us // SECOND
    assert signature(SECRET, int(given["t"]), hook.bodies[0]) == hook.received[0][0]["headwater-signature"]


def test_a_template_makes_the_body(plant: Plant, hook: Hook) -> None:
    notifier = notifier_with(plant, hook.url, body='{"text": "${title}", "at": "${reading.temperature}"}')
    fire(plant, 'd"1')
    settle(notifier)
    assert hook.received[0][1] == {"text": 'major: hot firing for device d"1', "at": "90.0"}


def test_templates_of_title_and_text(plant: Plant, hook: Hook) -> None:
    url = hook.url.replace("http://", "json://")
    notifier = notifier_with(plant, url, title="${alarm}!", text="${key.device} is ${state} (${count})")
    fire(plant, "d1")
    settle(notifier)
    body = hook.received[0][1]
    assert (body["title"], body["message"]) == ("hot!", "d1 is firing (1)")


def test_a_template_makes_the_payload_for_our_own_broker(plant: Plant) -> None:
    notifier = notifier_with(plant, "mqtt:alarms/{device}", body="${severity} ${alarm}")
    fire(plant, "d1")
    settle(notifier)
    batch = plant.log.reader(DOWNLINK, ()).read(100)
    assert batch is not None
    assert batch.column("payload").to_pylist() == [b"major hot"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"url": "http://x/", "title": "x"}, r"notify\.ops\.title: a webhook has no use for it"),
        ({"url": "mqtt:a", "secret": SECRET}, r"notify\.ops\.secret: MQTT has no use for it"),
        ({"url": "json://x/", "body": "x"}, r"notify\.ops\.body: Apprise has no use for it"),
        (
            {"url": "http://x/", "body": "${alram}"},
            r"notify\.ops\.body: at character 0: no value 'alram'; did you",
        ),
        ({"url": "json://x/", "text": "$"}, r"notify\.ops\.text: at character 0: write"),
    ],
)
def test_a_setting_of_no_use_is_named(words: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Notifier.check({"ops": NotifySettings.model_validate(words)})


def test_more_than_the_limit_goes_as_one_digest(plant: Plant, hook: Hook) -> None:
    notifier = notifier_with(plant, hook.url, rate_limit={"count": 2, "per": "1m"})
    fire(plant, "d1")
    settle(notifier)
    fire(plant, "d2", "d3", "d4")
    settle(notifier)
    assert [body["state"] for _, body in hook.received] == ["firing", "digest"]
    digest = hook.received[1][1]
    assert (digest["count"], digest["severity"]) == (3, "major")
    assert [alarm["key"]["device"] for alarm in digest["alarms"]] == ["d2", "d3", "d4"]
    assert [alarm["notification"] for alarm in digest["alarms"]] == [row.id for row in outbox(plant)[1:]]
    assert digest["notification"] == hook.received[1][0]["idempotency-key"] == outbox(plant)[1].digest
    fire(plant, "d5")
    settle(notifier)
    assert len(hook.received) == 2
    plant.now_us += 60 * SECOND
    settle(notifier)
    assert [body["state"] for _, body in hook.received[2:]] == ["firing"]
    assert {row.state for row in outbox(plant)} == {"sent"}


def test_a_digest_collects_and_is_repeated_as_it_was(plant: Plant, hook: Hook) -> None:
    notifier = notifier_with(plant, hook.url, digest="30s")
    fire(plant, "d1", resolve=True)
    settle(notifier)
    assert hook.received == []
    plant.now_us += 30 * SECOND
    hook.answers.put((500, {}))
    settle(notifier)
    fire(plant, "d2")
    plant.now_us += 40 * SECOND
    settle(notifier_with(plant, hook.url, digest="30s"))  # over a restart
    (first, body), (again, same), *rest = hook.received
    assert first["idempotency-key"] == again["idempotency-key"]
    assert body == same
    assert [alarm["state"] for alarm in body["alarms"]] == ["firing", "resolved"]
    assert [each["key"] for _, each in rest] == [{"device": "d2"}]


def test_a_refused_digest_is_dead_as_a_whole(plant: Plant, hook: Hook) -> None:
    notifier = notifier_with(plant, hook.url, digest="1s")
    fire(plant, "d1", "d2")
    plant.now_us += SECOND
    hook.answers.put((400, {}))
    settle(notifier)
    assert [row.state for row in outbox(plant)] == ["dead", "dead"]


def test_digests_for_people(plant: Plant, hook: Hook) -> None:
    notifier = notifier_with(plant, hook.url.replace("http://", "json://"), digest="1s")
    fire(plant, "d1", "d2")
    plant.now_us += SECOND
    settle(notifier)
    body = hook.received[0][1]
    assert body["title"] == "major: 2 notifications"
    assert "major: hot firing for device d2" in body["message"]


def test_dead_ones_are_listed_and_sent_again_with_their_keys(plant: Plant, hook: Hook) -> None:
    notifier = notifier_of(plant, ops=hook.url, other=hook.url)
    fire(plant, "d1", "d2", notify=("ops", "other"))
    hook.answers.put((422, {}))
    hook.answers.put((422, {}))
    settle(notifier)
    dead = letters.notifications(plant.database, state="dead")
    assert len(dead) == 2
    assert {one["error"] for one in dead} == {"POST was answered with 422"}
    keys = {one["notification"] for one in dead}
    hook.received.clear()
    assert letters.replay(plant.database, ["ops", "other"], plant.now_us, notification="nothing") == 0
    assert letters.replay(plant.database, [], plant.now_us) == 0
    assert letters.replay(plant.database, ["ops", "other"], plant.now_us) == 2
    settle(notifier)
    assert {headers["idempotency-key"] for headers, _ in hook.received} == keys
    assert letters.notifications(plant.database, state="dead") == []
    assert len(letters.notifications(plant.database, target="ops", limit=1)) == 1


def test_a_target_is_tested_past_its_outbox(plant: Plant, hook: Hook) -> None:
    notifier = notifier_of(plant, ops=hook.url, closed="http://127.0.0.1:1/")
    assert notifier.test("ops") == {"target": "ops", "delivered": True, "error": None}
    assert hook.received[0][1]["state"] == "test"
    assert notifier.test("closed")["error"] == "POST failed: ConnectError"
    with pytest.raises(
        NotFoundError, match=r"testing target 'x': there is no \[notify.x\]; there are ops, closed"
    ):
        notifier.test("x")


def test_what_waits_is_bounded(plant: Plant, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.alerts.notify.MAX_WAITING", 2)
    notifier = notifier_of(plant, ops="http://127.0.0.1:1/")
    fire(plant, "d1", "d2", "d3", "d4")
    settle(notifier)
    assert [row.state for row in outbox(plant)] == ["dead", "dead", "waiting", "waiting"]
    assert "more than 2 wait for this target" in outbox(plant)[0].last_error


def test_many_stuck_targets_delay_no_other(plant: Plant, hook: Hook) -> None:
    hook.stuck = threading.Event()
    slow = {f"slow{n}": f"{hook.url}/stuck" for n in range(40)}
    notifier = notifier_of(plant, **slow, ops=hook.url)
    fire(plant, "d1", notify=(*slow, "ops"))
    while notifier.status()["ops"]["sent"] == 0:
        notifier.step()
        for name in ("ops", "slow0"):
            if (run := notifier.running.get(name)) is not None:
                run.thread.join(0.01)  # type: ignore[union-attr]
    assert len(notifier.running) == 40
    hook.stuck.set()
    settle(notifier)
    assert sum(row.state == "sent" for row in outbox(plant)) == 41

"""The shadow service over a real log and database: answers, REST, kills between transaction and outbox."""

from __future__ import annotations

import contextlib
import json
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa

from headwater.config import LogSettings, ShadowSettings
from headwater.database import DOWNLINK_OUTBOX, Database, load_offsets
from headwater.devices import document as documents
from headwater.devices.document import Document
from headwater.devices.shadow import ShadowService
from headwater.errors import LogFullError, ShadowError
from headwater.log.embedded import EmbeddedLog
from headwater.records import DOWNLINK, OWN_SCHEMAS, RAW, RAW_SCHEMA, Schema

T = 1_700_000_000


class Failing(Database):
    """A database whose transactions fail at the end when `fail` says so."""

    fail = False

    @contextlib.contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        with super().begin() as connection:
            yield connection
            if self.fail:
                raise OSError("disk full")


class FullLog(EmbeddedLog):
    """A log that takes no downlink when `full` says so."""

    full = False

    def append(self, parts: Sequence[tuple[Schema, pa.RecordBatch]]) -> None:
        if self.full and parts[0][0].stream == DOWNLINK:
            raise LogFullError("disk full")
        super().append(parts)


class Site:
    """A data directory: log, database and a clock that stands still until it is moved."""

    def __init__(self, directory: Path) -> None:
        self.now_us = T * 1_000_000
        settings = LogSettings(segment_bytes=1 << 20, retention_bytes=0)
        self.log = FullLog(directory / "log", settings, OWN_SCHEMAS)
        self.database = Failing(f"sqlite:///{directory / 'headwater.db'}")

    def service(self) -> ShadowService:
        return ShadowService(self.log, self.database, ShadowSettings(), lambda: self.now_us)

    def publish(self, *messages: tuple[str, Any]) -> None:
        """MQTT publishes in one commit, as the gateway logs them."""
        columns = {
            "ts": pa.array([self.now_us] * len(messages), pa.int64()).cast(pa.timestamp("us", tz="UTC")),
            "topic": [topic for topic, _ in messages],
            "client": ["c"] * len(messages),
            "qos": [1] * len(messages),
            "retain": [False] * len(messages),
            "payload": [
                body if isinstance(body, bytes) else json.dumps(body).encode() for _, body in messages
            ],
            "request": [None] * len(messages),
            "properties": [None] * len(messages),
        }
        self.log.append([(RAW_SCHEMA, pa.RecordBatch.from_pydict(columns, schema=RAW_SCHEMA.arrow))])

    def answers(self) -> list[tuple[str, Any]]:
        """Everything on the downlink: (topic below `$aws/things/`, payload)."""
        reader, found = self.log.reader(DOWNLINK, ()), []
        while (batch := reader.read(10_000)) is not None:
            topics = [topic.removeprefix("$aws/things/") for topic in batch.column("topic").to_pylist()]
            found += zip(topics, map(json.loads, batch.column("payload").to_pylist()), strict=True)
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.database.close()
    site.log.close()


def drain(service: ShadowService) -> None:
    while service.step():
        pass


def topic(thing: str, operation: str, name: str = "") -> str:
    return f"$aws/things/{thing}/shadow/{f'name/{name}/' if name else ''}{operation}"


def test_update_get_delete_over_mqtt(site: Site) -> None:
    service = site.service()
    site.publish(
        (topic("pump", "update"), {"state": {"desired": {"on": True}}, "clientToken": "1"}),
        (topic("pump", "get"), b""),
        (topic("pump", "update", "valve"), {"state": {"reported": {"open": 1}}}),
        (topic("pump", "delete"), {"clientToken": "2"}),
        (topic("pump", "get"), {"clientToken": "3"}),
    )
    drain(service)
    stamp = {"timestamp": T}
    assert site.answers() == [
        ("pump/shadow/update/accepted", {
            "state": {"desired": {"on": True}}, "metadata": {"desired": {"on": stamp}},
            "version": 1, "timestamp": T, "clientToken": "1",
        }),
        ("pump/shadow/update/delta", {
            "state": {"on": True}, "metadata": {"on": stamp}, "version": 1, "timestamp": T, "clientToken": "1",
        }),
        ("pump/shadow/update/documents", {
            "previous": None,
            "current": {"state": {"desired": {"on": True}}, "metadata": {"desired": {"on": stamp}}, "version": 1},
            "timestamp": T, "clientToken": "1",
        }),
        ("pump/shadow/get/accepted", {
            "state": {"desired": {"on": True}, "delta": {"on": True}},
            "metadata": {"desired": {"on": stamp}, "delta": {"on": stamp}}, "version": 1, "timestamp": T,
        }),
        ("pump/shadow/name/valve/update/accepted", {
            "state": {"reported": {"open": 1}}, "metadata": {"reported": {"open": stamp}},
            "version": 1, "timestamp": T,
        }),
        ("pump/shadow/name/valve/update/documents", {
            "previous": None,
            "current": {"state": {"reported": {"open": 1}}, "metadata": {"reported": {"open": stamp}}, "version": 1},
            "timestamp": T,
        }),
        ("pump/shadow/delete/accepted", {"version": 1, "timestamp": T, "clientToken": "2"}),
        ("pump/shadow/get/rejected", {
            "code": 404, "message": "No shadow exists with name: pump", "timestamp": T, "clientToken": "3",
        }),
    ]  # fmt: skip
    assert service.names("pump") == ["valve"]
    assert service.counters == {"accepted": 4, "rejected": 1, "ignored": 0}


def test_the_version_survives_a_delete_and_a_restart(site: Site) -> None:
    service = site.service()
    site.publish(*((topic("pump", "update"), {"state": {"desired": {"n": n}}}) for n in range(3)))
    site.publish((topic("pump", "delete"), b""))
    drain(service)
    service.close()
    again = site.service()
    site.publish((topic("pump", "update"), {"state": {"reported": {"n": 9}}}))
    drain(again)
    name, body = site.answers()[-2]
    assert (name, body["version"]) == ("pump/shadow/update/accepted", 4)
    assert site.answers()[-1][1]["previous"] is None


@pytest.mark.parametrize(
    ("name", "payload", "answer"),
    [
        (topic("pump", "update"), b"no json", ("pump/shadow/update/rejected", 400)),
        (topic("pump", "update"), b"\xff", ("pump/shadow/update/rejected", 415)),
        (topic("pump", "get"), b"no json", ("pump/shadow/get/rejected", 400)),
        (topic("pump", "delete"), b"", ("pump/shadow/delete/rejected", 404)),
        (topic("pump 1", "update"), b"{}", ("pump 1/shadow/update/rejected", 400)),
        (topic("pump", "update", "a.b"), b"{}", ("pump/shadow/name/a.b/update/rejected", 400)),
        (topic("", "get"), b"", ("/shadow/get/rejected", 400)),
        (topic("pump", "update/accepted"), b"{}", None),
        (topic("pump", "update/delta"), b"{}", None),
        (topic("pump", "list"), b"{}", None),
        ("$aws/things/pump/shadow/name/valve", b"", None),
        ("$aws/things/pump/shadow", b"", None),
        ("$aws/things/pump/jobs/get", b"", None),
        ("dt/pump/shadow/get", b"", None),
    ],
)
def test_bad_input_gets_its_answer_and_stops_nothing(
    site: Site, name: str, payload: bytes, answer: tuple[str, int] | None
) -> None:
    service = site.service()
    site.publish((name, payload), (topic("next", "update"), {"state": {"desired": {}}}))
    drain(service)
    found = [(at, body["code"]) for at, body in site.answers() if "code" in body]
    assert found == ([] if answer is None else [answer])
    assert site.answers()[-1][0] == "next/shadow/update/documents"
    ignored = answer is None and name.startswith("$aws/things/pump/shadow")
    assert service.counters["ignored"] == ignored


@contextlib.contextmanager
def running(service: ShadowService) -> Iterator[None]:
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            if not service.step():
                stop.wait(0.001)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_rest_and_mqtt_share_one_store_and_one_order(site: Site) -> None:
    service = site.service()
    with running(service):
        body = b'{"state": {"desired": {"on": true}}, "clientToken": "t"}'
        answer = json.loads(service.request("update", "pump", payload=body))
        assert (answer["version"], answer["state"], answer["clientToken"]) == (
            1,
            {"desired": {"on": True}},
            "t",
        )
        site.publish((topic("pump", "update"), {"state": {"reported": {"on": False}}}))
        assert json.loads(service.request("get", "pump"))["state"] == {
            "desired": {"on": True}, "reported": {"on": False}, "delta": {"on": True},
        }  # fmt: skip
        assert json.loads(service.request("delete", "pump")) == {"version": 2, "timestamp": T}
        with pytest.raises(ShadowError, match="No shadow exists with name: pump~valve") as caught:
            service.request("get", "pump", "valve")
        assert caught.value.code == 404
        with pytest.raises(ShadowError) as caught:
            service.request("delete", "pump")
        assert caught.value.code == 404
    assert [name for name, _ in site.answers()] == [
        "pump/shadow/update/accepted", "pump/shadow/update/delta", "pump/shadow/update/documents",
        "pump/shadow/update/accepted", "pump/shadow/update/delta", "pump/shadow/update/documents",
        "pump/shadow/delete/accepted",
    ]  # fmt: skip


def test_rest_refusals(site: Site) -> None:
    service = site.service()
    before = site.log.end(RAW)
    for arguments, code in (
        (("update", "pump", "a.b", b"{}"), 400),
        (("get", "pump 1"), 400),
        (("update", "pump", "", b" " * 40_000), 413),
        (("get", "pump"), 404),
    ):
        with pytest.raises(ShadowError) as caught:
            service.request(*arguments)  # type: ignore[arg-type]
        assert caught.value.code == code
    assert site.log.end(RAW) == before
    with pytest.raises(ShadowError, match=r"did not answer within 0\.01 s") as caught:
        service.request("update", "pump", payload=b"{}", timeout_s=0.01)
    assert caught.value.code == 503
    with pytest.raises(ShadowError, match="did not answer") as caught:
        service.request("get", "pump", timeout_s=0.01)
    drain(service)
    assert service._waiting == {}


def test_concurrent_rest_updates_have_distinct_versions(site: Site) -> None:
    service = site.service()
    body = b'{"state": {"desired": {"on": true}}}'
    with running(service), ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: service.request("update", "pump", payload=body), range(40)))
    assert sorted(json.loads(answer)["version"] for answer in answers) == list(range(1, 41))


def test_a_full_log_keeps_the_outbox(site: Site) -> None:
    service = site.service()
    site.publish((topic("pump", "update"), {"state": {"desired": {"on": True}}}))
    site.log.full = True
    for _ in range(2):
        with pytest.raises(LogFullError):
            service.step()
    site.log.full = False
    drain(service)
    assert [name.rpartition("/")[2] for name, _ in site.answers()] == ["accepted", "delta", "documents"]
    with site.database.read() as connection:
        assert connection.execute(sa.select(DOWNLINK_OUTBOX)).all() == []


def test_a_kill_before_the_outbox_was_sent(site: Site) -> None:
    site.publish((topic("pump", "update"), {"state": {"desired": {"on": True}}}))
    site.log.full = True
    with pytest.raises(LogFullError):
        site.service().step()  # committed, not sent, and killed
    site.log.full = False
    again = site.service()
    drain(again)
    assert [name.rpartition("/")[2] for name, _ in site.answers()] == ["accepted", "delta", "documents"]


def test_a_kill_after_the_outbox_was_sent(site: Site) -> None:
    first = site.service()
    site.publish((topic("pump", "update"), {"state": {"reported": {"on": True}}}))
    assert first.step()  # sent, and killed before the outbox was emptied
    drain(site.service())
    assert [name.rpartition("/")[2] for name, _ in site.answers()] == ["accepted", "documents"] * 2
    assert {body["version"] for name, body in site.answers() if name.endswith("accepted")} == {1}


def test_other_rows_move_the_offsets_once_a_second(site: Site) -> None:
    service = site.service()
    site.publish(("dt/a", b"x"), ("dt/b", b"y"))
    drain(service)

    def committed() -> int:
        with site.database.read() as connection:
            return sum(load_offsets(connection, "shadow", RAW))

    assert committed() == 0
    site.now_us += 1_000_000
    service.step()
    assert committed() == 2


@pytest.mark.parametrize("seed", range(8))
def test_kills_neither_lose_nor_double_an_update(site: Site, seed: int) -> None:
    """Kills and failures anywhere: documents as of the requests one by one, and every answer at least once."""
    rng = random.Random(seed)
    service = site.service()
    for _ in range(40):
        site.publish(*(random_request(rng) for _ in range(rng.randrange(1, 6))))
        site.now_us += rng.randrange(2_000_000)
        site.database.fail, site.log.full = rng.random() < 0.2, rng.random() < 0.2
        for _ in range(rng.randrange(3)):
            with contextlib.suppress(OSError, LogFullError):
                service.step()
        site.database.fail = site.log.full = False
        if rng.random() < 0.3:
            service = site.service()
    drain(service)
    stored, expected = reference(site)
    for (thing, name), document in stored.items():
        with contextlib.suppress(ShadowError):
            answer = json.loads(service.request("get", thing, name))
            assert document is not None
            assert (answer["version"], answer["metadata"]) == (document.version, shown(document)["metadata"])
            assert answer["state"] == shown(document)["state"]
            continue
        assert document is None
    found = [json.dumps(one, sort_keys=True) for one in site.answers()]
    assert [one for n, one in enumerate(found) if one not in found[:n]] == [
        one for n, one in enumerate(expected) if one not in expected[:n]
    ]


def shown(document: Document) -> dict[str, Any]:
    return documents.get(document, b"", shown_name="", now_s=0, max_bytes=8192)


def random_request(rng: random.Random) -> tuple[str, Any]:
    thing, name = rng.choice("ab"), rng.choice(["", "", "n"])
    token = {"clientToken": f"{rng.randrange(10**9)}"}
    match rng.randrange(8):
        case 0:
            return topic(thing, "delete", name), token
        case 1:
            return topic(thing, "get", name), token
        case 2:
            return topic(thing, "update", name), token | {
                "state": {"desired": {"x": 1}},
                "version": rng.randrange(4),
            }
        case 3:
            return f"other/{thing}", b"x"
    section = rng.choice(["desired", "reported"])
    patch = {rng.choice("xyz"): rng.choice([1, 2, None, {"k": rng.randrange(3)}])}
    return topic(thing, "update", name), token | {"state": {section: patch}}


def reference(site: Site) -> tuple[dict[tuple[str, str], Document | None], list[str]]:
    """Documents and answers of all requests in the log, one after the other, by the pure functions."""
    stored: dict[tuple[str, str], Document | None] = {}
    versions: dict[tuple[str, str], int] = {}
    expected: list[str] = []
    reader = site.log.reader(RAW, ())
    while (batch := reader.read(10_000)) is not None:
        for row in batch.to_pylist():
            if not row["topic"].startswith("$aws/"):
                continue
            below = row["topic"].removeprefix("$aws/things/")
            parts = below.split("/")
            key = parts[0], parts[3] if len(parts) == 5 else ""
            now_s = int(row["ts"].timestamp())
            common = {"now_s": now_s, "max_bytes": 8192}
            name = "~".join(filter(None, key))
            try:
                if parts[-1] == "update":
                    one = documents.update(
                        stored.get(key), row["payload"], last_version=versions.get(key, 0), **common
                    )
                    stored[key], versions[key] = one.document, one.document.version
                    found = {"accepted": one.accepted, "delta": one.delta, "documents": one.documents}
                else:
                    function = documents.get if parts[-1] == "get" else documents.delete
                    found = {"accepted": function(stored.get(key), row["payload"], shown_name=name, **common)}
                    if parts[-1] == "delete":
                        stored[key] = None
            except ShadowError as error:
                found = {"rejected": documents.rejected(error, row["payload"], now_s, 8192)}
            answers = [(f"{below}/{kind}", body) for kind, body in found.items() if body is not None]
            expected += [json.dumps(one, sort_keys=True) for one in answers]
    return stored, expected

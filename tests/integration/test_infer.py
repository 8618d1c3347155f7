"""Streams whose fields come from the messages: columns at once, also after a kill, and nothing lost."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.integration.server import Server, await_that

CONFIG = """
[store]
flush_interval = "200ms"
[streams.open]
topic  = "open/{site}/{device}"
time   = "at"
fields = "infer"
[alarms.hot]
on    = "open"
where = "temperature > 80"
[queries.mean]
sql = \"\"\"SELECT device, window_start, window_end, AVG(pressure) AS pressure FROM TABLE(TUMBLE(TABLE open,
         DESCRIPTOR(ts), INTERVAL '1' MINUTES)) GROUP BY device, window_start, window_end\"\"\"
"""


def publish(server: Server, client_id: str, *messages: tuple[str, object]) -> None:
    """Publishes and waits until every message is acknowledged with success."""
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5)
    codes: list[int] = []
    client.on_publish = lambda _client, _data, _mid, reason, _properties: codes.append(reason.value)
    client.connect(*server.mqtt)
    client.loop_start()
    for topic, payload in messages:
        client.publish(topic, json.dumps(payload), qos=1)
    await_that("all acknowledgements", lambda: len(codes) == len(messages))
    client.disconnect()
    client.loop_stop()
    assert not any(codes), codes


@pytest.fixture
def server(tmp_path: Path):
    with Server(tmp_path / "data", CONFIG) as server:
        yield server.start()


def columns(server: Server) -> dict[str, str]:
    """Columns of the stream as the API lists them."""
    [stream] = [each for each in server.get("/api/v1/streams") if each["name"] == "open"]
    return {column["name"]: column["type"] for column in stream["columns"]}


def test_the_first_message_with_a_field_has_it_as_a_column(server: Server) -> None:
    # What the alarm and the query name is there before any message.
    assert columns(server)["temperature"] == columns(server)["pressure"] == "double"
    publish(
        server, "a", ("open/x/d1", {"at": 1732000000, "temperature": 81, "radio": {"rssi": -71}, "unit": "C"})
    )
    assert server.rows("SELECT site, device, temperature, radio_rssi, unit, _extra FROM open") == [
        ["x", "d1", 81.0, -71.0, "C", None]
    ]
    [alarm] = server.await_alarms(bool)
    assert alarm["key"] == {"device": "d1"}
    publish(server, "a", ("open/x/d1", {"temperature": "broken", "list": [1, 2]}))
    [[extra]] = server.rows("SELECT _extra FROM open WHERE _extra IS NOT NULL")
    assert json.loads(extra) == {"temperature": "broken", "list": [1, 2]}


def test_http_and_mqtt_add_fields_to_the_same_table(server: Server) -> None:
    answer = server.http.post(
        "/api/v1/ingest/open?site=x", json=[{"device": "h", "a": 1}, {"device": "h", "b": True}]
    )
    assert answer.status_code == 200, answer.text
    publish(server, "m", ("open/x/m", {"b": False, "c": "text"}))
    answer = server.http.post("/api/v1/ingest/open?site=x", json={"device": "h", "c": "more", "d": 2})
    assert answer.status_code == 200, answer.text
    assert sorted(server.rows("SELECT device, a, b, c, d FROM open"), key=str) == [
        ["h", 1.0, None, None, None],
        ["h", None, None, "more", 2.0],
        ["h", None, True, None, None],
        ["m", None, False, "text", None],
    ]


def test_columns_and_values_survive_kills(server: Server) -> None:
    for life in range(4):
        threads = [
            threading.Thread(
                target=publish,
                args=(
                    server,
                    f"c{at}",
                    *((f"open/x/d{at}", {f"f{life}_{number}": number}) for number in range(5)),
                ),
            )
            for at in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        server.kill()
        server.start()
        for earlier in range(life + 1):
            for number in range(5):
                name = f"f{earlier}_{number}"
                assert server.value(f"SELECT count({name}) FROM open WHERE {name} = {number}") == 3, name
    # Also when nothing of it is in the log's tail any more.
    await_that("all rows in files", lambda: server.value("SELECT count(*) FROM open") == 60)
    server.stop()
    server.start()
    assert server.value("SELECT count(f0_0) FROM open") == 3
    assert server.get("/api/v1/books")["balanced"]


def test_names_are_bounded_and_values_beyond_are_kept(server: Server) -> None:
    payload = {f"name{number}": number for number in range(300)}
    publish(server, "many", ("open/x/d", payload))
    typed = [name for name in columns(server) if name.startswith("name")]
    assert len(typed) == 254, "the alarm and the query have taken two of 256"
    [[extra, *values]] = server.rows(f"SELECT _extra, {', '.join(typed)} FROM open")
    found = json.loads(extra) | dict(zip(typed, values, strict=True))
    assert found == payload

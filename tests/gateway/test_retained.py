"""What the keeper of retained messages has after any run of messages, steps and restarts."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.config import LogSettings
from headwater.database import Database
from headwater.gateway.retained import RetainedKeeper
from headwater.log.embedded import EmbeddedLog
from headwater.records import OWN_SCHEMAS, RAW_SCHEMA, Schema

NOW_US = 1_800_000_000_000_000
_FIRST = next(schema for schema in OWN_SCHEMAS if schema.id == 1)


def _append(
    log: EmbeddedLog, topic: str, payload: bytes, *, retain: bool, schema: Schema = RAW_SCHEMA
) -> None:
    row = {
        "ts": [NOW_US - 7_000_000],
        "topic": [topic],
        "client": ["c"],
        "qos": [2],
        "retain": [retain],
        "payload": [payload],
        "request": [None],
        "properties": [b"\x01\x01"],
    }
    row["ts"] = pa.array(row["ts"], pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    named = {column.name: row[column.name] for column in schema.columns}
    log.append([(schema, pa.RecordBatch.from_pydict(named, schema=schema.arrow))])


def _open(directory: Path) -> tuple[EmbeddedLog, Database]:
    return EmbeddedLog(directory / "log", LogSettings(), OWN_SCHEMAS), Database.in_directory(directory, None)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from("abc"), st.sampled_from([b"", b"1", b"2"]), st.booleans()),
            st.sampled_from(["step", "restart"]),
        ),
        max_size=20,
    )
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_last_retained_message_of_each_topic_is_kept(
    tmp_path_factory: pytest.TempPathFactory, events: list[str | tuple[str, bytes, bool]]
) -> None:
    directory = tmp_path_factory.mktemp("retained")
    log, database = _open(directory)
    keeper = RetainedKeeper(log, database, lambda: NOW_US)
    wanted: dict[str, bytes] = {}
    for event in [*events, "restart"]:
        if event == "restart":
            keeper = RetainedKeeper(log, database, lambda: NOW_US)
        elif event == "step":
            keeper.step()
        else:
            topic, payload, retain = event
            _append(log, topic, payload, retain=retain)
            if retain:
                wanted[topic] = payload
    while keeper.step():
        pass
    kept = [(topic, b"\x01\x01", payload, 2, 7) for topic, payload in sorted(wanted.items()) if payload]
    assert sorted(keeper.messages()) == kept
    log.close()
    database.close()


def test_rows_of_an_earlier_version_have_no_properties(tmp_path: Path) -> None:
    log, database = _open(tmp_path)
    _append(log, "old", b"x", retain=True, schema=_FIRST)
    _append(log, "new", b"y", retain=True)
    keeper = RetainedKeeper(log, database, lambda: NOW_US)
    while keeper.step():
        pass
    assert sorted(keeper.messages()) == [("new", b"\x01\x01", b"y", 2, 7), ("old", b"", b"x", 2, 7)]
    log.close()
    database.close()

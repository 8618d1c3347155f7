"""What the keeper of retained messages has after any run of messages, steps and restarts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.config import LogSettings
from headwater.database import Database
from headwater.gateway import retained
from headwater.gateway.retained import RetainedKeeper, StoredMessage
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


class _Given:
    """What a gateway would be given."""

    def __init__(self) -> None:
        self.messages: list[StoredMessage] = []
        self.complete = False

    def restore(self, messages: Sequence[StoredMessage]) -> None:
        assert not self.complete
        self.messages += messages

    def retained_loaded(self) -> None:
        assert not self.complete
        self.complete = True


@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_a_gateway_is_given_each_message_of_before_the_start_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(retained, "PAGE_ROWS", 4)
    log, database = _open(tmp_path)
    # Some are in the database, the others only in the log.
    for n in range(count):
        _append(log, f"t/{n}", b"x", retain=True)
        if n == count // 2:
            before = RetainedKeeper(log, database, lambda: NOW_US)
            while before.step():
                pass
    keeper = RetainedKeeper(log, database, lambda: NOW_US)
    given = _Given()
    keeper.hand_over(given)
    while keeper.step():
        pass
    assert given.complete
    assert given.messages == [(f"t/{n}", b"\x01\x01", b"x", 2, 7) for n in range(count)]
    log.close()
    database.close()


def test_nothing_is_given_before_the_log_is_read_to_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retained, "BATCH_ROWS", 1)
    log, database = _open(tmp_path)
    _append(log, "t", b"old", retain=True)
    _append(log, "t", b"new", retain=True)
    keeper = RetainedKeeper(log, database, lambda: NOW_US)
    given = _Given()
    keeper.hand_over(given)
    while not given.complete:
        assert given.messages == []
        assert keeper.step()
    assert [message[2] for message in given.messages] == [b"new"]
    log.close()
    database.close()

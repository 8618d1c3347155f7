"""Which rows the tracker hands to the state machine: none that matters is missed, whatever the batches."""

from __future__ import annotations

from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.alerts import tracker as module
from headwater.alerts.conditions import Alarm, compile_alarm
from headwater.alerts.machine import Instance, State, advance
from headwater.alerts.tracker import Tracker
from headwater.declarations import AlarmSettings
from headwater.expressions import Frame
from headwater.records import FIRST_USER_STREAM, Column, ColumnType, Schema

PARTITIONS = 2
SCHEMA = Schema(
    16,
    FIRST_USER_STREAM,
    "telemetry",
    (
        Column("site", ColumnType.STRING),
        Column("device", ColumnType.STRING),
        Column("ts", ColumnType.TIMESTAMP),
        Column("temperature", ColumnType.DOUBLE),
        Column("zone", ColumnType.BIGINT),
    ),
    "device",
)
NAMES = {column.name: column.type for column in SCHEMA.columns}


def alarm_of(**settings: Any) -> Alarm:
    return compile_alarm(
        "hot",
        AlarmSettings(**{"on": "telemetry", "where": "temperature > 80"} | settings),
        {"telemetry": SCHEMA},
    )


def numbered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as the log numbers them: partition and dense id by device, offsets by partition."""
    ids: dict[str, int] = {}
    ends = [0] * PARTITIONS
    found = []
    for row in rows:
        partition = len(row["device"] or "") % PARTITIONS
        id_ = ids.setdefault(row["device"] or "", len(ids))
        found.append(
            row | {"_key": id_ * PARTITIONS + partition, "_partition": partition, "_offset": ends[partition]}
        )
        ends[partition] += 1
    return found


def batch_of(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    types = {name: type_.arrow for name, type_ in NAMES.items()}
    types |= {"_key": pa.uint32(), "_partition": pa.uint16(), "_offset": pa.uint64()}
    return pa.RecordBatch.from_arrays(
        [pa.array([row.get(name) for row in rows], type_) for name, type_ in types.items()], names=list(types)
    )


def ends_of(rows: list[dict[str, Any]]) -> tuple[int, ...]:
    return tuple(sum(row["_partition"] == partition for row in rows) for partition in range(PARTITIONS))


def run(tracker: Tracker, rows: list[dict[str, Any]], cuts: list[int]) -> list[tuple[str, str, int, int]]:
    """(key, state, partition, offset) of all transitions, with batches cut at these rows."""
    found = []
    for begin, end in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        judgement = tracker.judge(Frame(batch_of(rows[begin:end])))
        tracker.keep(judgement, ends_of(rows[:end]))
        found += [(one.key, one.state.value, one.partition, one.offset) for one in judgement.transitions]
    return found


def reference(
    rows: list[dict[str, Any]],
    key: list[str],
    for_us: int,
    start: tuple[int, ...],
    clear_below: float = 75.0,
) -> list[tuple[str, str, int, int]]:
    """Row by row through the state machine."""
    instances: dict[str, Instance | None] = {}
    found = []
    for row in rows:
        if row["_offset"] < start[row["_partition"]]:
            continue
        values = {name: row.get(name) for name in key}
        if key == ["device"]:
            values["device"] = values["device"] or ""
        text = orjson.dumps(values, option=orjson.OPT_SORT_KEYS).decode()
        temperature = row["temperature"]
        instances[text], entered = advance(
            instances.get(text),
            raises=temperature is not None and temperature > 80,
            cancels=temperature is not None and temperature <= 80,
            resolves=temperature is not None and temperature < clear_below,
            at_us=row["ts"],
            partition=row["_partition"],
            offset=row["_offset"],
            for_us=for_us,
        )
        found += [(text, state.value, row["_partition"], row["_offset"]) for state in entered]
    return found


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "site": st.sampled_from(["a", "b"]),
            "device": st.sampled_from(["", "d", "ee", "fff", None]),
            "ts": st.integers(0, 20),
            "temperature": st.sampled_from([None, 70.0, 78.0, 81.0, 90.0]),
            "zone": st.sampled_from([None, 1, 2]),
        }
    ),
    min_size=1,
    max_size=40,
).map(numbered)


@settings(max_examples=300, deadline=None)
@given(
    ROWS,
    st.lists(st.integers(0, 40), max_size=4),
    st.sampled_from([["device"], ["site"], ["site", "zone"], ["device", "zone"]]),
    st.sampled_from([0, 3, 10]),
    st.tuples(st.integers(0, 6), st.integers(0, 6)) | st.just((0, 0)),
)
def test_equal_to_every_row_judged(
    rows: list[dict[str, Any]], cuts: list[int], key: list[str], for_us: int, start: tuple[int, int]
) -> None:
    alarm = alarm_of(clear="temperature < 75", key=key, **{"for": for_us})
    cuts = sorted(min(cut, len(rows)) for cut in cuts)
    assert run(Tracker(alarm, {}, start), rows, cuts) == reference(rows, key, for_us, start)


@settings(max_examples=100, deadline=None)
@given(ROWS, st.integers(0, 40), st.sampled_from([["device"], ["site", "zone"]]), st.sampled_from([0, 3]))
def test_restored_instances_go_on(rows: list[dict[str, Any]], cut: int, key: list[str], for_us: int) -> None:
    alarm = alarm_of(clear="temperature < 75", key=key, **{"for": for_us})
    cut = min(cut, len(rows))
    expected = reference(rows, key, for_us, (0, 0))
    first = Tracker(alarm, {}, (0, 0))
    judgement = first.judge(Frame(batch_of(rows[:cut])))
    open_: dict[str, Instance] = {}
    for one in judgement.transitions:
        open_.pop(one.key, None)
        if one.state in (State.PENDING, State.FIRING):
            open_[one.key] = one.instance
    found = [(one.key, one.state.value, one.partition, one.offset) for one in judgement.transitions]
    assert found + run(Tracker(alarm, open_, ends_of(rows[:cut])), rows[cut:], []) == expected


def test_one_instance_for_a_stream_without_a_key() -> None:
    keyless = Schema(16, FIRST_USER_STREAM, "telemetry", SCHEMA.columns, None)
    alarm = compile_alarm(
        "hot", AlarmSettings(on="telemetry", where="temperature > 80"), {"telemetry": keyless}
    )
    rows = numbered(
        [{"device": "d", "ts": n, "temperature": t} for n, t in enumerate([81.0, 90.0, 70.0, 85.0])]
    )
    found = run(Tracker(alarm, {}, (0, 0)), rows, [1])
    assert [(key, state) for key, state, _, _ in found] == [
        ("{}", "pending"), ("{}", "firing"), ("{}", "resolved"), ("{}", "pending"), ("{}", "firing"),
    ]  # fmt: skip


def test_judging_does_nothing_until_kept() -> None:
    rows = numbered([{"device": "d", "ts": 0, "temperature": 90.0}])
    tracker = Tracker(alarm_of(), {}, (0, 0))
    frame = Frame(batch_of(rows))
    assert tracker.judge(frame).transitions == tracker.judge(frame).transitions != []
    tracker.keep(tracker.judge(frame), ends_of(rows))
    assert tracker.judge(frame).transitions == []


def test_idle_keys_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_IDLE_KEYS", 3)
    rows = [{"device": "d", "site": f"s{n}", "ts": n, "temperature": 90.0} for n in range(20)]
    rows += [{"device": "d", "site": f"s{n}", "ts": n, "temperature": 70.0} for n in range(1, 20)]
    rows += [{"device": "d", "site": "s0", "ts": 99, "temperature": 70.0}]
    rows = numbered(rows)
    tracker = Tracker(alarm_of(key=["site"]), {}, (0, 0))
    found = run(tracker, rows, list(range(1, len(rows))))
    assert found == reference(rows, ["site"], 0, (0, 0), clear_below=80.1)
    assert len(tracker._slots) <= 4

"""A tracker gives what the oracle gives, row by row, for any definition, wherever batches are cut and it is
restored."""

from __future__ import annotations

from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Definition, Oracle, by_key

from headwater.alarm_settings import AlarmSettings
from headwater.alerts import keys as module
from headwater.alerts.conditions import Alarm, compile_alarm
from headwater.alerts.machine import Memory, from_json, to_json
from headwater.alerts.rows import KeyRows
from headwater.alerts.tracker import FOREVER, Tracker
from headwater.expressions import Frame
from headwater.records import FIRST_USER_STREAM, Schema
from tests.tables import table

PARTITIONS = 2
SCHEMA = table(
    "telemetry",
    "site string, device string, ts timestamp, received_at timestamp, temperature double, zone bigint",
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


Told = tuple[str, str, int, int, int]


class Run:
    """A tracker over batches, which can be taken down and made again from what it would have left in the database."""

    def __init__(self, alarm: Alarm, start: tuple[int, ...] = (0, 0)) -> None:
        self.alarm = alarm
        self.start = start
        self.saved: dict[str, Memory] = {}
        self.records: list[bytes] = []
        self.tracker = Tracker(alarm, {}, start)
        self.told: list[Told] = []

    def judge(self, rows: list[dict[str, Any]]) -> None:
        if rows:
            self._tell(self.tracker.judge(Frame(batch_of(rows))))

    def tick(self, now_us: int) -> None:
        # As the service does: only where something is due.
        if self.tracker.clock_us and self.tracker.deadline_us <= now_us:
            self._tell(self.tracker.tick(now_us))

    def commit(self, position: tuple[int, ...]) -> None:
        for key, memory in self.tracker.unsaved().items():
            self.saved.pop(key, None)
            if memory is not None:
                self.saved[key] = from_json(to_json(memory))
        record = self.tracker.rows.record() if self.tracker.rows is not None else None
        if record is not None:
            self.records.append(record)
        self.tracker.saved(position)

    def restart(self) -> None:
        rows = KeyRows.restored("hot", self.records) if self.tracker.rows is not None else None
        self.tracker = Tracker(self.alarm, self.saved, self.start, self.tracker.clock_us, rows)

    def _tell(self, transitions: Any) -> None:
        self.told += [(one.key, one.state.value, one.at_us, one.partition, one.offset) for one in transitions]


def text_of(row: dict[str, Any], key: list[str]) -> str:
    values = {name: row.get(name) for name in key}
    if key == ["device"]:
        values["device"] = values["device"] or ""
    return orjson.dumps(values, option=orjson.OPT_SORT_KEYS).decode()


def above(limit: float, column: str = "temperature") -> Any:
    return lambda row: None if row[column] is None else row[column] > limit


def below(limit: float, column: str = "temperature") -> Any:
    return lambda row: None if row[column] is None else row[column] < limit


#: Settings in TOML's words beside the oracle's definition of the same.
CONDITIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "where": ({"where": "temperature > 80"}, {"steps": [(above(80), None)]}),
    "hysteresis": (
        {"where": "temperature > 80", "clear": "temperature < 75"},
        {"steps": [(above(80), None)], "clear": below(75)},
    ),
    "any": (
        {"any": ["temperature > 85", "zone > 1"]},
        {"steps": [(lambda row: any3(above(85)(row), above(1, "zone")(row)), None)]},
    ),
    "all": (
        {"all": ["temperature > 75", "zone > 1"]},
        {"steps": [(lambda row: all3(above(75)(row), above(1, "zone")(row)), None)]},
    ),
    "steps": (
        {
            "steps": [
                {"where": "temperature > 80", "severity": "minor"},
                {"where": "temperature > 85", "clear": "temperature < 79", "severity": "critical"},
            ]
        },
        {"steps": [(above(80), None), (above(85), below(79))]},
    ),
    "steps and clear": (
        {
            "steps": [
                {"where": "temperature > 77", "severity": "minor"},
                {"where": "temperature > 80", "severity": "major"},
                {"where": "temperature > 85", "severity": "critical"},
            ],
            "clear": "temperature < 75",
        },
        {"steps": [(above(77), None), (above(80), None), (above(85), None)], "clear": below(75)},
    ),
    "rate": (
        {"where": "rate > 2", "rate": {"of": "temperature", "per": "1ms"}},
        {"steps": [(above(2, "rate"), None)], "rate": ("temperature", 1000)},
    ),
    "silent": ({"silent": "0.009ms"}, {"silent_us": 9}),
    "heartbeat": ({"silent": "0.009ms", "where": "temperature > 75"}, {"silent_us": 9}),
}


def any3(*values: bool | None) -> bool | None:
    return True if True in values else None if None in values else False


def all3(*values: bool | None) -> bool | None:
    return False if False in values else None if None in values else True


MODIFIERS = st.fixed_dictionaries(
    {
        "for_us": st.sampled_from([0, 0, 3, 10]),
        "repeat": st.sampled_from([None, None, (2, 3)]),
        "clear_after_us": st.sampled_from([None, None, 4]),
        "flap": st.sampled_from([None, None, (1, 8), (2, 30)]),
    }
)


def both(condition: str, modifiers: dict[str, Any], key: list[str]) -> tuple[Alarm, Definition]:
    settings_, definition = CONDITIONS[condition]
    words: dict[str, Any] = {"where": None, "key": key, "max_ahead": "0.03ms", **settings_}
    given_ = dict(modifiers)
    if "silent" in settings_:
        given_ = {"flap": given_["flap"]}
    if given_.get("for_us"):
        words["for"] = f"{given_['for_us'] / 1000}ms"
    if given_.get("repeat"):
        words["repeat"] = dict(zip(("count", "of"), given_["repeat"], strict=True))
    if given_.get("clear_after_us"):
        words["clear_after"] = f"{given_['clear_after_us'] / 1000}ms"
    if given_.get("flap"):
        words["flap"] = {"changes": given_["flap"][0], "within": f"{given_['flap'][1] / 1000}ms"}
    return alarm_of(**words), Definition(**definition, **given_, max_ahead_us=30)


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "site": st.sampled_from(["a", "b"]),
            "device": st.sampled_from(["", "d", "ee", "fff", None]),
            "ts": st.integers(1, 60) | st.integers(1, 60) | st.just(5000),
            "received_at": st.sampled_from([None, 30, 60]),
            "temperature": st.sampled_from([None, 70.0, 78.0, 81.0, 90.0]),
            "zone": st.sampled_from([None, 1, 2]),
        }
    ),
    min_size=1,
    max_size=40,
).map(numbered)
KEYS = [["device"], ["site"], ["site", "zone"], ["device", "zone"]]


@settings(max_examples=1000, deadline=None)
@given(
    st.sampled_from(sorted(CONDITIONS)),
    MODIFIERS,
    st.sampled_from(KEYS),
    ROWS,
    st.lists(
        st.tuples(st.integers(0, 40), st.sampled_from(["cut", "commit", "restart", "tick"])), max_size=6
    ),
    st.tuples(st.integers(0, 6), st.integers(0, 6)) | st.just((0, 0)),
)
def test_equal_to_the_oracle_whatever_the_batches(
    condition: str,
    modifiers: dict[str, Any],
    key: list[str],
    rows: list[dict[str, Any]],
    events: list[tuple[int, str]],
    start: tuple[int, int],
) -> None:
    alarm, definition = both(condition, modifiers, key)
    oracle, run = Oracle(definition), Run(alarm, start)
    done = 0
    cuts = sorted((min(at, len(rows)), event) for at, event in events)
    for at, event in [*cuts, (len(rows), "end")]:
        run.judge(rows[done:at])
        for row in rows[done:at]:
            if row["_offset"] >= start[row["_partition"]]:
                alive = condition != "heartbeat" or above(75)(row) is True
                oracle.row(text_of(row, key), row, alive)
        done = at
        if event in ("commit", "restart"):
            run.commit(ends_of(rows[:at]))
        if event == "restart":
            run.restart()
        if event in ("tick", "end") and oracle.now:
            run.tick(oracle.now + 15)
            oracle.tick(oracle.now + 15)
            run.tracker.clock_us = max(run.tracker.clock_us, oracle.now if alarm.rules.timed else 0)
    assert by_key(run.told) == by_key([each[:5] for each in oracle.told])
    if alarm.rules.timed:
        assert run.tracker.clock_us == oracle.now


def test_one_instance_for_a_stream_without_a_key() -> None:
    keyless = Schema(16, FIRST_USER_STREAM, "telemetry", SCHEMA.columns, None)
    alarm = compile_alarm(
        "hot", AlarmSettings(on="telemetry", where="temperature > 80"), {"telemetry": keyless}
    )
    rows = numbered(
        [{"device": "d", "ts": n, "temperature": t} for n, t in enumerate([81.0, 90.0, 70.0, 85.0])]
    )
    run = Run(alarm)
    run.judge(rows[:1])
    run.judge(rows[1:])
    assert [(key, state) for key, state, *_ in run.told] == [
        ("{}", "pending"), ("{}", "firing"), ("{}", "resolved"), ("{}", "pending"), ("{}", "firing"),
    ]  # fmt: skip


@pytest.mark.parametrize("key", [["device"], ["site"], []])
def test_a_keyless_or_keyed_fleet_falls_silent(key: list[str]) -> None:
    alarm = alarm_of(where=None, silent="5m", key=key)
    run = Run(alarm)
    run.judge(numbered([{"device": "d", "site": "a", "ts": 1_000_000, "temperature": 1.0}]))
    assert run.tracker.deadline_us == 301_000_000
    run.tick(300_999_999)
    assert run.told == []
    run.tick(301_000_000)
    assert [(state, at) for _, state, at, *_ in run.told] == [
        ("pending", 301_000_000), ("firing", 301_000_000),
    ]  # fmt: skip
    assert run.tracker.deadline_us == FOREVER


def test_idle_keys_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_IDLE_KEYS", 3)
    rows = [{"device": "d", "site": f"s{n}", "ts": n, "temperature": 90.0} for n in range(20)]
    rows += [{"device": "d", "site": f"s{n}", "ts": n, "temperature": 70.0} for n in range(1, 20)]
    rows += [{"device": "d", "site": "s0", "ts": 99, "temperature": 70.0}]
    rows = numbered(rows)
    run = Run(alarm_of(key=["site"]))
    oracle = Oracle(Definition(steps=[(above(80), None)]))
    for at, row in enumerate(rows, 1):
        run.judge([row])
        run.commit(ends_of(rows[:at]))
        oracle.row(text_of(row, ["site"]), row)
    assert by_key(run.told) == by_key([each[:5] for each in oracle.told])
    assert len(run.tracker.keys._by_key) <= 4


@pytest.mark.parametrize("words", [{}, {"where": None, "silent": "1s"}, {"rate": {"of": "temperature"}}])
def test_keys_are_bounded(words: dict[str, Any]) -> None:
    run = Run(alarm_of(max_keys=2, **words))
    rows = [{"device": "d" * n, "ts": n, "temperature": 90.0} for n in range(1, 6)]
    run.judge(numbered(rows + rows))
    assert run.tracker.refused > 0
    assert len(run.tracker.unsaved()) <= 2
    assert run.tracker.rows is None or len(run.tracker.rows) == 2


def test_a_clock_that_lies_moves_no_time() -> None:
    run = Run(alarm_of(where=None, silent="1s"))
    rows = [
        {"device": "d", "ts": 10_000_000, "received_at": 10_000_000},
        {"device": "ee", "ts": 10**15, "received_at": 10_000_000},
        {"device": "ee", "ts": 1, "received_at": 10_500_000},
    ]
    run.judge(numbered(rows))
    assert run.tracker.clock_us == 10_000_000
    assert run.told == []
    run.tick(11_000_000)
    assert [key for key, state, *_ in run.told if state == "firing"] == ['{"device":"d"}', '{"device":"ee"}']

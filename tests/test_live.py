"""What is declared and how it changes: a real registry and log; the parts that follow are in the integration tests."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from headwater import database as db
from headwater import registry, schemas
from headwater.config import LogSettings, Settings, load
from headwater.database import Database
from headwater.declared import started
from headwater.effects import Running
from headwater.errors import ConfigError, ConflictError, NotFoundError, OutdatedError
from headwater.live import Live, parsed
from headwater.log.embedded import EmbeddedLog

SQL = """SELECT device, window_start, window_end, AVG(t) AS mean FROM TABLE(TUMBLE(TABLE readings,
         DESCRIPTOR(ts), INTERVAL '1' MINUTES)) GROUP BY device, window_start, window_end"""
READINGS = {"topic": "dt/{device}", "fields": {"t": "double"}}
HOT = {"on": "readings", "where": "t > 80"}


class Bench:
    """A registry with its log; what would run is what is declared."""

    def __init__(self, directory: Path, file: Settings | None = None) -> None:
        self.now_us = 1_790_000_000_000_000
        self.file = file or Settings()
        self.database = Database.in_directory(directory, None)
        self.settings = started(self.database, self.file, self.clock())
        with self.database.read() as connection:
            known = db.schemas(connection)
        self.log = EmbeddedLog(directory / "log", LogSettings(segment_bytes=1 << 20), known)
        self.failing: Exception | None = None
        self.dropped: list[str] = []
        self.settle(self.settings)
        self.live = Live(self.database, self.log, self.file, self.running, self.settle, self.drop, self.clock)

    def clock(self) -> int:
        self.now_us += 1
        return self.now_us

    def settle(self, settings: Settings) -> None:
        if self.failing is not None:
            raise self.failing
        schemas.registered(self.database, self.log, settings)
        self.settings = settings

    def running(self) -> Running:
        return Running(self.settings, *schemas.preview(self.database, self.log, self.settings))

    def drop(self, kind: registry.Kind, name: str) -> None:
        self.dropped.append(f"{kind}.{name}")

    def actions(self, sections: dict[str, Any]) -> list[str]:
        return [f"{each.action} {'.'.join(each.key)}" for each in self.live.plan(sections).changes]

    def close(self) -> None:
        self.log.close()
        self.database.close()
        # The log's directory is free when nobody refers to the log.
        del self.log, self.live
        gc.collect()


@contextmanager
def bench_of(directory: Path, file: Settings | None = None) -> Iterator[Bench]:
    opened = Bench(directory, file)
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with bench_of(tmp_path) as opened:
        yield opened


def file_of(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "headwater.toml"
    path.write_text(text, encoding="utf-8")
    return load(path, environ={})


FILE = """
[streams.readings]
topic  = "dt/{device}"
fields = { t = "double" }
[notify.ops]
url = "mqtt:alarms/{device}"
[[routes]]
match = { severity = "critical" }
steps = [{ to = ["ops"] }]
"""


def test_an_object_is_made_changed_paused_deleted_and_made_again(bench: Bench) -> None:
    made = bench.live.put("streams", "readings", READINGS, None, "ann")
    assert [(c.action, c.from_version, c.to_version) for c in made.changes] == [("create", None, 1)]
    bench.live.put("alarms", "hot", HOT, 0, "ann")
    changed = bench.live.put("alarms", "hot", {**HOT, "where": "t > 90"}, 1, "bob")
    assert [(c.action, c.from_version, c.to_version) for c in changed.changes] == [("change", 1, 2)]
    assert bench.live.put("alarms", "hot", {**HOT, "where": "t > 90"}, 2).changes == []
    paused = bench.live.pause("alarms", "hot", True, None)
    assert paused.changes[0].action == "pause"
    assert bench.settings.alarms["hot"].paused
    assert bench.live.pause("alarms", "hot", False, 3).changes[0].action == "resume"
    bench.live.delete("alarms", "hot", None, "cid")
    assert "hot" not in bench.settings.alarms
    with pytest.raises(NotFoundError):
        bench.live.object("alarms", "hot")
    again = bench.live.put("alarms", "hot", HOT, 0)
    assert again.changes[0].to_version == 6
    history = bench.live.changes("alarms", "hot", 100, None)
    assert [(row["who"], row["action"], row["from_version"], row["to_version"]) for row in history] == [
        ("api", "create", None, 6),
        ("cid", "delete", 4, 5),
        ("api", "resume", 3, 4),
        ("api", "pause", 2, 3),
        ("bob", "change", 1, 2),
        ("ann", "create", None, 1),
    ]
    assert [row["definition"]["where"] for row in history[-2:]] == ["t > 90", "t > 80"]


def test_a_version_that_is_not_the_one_is_refused(bench: Bench) -> None:
    bench.live.put("streams", "readings", READINGS, None)
    for version in (0, 2):
        with pytest.raises(OutdatedError, match="version 1 by now"):
            bench.live.put("streams", "readings", {**READINGS, "lateness": "1s"}, version)
    with pytest.raises(OutdatedError, match="there is none"):
        bench.live.put("alarms", "hot", HOT, 1)
    with pytest.raises(OutdatedError):
        bench.live.delete("streams", "readings", 7)


def test_a_change_between_plan_and_apply_is_refused(bench: Bench) -> None:
    sections = {"streams": {"readings": READINGS}, "alarms": {"hot": HOT}}
    planned = bench.live.plan(sections)
    bench.live.put("streams", "other", READINGS, None)
    with pytest.raises(OutdatedError, match="plan again"):
        bench.live.apply(sections, planned.revision)
    assert "hot" not in bench.settings.alarms
    assert bench.actions(sections) == [
        "delete streams.other",
        "create streams.readings",
        "create alarms.hot",
    ]
    applied = bench.live.apply(sections, bench.live.plan(sections).revision)
    assert {change.action for change in applied.changes} == {"create", "delete"}
    assert {row["revision"] for row in bench.live.changes(None, None, 3, None)} == {applied.revision}


def test_an_apply_is_all_or_nothing(bench: Bench) -> None:
    before = bench.live.objects()
    with pytest.raises(ConfigError, match=r"queries\.means\.sql at character"):
        bench.live.apply({"streams": {"readings": READINGS}, "queries": {"means": {"sql": "SELECT 1"}}}, None)
    with pytest.raises(ConfigError, match=r"alarms\.hot\.where.*no column"):
        bench.live.apply(
            {"streams": {"readings": READINGS}, "alarms": {"hot": {**HOT, "where": "x > 1"}}}, None
        )
    assert bench.live.objects() == before
    assert bench.settings.streams == {}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"log": {}}, "all else is set at the start"),
        ({"streams": {"readings": {"topic": "a/{device}"}}}, r"streams\.readings\.fields: is required"),
        (
            {"streams": {"readings": {**READINGS, "felds": 1}}},
            r"streams\.readings\.felds: unknown key; did you mean",
        ),
        ({"alarms": {"hot": {**HOT, "for": "ten"}}}, r"alarms\.hot\.for: .*no duration"),
        ({"alarms": {"hot": HOT}}, r"alarms\.hot\.on: 'readings' is no stream or query"),
        ({"streams": {"Readings": READINGS}}, "a name is lower-case letters"),
        ({"routes": [{"steps": [{"to": ["nobody"]}]}]}, "'nobody' is no"),
        ({"routes": {"a": 1}}, r"write \[\[routes\]\]"),
        ({"streams": []}, r"write \[streams.NAME\]"),
    ],
)
def test_what_is_wrong_is_named(bench: Bench, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bench.live.plan(sections)


def test_what_others_read_cannot_be_deleted(bench: Bench) -> None:
    bench.live.apply({"streams": {"readings": READINGS}, "alarms": {"hot": HOT}}, None)
    with pytest.raises(ConfigError, match="'readings' is no stream or query"):
        bench.live.delete("streams", "readings", None)


def test_a_deleted_stream_keeps_its_table_until_it_is_purged(bench: Bench) -> None:
    bench.live.put("streams", "readings", READINGS, None)
    with pytest.raises(ConflictError, match="delete it first"):
        bench.live.purge("streams", "readings")
    deleted = bench.live.delete("streams", "readings", None)
    assert "readable, until it is purged" in deleted.changes[0].effect
    assert bench.live.object("streams", "readings").deleted
    assert bench.live.export() == {}
    bench.live.put("streams", "source", READINGS, None)
    with pytest.raises(ConflictError, match="purge it, or choose another name"):
        bench.live.put("queries", "readings", {"sql": SQL.replace("TABLE readings", "TABLE source")}, None)
    back = bench.live.put("streams", "readings", READINGS, 0)
    assert (back.changes[0].to_version, bench.dropped) == (3, [])
    bench.live.delete("streams", "readings", 3)
    assert [c.action for c in bench.live.purge("streams", "readings").changes] == ["purge"]
    assert bench.dropped == ["streams.readings"]
    with pytest.raises(NotFoundError):
        bench.live.object("streams", "readings")


def test_a_type_never_changes_and_a_key_neither(bench: Bench) -> None:
    bench.live.put("streams", "readings", READINGS, None)
    with pytest.raises(ConfigError, match="never changes type"):
        bench.live.put("streams", "readings", {**READINGS, "fields": {"t": "string"}}, None)
    with pytest.raises(ConfigError, match="by which its rows are partitioned"):
        bench.live.put("streams", "readings", {**READINGS, "topic": "dt/{site}"}, None)


def test_the_plan_says_what_happens_to_windows(bench: Bench) -> None:
    bench.live.apply({"streams": {"readings": READINGS}, "queries": {"means": {"sql": SQL}}}, None)

    def change(sql: str, **more: Any) -> tuple[str, str]:
        sections = {"streams": {"readings": READINGS}, "queries": {"means": {"sql": sql, **more}}}
        [only] = bench.live.plan(sections).changes
        return only.action, only.effect

    assert change(SQL.replace("\n", " ")) == ("change", "windows are kept")
    assert change(SQL, late="drop") == ("change", "windows are kept")
    action, effect = change(SQL.replace("GROUP", "WHERE t > 1 GROUP"))
    assert (action, effect.split(":")[0]) == ("replace", "windows do not fit")


def test_dedupe_changes_only_while_a_stream_is_paused(bench: Bench) -> None:
    deduped = {**READINGS, "dedupe": ["device", "ts"]}
    bench.live.put("streams", "readings", READINGS, None)
    with pytest.raises(ConflictError, match="pause it"):
        bench.live.put("streams", "readings", deduped, None)
    bench.live.pause("streams", "readings", True, None)
    bench.live.put("streams", "readings", {**deduped, "paused": True}, None)
    bench.live.pause("streams", "readings", False, None)
    assert bench.settings.streams["readings"].dedupe == ["device", "ts"]


def test_the_file_owns_what_it_declares(tmp_path: Path) -> None:
    with bench_of(tmp_path, file_of(tmp_path, FILE)) as bench:
        for refused in (
            lambda: bench.live.put("streams", "readings", {**READINGS, "lateness": "1s"}, None),
            lambda: bench.live.pause("streams", "readings", True, None),
            lambda: bench.live.delete("routes", "file_route_1", None),
            lambda: bench.live.plan({"streams": {"readings": {**READINGS, "lateness": "1s"}}}),
        ):
            with pytest.raises(ConflictError, match=r"is declared in .*headwater\.toml"):
                refused()
        bench.live.put("alarms", "hot", HOT, None)
        # What the file declares may be missing in what is applied, or be there as it is.
        assert bench.actions({"alarms": {"hot": HOT}}) == []
        assert bench.actions({"streams": {"readings": READINGS}}) == ["delete alarms.hot"]
        assert bench.actions(bench.live.export()) == []
        assert [route.name for route in bench.settings.routes] == ["file_route_1"]
        bench.live.put("routes", "night", {"steps": [{"to": ["ops"], "after": "5m"}]}, None)
        assert [(route.name, route.order) for route in bench.settings.routes] == [
            ("file_route_1", 1),
            ("night", 1000),
        ]


def test_a_start_applies_the_file(tmp_path: Path) -> None:
    with bench_of(tmp_path, file_of(tmp_path, FILE)) as bench:
        bench.live.put("alarms", "hot", HOT, None)
        first = bench.live.objects()[0]
    with bench_of(tmp_path, file_of(tmp_path, FILE)) as bench:
        assert bench.live.objects()[0] == first, "an unchanged file changes nothing"
        assert "hot" in bench.settings.alarms
    # The file takes over what the API has made.
    taken = FILE + '[alarms.hot]\non = "readings"\nwhere = "t > 70"\n'
    with bench_of(tmp_path, file_of(tmp_path, taken)) as bench:
        hot = bench.live.object("alarms", "hot")
        assert (hot.owner, hot.version, hot.definition["where"]) == ("file", 2, "t > 70")
        assert hot.who.endswith("headwater.toml")
    # And what it names no more is deleted; of a stream the table stays.
    with pytest.raises(ConfigError, match=r"alarms\.hot\.on: 'readings' is no stream"):
        file_of(tmp_path, '[alarms.hot]\non = "readings"\nwhere = "t > 70"\n')
    with bench_of(tmp_path, Settings()) as bench:
        assert [key for key, each in bench.live.objects()[1].items() if not each.deleted] == []
        assert bench.live.object("streams", "readings").deleted


def test_a_file_that_lacks_what_the_api_needs_is_refused_whole(tmp_path: Path) -> None:
    with bench_of(tmp_path, file_of(tmp_path, FILE)) as bench:
        bench.live.put("alarms", "hot", HOT, None)
        before = bench.live.objects()
    with pytest.raises(
        ConfigError, match=r"what the API has declared: alarms\.hot\.on.*delete it by the API first"
    ):
        Bench(tmp_path, Settings())
    with bench_of(tmp_path, file_of(tmp_path, FILE)) as bench:
        assert bench.live.objects() == before


def test_a_change_that_cannot_follow_is_committed_and_tried_again(bench: Bench) -> None:
    bench.failing = OSError("no space left")
    made = bench.live.put("streams", "readings", READINGS, None)
    assert not made.in_effect
    assert bench.settings.streams == {}
    with pytest.raises(OSError, match="no space left"):
        bench.live.step()
    bench.failing = None
    bench.live.step()
    assert list(bench.settings.streams) == ["readings"]
    assert bench.live.put("streams", "readings", READINGS, None).changes == []


def test_numbers_are_bounded(tmp_path: Path) -> None:
    bounds = "[registry]\nmax_alarms = 2\nmax_streams = 1\nmax_definition_bytes = 500\nmax_changes = 3\n"
    with bench_of(tmp_path, file_of(tmp_path, bounds)) as bench:
        bench.live.put("streams", "readings", READINGS, None)
        with pytest.raises(ConflictError, match=r"registry\.max_streams = 1"):
            bench.live.put("streams", "more", READINGS, None)
        for name in ("a", "b"):
            bench.live.put("alarms", name, HOT, None)
        with pytest.raises(ConflictError, match=r"3 alarms are more than registry\.max_alarms = 2"):
            bench.live.put("alarms", "c", HOT, None)
        with pytest.raises(ConflictError, match=r"max_definition_bytes = 500"):
            bench.live.put("alarms", "a", {**HOT, "where": " OR ".join(["t > 80"] * 50)}, None)
        for limit in range(5):
            bench.live.put("alarms", "a", {**HOT, "where": f"t > {limit}"}, None)
        assert len(bench.live.changes(None, None, 100, None)) == 3
        assert bench.live.object("alarms", "a").version == 6


def test_queries_keep_to_the_memory_budget(tmp_path: Path) -> None:
    text = "memory_budget = 2147483648\n" + FILE + f'[queries.means]\nsql = """{SQL}"""\n'
    with (
        bench_of(tmp_path, file_of(tmp_path, text)) as bench,
        pytest.raises(ConfigError, match="memory_budget"),
    ):
        bench.live.apply({"queries": {f"means_{n}": {"sql": SQL} for n in range(200)}}, None)


# ---- properties

NAMES = st.sampled_from(["a", "b", "c", "d"])
DURATIONS = st.integers(1, 10**13)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8)


@st.composite
def streams(draw: st.DrawFn) -> dict[str, Any]:
    """The same columns each time: a declared column never changes type."""
    fields: dict[str, Any] = {"t": "double", "n": draw(st.sampled_from(["bigint", {"type": "bigint"}]))}
    found: dict[str, Any] = {
        "topic": draw(st.sampled_from(["dt/{device}", "x/+/{device}"])),
        "fields": fields,
    }
    optional = {
        "lateness": DURATIONS.map(lambda us: us if us % 2 else f"{us / 1000}ms"),
        "late": st.sampled_from(["amend", "drop"]),
        "time": st.sampled_from(["ts", {"path": "ts"}, {"path": "ts", "unit": "ms"}]),
        "books": st.just(["device"]),
        "paused": st.booleans(),
    }
    return found | draw(st.fixed_dictionaries({}, optional=optional))


@st.composite
def alarms(draw: st.DrawFn, on: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "on": draw(st.sampled_from(on)),
        "severity": draw(st.sampled_from(["major", "minor"])),
    }
    found["where"] = f"t > {draw(st.integers(0, 99))}"
    optional = {
        "for": DURATIONS,
        "key": st.sampled_from([[], ["device"]]),
        "labels": st.dictionaries(st.sampled_from(["team", "line"]), TEXTS, max_size=2),
        "repeat": st.just({"count": 2, "of": 3}),
        "schedule": st.sampled_from(
            [{"from": "08:00", "to": "17:00"}, [{"days": ["mon"], "zone": "Europe/Berlin"}]]
        ),
        "notify": st.just(["ops"]),
        "paused": st.booleans(),
    }
    return found | draw(st.fixed_dictionaries({}, optional=optional))


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    found: dict[str, Any] = {"streams": draw(st.dictionaries(NAMES, streams(), max_size=3))}
    if on := list(found["streams"]):
        found["alarms"] = draw(st.dictionaries(NAMES, alarms(on), max_size=3))
        sql = {"sql": SQL.replace("TABLE readings", f"TABLE {on[0]}")}
        found["queries"] = draw(st.sampled_from([{}, {"q": sql}, {"q": {**sql, "paused": True}}]))
    steps = st.sampled_from([[{"to": ["ops"]}], [{"to": ["ops"]}, {"after": "5m", "to": ["ops"]}]])
    match = st.sampled_from(
        [{}, {"match": {"device": "pump-*"}}, {"match": ["severity!=minor"], "continue": True}]
    )
    route = st.tuples(steps, match).map(lambda parts: {"steps": parts[0], **parts[1]})
    found["routes"] = draw(st.lists(route, max_size=3))
    return found


SLOW = hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@SLOW
@given(sequence=st.lists(files(), min_size=1, max_size=4))
def test_whatever_is_applied_its_export_plans_nothing(sequence: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = file_of(Path(directory), '[notify.ops]\nurl = "mqtt:alarms/{device}"\n')
        with bench_of(Path(directory), file) as bench:
            for sections in sequence:
                planned = bench.live.plan(sections)
                applied = bench.live.apply(sections, planned.revision)
                assert [c.key for c in applied.changes] == [c.key for c in planned.changes]
                assert bench.live.plan(sections).changes == []
                exported = bench.live.export()
                assert bench.live.plan(exported).changes == []
                assert parsed(exported) == parsed(sections)
                assert registry.declared(bench.settings) == parsed(sections)
            last = bench.live.objects()
        # A start finds the same.
        with bench_of(Path(directory), file) as again:
            assert again.live.objects() == last
            assert registry.declared(again.settings) == parsed(sequence[-1])


@SLOW
@given(sections=files())
def test_a_definition_is_written_as_it_is_read(sections: dict[str, Any]) -> None:
    found = parsed(sections)
    rewritten: dict[str, Any] = {kind: {} for kind in ("streams", "queries", "alarms")}
    routes = []
    for (kind, name), definition in found.items():
        if kind == "routes":
            routes.append({"name": name, **definition})
        else:
            rewritten[kind][name] = definition
    assert parsed({**rewritten, "routes": routes}) == found

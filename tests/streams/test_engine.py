"""The embedded engine over a real log: windows, lateness, idleness, restarts, kills."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from headwater import _native
from headwater.config import EngineSettings
from headwater.errors import DataDirectoryError, LogFullError, QueryLimitError
from headwater.records import STEPS
from headwater.streams import checkpoint as checkpoint_module
from headwater.streams import query as query_module
from headwater.streams.checkpoint import Encoded, Writer, read_checkpoint
from headwater.streams.sql import Plan
from tests.streams.harness import Harness, Inline, Late
from tests.tables import table

SOURCE = table("t", "device string, ts timestamp, received_at timestamp, x double, k bigint, mode string")
WINDOW = "TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' SECONDS))"
BY_DEVICE = (
    f"SELECT device, COUNT(*) AS n, SUM(x) AS s, AVG(k) AS a, MIN(k) AS lo, MAX(x) AS hi FROM {WINDOW} "
    "GROUP BY device, window_start, window_end"
)
BY_MODE = (
    f"SELECT mode, k, COUNT(x) AS n, MAX(ts) AS last FROM {WINDOW} GROUP BY k, mode, window_start, window_end"
)
BY_ARRIVAL = (
    f"SELECT received_at AS at, COUNT(*) AS n FROM {WINDOW} GROUP BY received_at, window_start, window_end"
)
IN_ALL = f"SELECT COUNT(*) AS n, AVG(x) AS a FROM {WINDOW} GROUP BY window_start, window_end"
HOPPING = (
    "SELECT device, COUNT(*) AS n, SUM(x) AS s, STDDEV_SAMP(x) AS sd, LAST_VALUE(k) AS last, "
    "COUNT(DISTINCT mode) AS modes, PERCENTILE(x, 0.9) AS p90, LAST_VALUE(mode) AS mode "
    "FROM TABLE(HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '5' SECONDS, INTERVAL '20' SECONDS)) "
    "GROUP BY device, window_start, window_end"
)
CUMULATING = (
    "SELECT mode, COUNT(*) AS n, VAR_POP(k) AS v, FIRST_VALUE(x) AS first, MIN(ts) AS since "
    "FROM TABLE(CUMULATE(TABLE t, DESCRIPTOR(ts), INTERVAL '5' SECONDS, INTERVAL '30' SECONDS)) "
    "GROUP BY mode, window_start, window_end"
)
SESSIONS = (
    "SELECT device, COUNT(*) AS n, SUM(k) AS s, FIRST_VALUE(x) AS first, COUNT(DISTINCT k) AS ks, MAX(ts) AS until, "
    "FIRST_VALUE(mode) AS mode "
    "FROM TABLE(SESSION(TABLE t PARTITION BY device, DESCRIPTOR(ts), INTERVAL '6' SECONDS)) "
    "GROUP BY device, window_start, window_end"
)
IN_ALL_SESSIONS = (
    "SELECT COUNT(*) AS n, PERCENTILE(k, 0.5) AS median, STDDEV_POP(x) AS sd "
    "FROM TABLE(SESSION(TABLE t, DESCRIPTOR(ts), INTERVAL '1' SECOND)) GROUP BY window_start, window_end"
)
S = 1_000_000


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    found = Harness(tmp_path, SOURCE, partitions=1)
    yield found
    found.close()


def row(
    device: str | None, at_s: float, x: float | None = 1.0, k: int | None = 1, **more: Any
) -> dict[str, Any]:
    return {"device": device, "ts": round(at_s * S), "received_at": round(at_s * S), "x": x, "k": k, **more}


def test_a_window_closes_when_the_watermark_reaches_its_end(harness: Harness) -> None:
    found = harness.add("q", BY_DEVICE, lateness_us=2 * S)
    harness.append("t", [row("a", 1, 1.5), row("b", 3, 2.0, 7), row("a", 9.999, 0.25, 4)])
    harness.append("t", [row("a", 11.999)])
    harness.settle()
    assert harness.rows("q") == []
    harness.append("t", [row("a", 12)])
    harness.settle()
    assert harness.latest(found) == {("a", 0): [2, 1.75, 2, 1, 1.5], ("b", 0): [1, 2.0, 7, 7, 2.0]}
    first = harness.rows("q")[0]
    assert (first["window_start"], first["window_end"], first["ts"], first["revision"]) == (
        0,
        10 * S,
        10 * S - 1000,
        0,
    )
    harness.check(found, 2 * S)


def test_late_rows_amend_windows_that_are_held(harness: Harness) -> None:
    found = harness.add("q", BY_DEVICE)
    harness.append("t", [row("a", 1), row("a", 10)])
    harness.settle()
    harness.append("t", [row("a", 2), row("b", 3)])
    harness.settle()
    revisions = [(r["device"], r["n"], r["revision"]) for r in harness.rows("q")]
    assert revisions == [("a", 1, 0), ("a", 2, 1), ("b", 1, 0)]
    assert harness.engine.metrics()["q"]["late"] == 2
    assert harness.engine.metrics()["q"]["amendments"] == 1
    harness.check(found)


def test_rows_for_windows_no_longer_held_are_dropped_and_counted(harness: Harness) -> None:
    found = harness.add("q", BY_DEVICE)
    held = harness.settings.amend_windows
    harness.append("t", [row("a", 5), row("a", 15), row("a", 10 * (held + 1))])
    harness.append("t", [row("a", 6), row("a", 16)])
    harness.settle()
    assert harness.engine.metrics()["q"]["dropped"] == 1
    assert harness.engine.metrics()["q"]["late"] == 1
    harness.check(found)


def test_with_late_drop_no_window_is_amended(harness: Harness) -> None:
    found = harness.add("q", BY_DEVICE, late="drop")
    harness.append("t", [row("a", 1), row("a", 10), row("a", 2), row("a", 11)])
    harness.settle()
    assert [(r["n"], r["revision"]) for r in harness.rows("q")] == [(1, 0)]
    assert harness.engine.metrics()["q"]["dropped"] == 1
    harness.check(found, late="drop")


@pytest.mark.parametrize("sql", [BY_DEVICE, BY_MODE, BY_ARRIVAL, IN_ALL, HOPPING, CUMULATING, SESSIONS])
def test_nulls_and_groups(harness: Harness, sql: str) -> None:
    found = harness.add("q", sql)
    rows = [
        row("a", 1, None, None, mode=None),
        row("a", 2, None, -7, mode="auto"),
        row("b", 3, 1.0, -2, mode="auto"),
        row("b", 4, -0.5, -2, mode=None),
        row("c", 5, 4.0, None, mode=""),
        row("a", 31, mode="auto"),
    ]
    harness.append("t", rows)
    harness.settle()
    assert len(harness.check(found).windows) >= 1


def test_where_leaves_rows_out_but_they_move_the_watermark(harness: Harness) -> None:
    found = harness.add(
        "q", f"SELECT COUNT(*) AS n FROM {WINDOW} WHERE x > 1 GROUP BY window_start, window_end"
    )
    harness.append("t", [row("a", 1, 5.0), row("a", 2, 0.5), row("a", 3, None), row("a", 10, 0.0)])
    harness.settle()
    assert harness.latest(found) == {(0,): [1]}
    assert harness.engine.metrics()["q"]["filtered"] == 3
    harness.check(found, where=lambda r: r["x"] is not None and r["x"] > 1)


def test_a_partition_without_rows_holds_windows_open_until_it_is_idle(tmp_path: Path) -> None:
    harness = Harness(tmp_path, SOURCE, partitions=4)
    found = harness.add("q", BY_DEVICE)
    harness.settle()
    harness.append("t", [row("a", 1)])
    harness.append("t", [row("a", 25)])
    harness.settle()
    assert harness.rows("q") == []
    harness.now_us += harness.settings.idle_timeout - 2 * S
    harness.append("t", [row("a", 26)])
    harness.settle()
    assert harness.latest(found).keys() == {("a", 0)}
    harness.check(found)
    harness.close()


def test_with_all_partitions_idle_the_last_window_waits_for_the_next_reading(tmp_path: Path) -> None:
    harness = Harness(tmp_path, SOURCE, partitions=4)
    found = harness.add("q", BY_DEVICE)
    harness.append("t", [row("a", 1), row("a", 12)])
    harness.settle(idle=True)
    assert harness.latest(found).keys() == {("a", 0)}
    harness.settle(idle=True)
    assert harness.latest(found).keys() == {("a", 0)}
    harness.append("t", [row("a", 20)])
    harness.settle()
    assert harness.latest(found).keys() == {("a", 0), ("a", 10 * S)}
    harness.check(found)
    harness.close()


def test_the_watermark_never_goes_back_when_a_partition_wakes_up(tmp_path: Path) -> None:
    harness = Harness(tmp_path, SOURCE, partitions=4)
    found = harness.add("q", BY_DEVICE)
    for device in "abcdefgh":
        harness.append("t", [row(device, 1)])
    harness.settle(idle=True)
    harness.append("t", [row("a", 50)])
    harness.settle()
    before = harness.engine.metrics()["q"]["watermark_us"]
    for device in "bcdefgh":
        harness.append("t", [row(device, 2)])
    harness.settle()
    assert harness.engine.metrics()["q"]["watermark_us"] == before == 50 * S
    assert harness.engine.metrics()["q"]["late"] == 7
    harness.check(found)
    harness.close()


def test_many_windows_leave_in_slices_and_nothing_comes_between(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_module, "SLICE_ROWS", 7)
    found = harness.add("q", BY_DEVICE)
    harness.append("t", [row(f"d{n}", n % 10) for n in range(40)])
    harness.append("t", [row("d0", 10), row("d1", 3), row("d2", 11)])
    harness.settle()
    assert [step.rows for step in harness.steps("q")][:5] == [7] * 5
    assert all(step.to == [41] and step.closing for step in harness.steps("q")[:5])
    harness.check(found)


def test_a_query_goes_on_where_it_stood(harness: Harness) -> None:
    found = harness.add("q", BY_DEVICE)
    harness.append("t", [row("a", 1), row("a", 11), row("b", 12)])
    harness.settle()
    harness.engine.close()
    harness.append("t", [row("a", 2), row("b", 22)])
    harness.restart()
    harness.add("q", BY_DEVICE)
    harness.settle()
    harness.check(found)
    assert harness.engine.metrics()["q"]["rows"] == 5


def test_a_new_query_begins_with_the_oldest_row_of_the_log(harness: Harness) -> None:
    harness.append("t", [row("a", 1), row("a", 11)])
    found = harness.add("q", BY_DEVICE)
    harness.settle()
    assert harness.check(found).windows.keys() == {("a", 0)}


def test_a_changed_query_begins_where_it_stood_and_its_rows_win(harness: Harness) -> None:
    harness.add("q", BY_DEVICE)
    harness.append("t", [row("a", 1), row("a", 11), row("a", 2), row("a", 12)])
    harness.settle()
    harness.engine.close()
    harness.restart()
    with capture_logs() as logs:
        changed = harness.add("q", BY_DEVICE.replace(" GROUP", " WHERE x > 0 GROUP"))
    assert [(log["log_level"], log["reason"]) for log in logs] == [("warning", "its SQL changed")]
    assert harness.steps("q")[-1].generation == 0
    harness.append("t", [row("a", 3), row("a", 13), row("a", 20)])
    harness.settle()
    latest = harness.rows("q")[-1]
    assert (latest["window_start"], latest["n"], latest["revision"]) == (10 * S, 1, 1 << 32)
    # The late row of the window that the old text had closed did not replace its result.
    assert harness.engine.metrics()["q"]["dropped"] == 1
    assert {r["revision"] for r in harness.rows("q") if r["window_start"] == 0} == {0, 1}
    assert changed.key == "device"


def test_a_changed_query_reads_what_came_while_nothing_ran(harness: Harness) -> None:
    harness.add("q", BY_DEVICE)
    harness.append("t", [row("a", 1), row("a", 11), row("a", 12)])
    harness.settle()
    harness.engine.close()
    harness.append("t", [row("a", 13), row("a", 14)])
    harness.restart()
    harness.add("q", BY_DEVICE.replace(" GROUP", " WHERE x > 0 GROUP"))
    harness.append("t", [row("a", 20)])
    harness.settle()
    # The two that the old text had read are not there, those it had not are.
    latest = harness.rows("q")[-1]
    assert (latest["window_start"], latest["n"], latest["revision"]) == (10 * S, 2, 1 << 32)


def test_a_removed_query_holds_nothing_and_goes_on_when_it_is_back(harness: Harness) -> None:
    first = harness.add("q", BY_DEVICE)
    harness.append("t", [row("a", 1), row("a", 11), row("a", 12)])
    harness.settle()
    harness.engine.remove("q")
    harness.engine.remove("q")
    assert harness.engine.metrics() == {}
    harness.append("t", [row("a", 13)])
    harness.settle()
    assert len(harness.rows("q")) == 1
    harness.add("q", BY_DEVICE)
    harness.append("t", [row("a", 20)])
    harness.settle()
    assert harness.rows("q")[-1]["n"] == 3
    harness.check(first)


def test_changed_lateness_counts_from_a_checkpoint_on(harness: Harness) -> None:
    found = harness.add("q", BY_DEVICE, lateness_us=5 * S)
    harness.append("t", [row("a", 1), row("a", 15), row("a", 21)])
    harness.settle()
    harness.restart()  # without a checkpoint: the steps are replayed with the lateness they were made with
    harness.add("q", BY_DEVICE, lateness_us=0, late="drop")
    harness.append("t", [row("a", 30), row("a", 29)])
    harness.settle()
    assert {key[1]: values[0] for key, values in harness.latest(found).items()} == {
        0: 1,
        10 * S: 1,
        20 * S: 1,
    }
    assert harness.engine.metrics()["q"]["dropped"] == 1
    harness.restart()
    harness.add("q", BY_DEVICE, lateness_us=0, late="drop")
    harness.settle()
    assert harness.engine.metrics()["q"]["dropped"] == 1


def test_hopping_windows_amend_what_is_held_and_count_in_what_is_open(harness: Harness) -> None:
    found = harness.add("q", HOPPING)
    harness.append("t", [row("a", 1), row("a", 11), row("a", 2, 3.0), row("b", 12, None), row("a", 16)])
    harness.settle()
    assert {key[1:]: values[0] for key, values in harness.latest(found).items() if key[0] == "a"} == {
        (-15 * S, 5 * S): 2,
        (-10 * S, 10 * S): 2,
        (-5 * S, 15 * S): 3,
    }
    assert harness.engine.metrics()["q"]["late"] == 1
    harness.check(found)


def test_results_of_sessions_are_final(harness: Harness) -> None:
    found = harness.add("q", SESSIONS)
    harness.append("t", [row("a", 1), row("a", 8), row("a", 2), row("b", 14), row("a", 3), row("a", 30)])
    harness.settle()
    assert {key: values[0] for key, values in harness.latest(found).items()} == {
        ("a", 1 * S, 7 * S): 1,
        ("a", 2 * S, 14 * S): 2,
        ("b", 14 * S, 20 * S): 1,
    }
    assert harness.engine.metrics()["q"]["dropped"] == 1
    harness.check(found)


def test_sessions_that_close_together_leave_in_slices(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_module, "SLICE_ROWS", 3)
    found = harness.add("q", SESSIONS)
    harness.append("t", [row(f"d{n}", n % 7) for n in range(20)])
    harness.append("t", [row("d0", 100)])
    harness.settle()
    ends = [r["window_end"] for r in harness.rows("q")]
    assert ends == sorted(ends)
    assert [step.rows for step in harness.steps("q")][:6] == [3] * 6
    harness.restart()
    harness.add("q", SESSIONS)
    harness.append("t", [row("d0", 200)])
    harness.settle()
    harness.check(found)


def test_having_leaves_rows_out_and_results_are_final(harness: Harness) -> None:
    sql = f"{BY_DEVICE} HAVING COUNT(*) > 1 AND MAX(x) < 5"
    harness.add("q", sql)
    harness.append("t", [row("a", 1, 2.0), row("b", 2), row("a", 3, 3.0), row("b", 10)])
    harness.settle()
    harness.restart()
    harness.add("q", sql)
    harness.append("t", [row("b", 4), row("b", 11, 1.5), row("c", 12, 9.0), row("c", 13), row("a", 20)])
    harness.settle()
    assert [(r["device"], r["window_start"], r["n"], r["revision"]) for r in harness.rows("q")] == [
        ("a", 0, 2, 0),
        ("b", 10 * S, 2, 0),
    ]
    metrics = harness.engine.metrics()["q"]
    assert (metrics["late"], metrics["dropped"]) == (0, 1)
    # The step says what the kernel gave: a replay takes as many.
    assert [step.rows for step in harness.steps("q")] == [2, 2]


def test_expressions_over_the_result_and_its_input(harness: Harness) -> None:
    harness.add(
        "q",
        "SELECT UPPER(mode) AS name, SUM(x * 2) FILTER (WHERE k > 1) / COUNT(*) AS share, "
        f"EXTRACT(SECOND FROM window_end) AS second FROM {WINDOW} GROUP BY mode, window_start, window_end",
    )
    harness.append(
        "t",
        [
            row("a", 1, 3.0, 2, mode="on"),
            row("b", 2, 5.0, 1, mode="on"),
            row("b", 3, mode=None),
            row("a", 10),
        ],
    )
    harness.settle()
    found = [(r["name"], r["mode"], r["share"], r["second"]) for r in harness.rows("q")]
    assert sorted(found, key=str) == [("ON", "on", 3.0, 10), (None, None, None, 10)]


def test_open_windows_show_what_they_hold_where_that_is_asked_for(harness: Harness) -> None:
    early_us = 3 * S
    found = harness.add("q", BY_DEVICE, early_us=early_us)
    harness.append("t", [row("a", 1), row("b", 2), row("a", 3), row("a", 5), row("a", 7, 2.5), row("a", 10)])
    harness.settle()
    first = -(1 << 31)
    assert [(key[0], revision - first, values[0]) for key, revision, values in harness.early(found)] == [
        ("a", 0, 1),
        ("a", 1, 2),
        ("b", 1, 1),
        ("a", 2, 4),
        ("a", 0, 1),
    ]
    assert {key: values[0] for key, values in harness.latest(found).items()} == {("a", 0): 4, ("b", 0): 1}
    harness.append("t", [row("a", 2), row("c", 12)])
    harness.settle()
    assert harness.engine.metrics()["q"]["amendments"] == 1
    harness.restart()
    harness.add("q", BY_DEVICE, early_us=early_us)
    harness.append("t", [row("a", 13), row("c", 14), row("c", 15)])
    harness.settle()
    harness.check(found, early_us=early_us)
    # Whoever reads the result by a query gets what is final.
    assert all(row["revision"] >= first for row in harness.rows("q"))


def test_a_query_over_a_query_does_not_count_early_results(harness: Harness) -> None:
    harness.add("first", BY_DEVICE, early_us=1 * S)
    second = harness.add(
        "second",
        "SELECT SUM(n) AS n FROM TABLE(TUMBLE(TABLE first, DESCRIPTOR(ts), INTERVAL '20' SECONDS)) "
        "GROUP BY window_start, window_end",
    )
    harness.append("t", [row("a", at) for at in (1, 3, 5, 11, 12, 20, 45)])
    harness.settle()
    assert harness.engine.metrics()["first"]["early"] > 3
    assert harness.latest(second) == {(0,): [5]}


def test_early_results_do_not_close_windows_of_a_query_over_the_query(harness: Harness) -> None:
    harness.add("first", HOPPING, early_us=1 * S)
    second = harness.add(
        "second",
        "SELECT COUNT(*) AS n FROM TABLE(TUMBLE(TABLE first, DESCRIPTOR(ts), INTERVAL '10' SECONDS)) "
        "GROUP BY window_start, window_end",
    )
    harness.append("t", [row("a", at) for at in (41, 43, 46, 52, 53, 58, 80)])
    harness.settle()
    finals = [r["ts"] // (10 * S) * 10 * S for r in harness.rows("first") if r["revision"] >= 0]
    counts = {start: finals.count(start) for start in finals}
    found = {key[0]: values[0] for key, values in harness.latest(second).items()}
    assert found == {start: n for start, n in counts.items() if start + 10 * S <= max(finals)}
    assert harness.engine.metrics()["second"]["dropped"] == 0


def test_calendar_windows_close_at_local_midnight(harness: Harness) -> None:
    found = harness.add(
        "q",
        "SELECT COUNT(*) AS n FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' DAY, 'America/Sao_Paulo')) "
        "GROUP BY window_start, window_end",
    )
    # The clock went from 0:00 to 1:00 on 4 November 2018: the day is 23 hours long.
    start = 1_541_300_400
    harness.append("t", [row("a", start - 1), row("a", start), row("a", start + 23 * 3600 - 1)])
    harness.append("t", [row("a", start - 2), row("a", start + 23 * 3600), row("a", start - 48 * 3600)])
    harness.settle()
    assert harness.latest(found)[start * S, (start + 23 * 3600) * S] == [2]
    harness.check(found)


def test_window_state_of_another_version_is_refused_with_a_way_out(harness: Harness) -> None:
    harness.add("q", BY_DEVICE)
    harness.append("t", [row("a", 1)])
    harness.settle()
    harness.engine.close()
    path = harness.directory / "engine" / "q.checkpoint"
    found = read_checkpoint(path)
    assert found is not None
    windows, _ = next(found.states())
    newer = bytearray(windows[:-4])
    newer[8] = 9
    Writer(path, Inline()).write(
        found.header, Encoded(_native.sealed(bytes(newer))), None, whole=True
    ).result()
    harness.restart()
    with pytest.raises(
        DataDirectoryError, match=r"version 9 is none of this format.*Start the version of Headwater"
    ):
        harness.add("q", BY_DEVICE)


def test_a_query_over_a_query_reads_first_results(harness: Harness) -> None:
    harness.add("first", BY_DEVICE)
    second = harness.add(
        "second",
        "SELECT SUM(n) AS n FROM TABLE(TUMBLE(TABLE first, DESCRIPTOR(ts), INTERVAL '20' SECONDS)) "
        "GROUP BY window_start, window_end",
    )
    harness.append("t", [row("a", 1), row("a", 11), row("b", 12), row("a", 2), row("a", 20), row("a", 45)])
    harness.settle()
    assert harness.latest(second) == {(0,): [3]}
    assert harness.engine.metrics()["second"]["amendments_skipped"] == 1


def test_a_full_log_delays_a_step_and_loses_nothing(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = harness.add("q", BY_DEVICE)
    harness.append("t", [row("a", 1), row("a", 10)])

    def full(parts: object) -> None:
        raise LogFullError("appending: the queue is full")

    with monkeypatch.context() as patch:
        patch.setattr(harness.log, "append", full)
        for _ in range(3):
            with pytest.raises(LogFullError):
                harness.engine.step()
    harness.append("t", [row("a", 20)])
    harness.settle()
    assert len(harness.rows("q")) == 2
    harness.check(found)


def test_results_that_do_not_fit_into_a_segment_leave_in_smaller_steps(harness: Harness) -> None:
    """Windows of as many devices close together as give more than half a segment of the harness's log."""
    found = harness.add("q", BY_DEVICE)
    devices, random = [f"device-{n:05}" for n in range(30_000)], Random(5)
    for first in range(0, len(devices), 5_000):
        rows = [
            row(each, 1, random.random(), random.getrandbits(60)) for each in devices[first : first + 5_000]
        ]
        harness.append("t", rows)
    harness.append("t", [row("device-00000", 20)])
    harness.settle()
    steps = [step.rows for step in harness.steps("q") if step.rows]
    assert len(steps) > 1
    assert sum(steps) == len(devices)
    harness.check(found)
    # A start replays them in the sizes that they have.
    harness.restart()
    harness.add("q", BY_DEVICE)
    harness.append("t", [row("device-00000", 40)])
    harness.settle()
    harness.check(found)


def test_an_append_of_unknown_outcome_is_looked_up_in_the_log(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = harness.add("q", BY_DEVICE)
    harness.append("t", [row("a", 1), row("a", 10)])
    append = harness.log.append

    def stored_but_failed(parts: Any) -> None:
        append(parts)
        raise OSError("the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(harness.log, "append", stored_but_failed)
        with pytest.raises(OSError, match="the answer was lost"):
            harness.engine.step()
    harness.append("t", [row("a", 20)])
    harness.settle()
    harness.check(found)


def test_at_its_bound_a_query_does_not_wait_for_silent_partitions(tmp_path: Path) -> None:
    harness = Harness(tmp_path, SOURCE, partitions=4, settings=EngineSettings(state_bytes=1 << 20))
    found = harness.add("q", BY_DEVICE)
    harness.append("t", [row("a", 10 * n) for n in range(100)])
    harness.settle()
    assert len(harness.check(found).windows) == 99
    harness.close()


def test_at_its_bound_a_query_stops_and_its_input_waits(tmp_path: Path) -> None:
    few = EngineSettings(max_keys=2)
    harness = Harness(tmp_path, SOURCE, partitions=1, settings=few)
    harness.add("q", BY_MODE)
    harness.append(
        "t", [row("a", 1, mode="a"), row("a", 2, mode="b"), row("a", 3, mode="c"), row("a", 11, mode="a")]
    )
    for _ in range(2):
        with pytest.raises(QueryLimitError, match=r"query q: .*Raise engine\.max_keys"):
            harness.engine.step()
    harness.settings = EngineSettings()
    harness.restart()
    found = harness.add("q", BY_MODE)
    harness.settle()
    harness.check(found)
    harness.close()


def test_a_query_that_fails_does_not_keep_others_from_their_steps(tmp_path: Path) -> None:
    harness = Harness(tmp_path, SOURCE, partitions=1, settings=EngineSettings(max_keys=1))
    harness.add("bad", BY_MODE)
    good = harness.add("good", BY_DEVICE)
    harness.append("t", [row("a", 1, mode="a"), row("a", 2, mode="b"), row("a", 11)])
    with pytest.raises(QueryLimitError):
        harness.engine.step()
    harness.check(good)
    harness.close()


def test_the_log_keeps_what_a_replay_needs(tmp_path: Path) -> None:
    harness = Harness(tmp_path, SOURCE, partitions=1)
    found = harness.add("q", BY_DEVICE)
    held: dict[int, tuple[int, ...]] = {}
    hold = harness.log.hold

    def watch(reader: str, stream: int, offsets: tuple[int, ...]) -> None:
        assert reader == "engine/q"
        held[stream] = tuple(offsets)
        hold(reader, stream, offsets)

    harness.log.hold = watch  # type: ignore[method-assign]
    for n in range(3):
        harness.append("t", [row("a", 10 * n)])
        harness.settle()
        harness.engine.checkpoint()
    # Two rows behind: should the newest checkpoint be damaged, the one before it is good for a replay.
    assert held == {16: (2,), STEPS: (1,)}
    path = tmp_path / "engine" / "q.checkpoint"
    path.write_bytes(path.read_bytes()[:-1])
    harness.restart()
    harness.add("q", BY_DEVICE)
    harness.append("t", [row("a", 30)])
    harness.settle()
    harness.check(found)
    harness.close()


def test_a_log_that_is_not_the_one_of_the_checkpoint_is_refused(tmp_path: Path) -> None:
    harness = Harness(tmp_path / "one", SOURCE, partitions=1)
    harness.add("q", BY_DEVICE)
    harness.append("t", [row("a", 1), row("a", 11)])
    harness.settle()
    checkpoint = (tmp_path / "one" / "engine" / "q.checkpoint").read_bytes()
    harness.close()
    other = Harness(tmp_path / "two", SOURCE, partitions=1)
    other.add("q", BY_DEVICE)
    other.append("t", [row("a", 1), row("a", 11), row("b", 2), row("b", 25)])
    other.settle()
    (tmp_path / "two" / "engine" / "q.checkpoint").write_bytes(
        checkpoint.replace(b'"offsets":[0]', b'"offsets":[2]')
    )
    other.restart()
    with pytest.raises(DataDirectoryError, match="checksum does not match"):
        other.add("q", BY_DEVICE)
    other.close()


# ---- properties


class Killed(BaseException):
    """The process ended here, as far as the engine is concerned."""


def _kill_at(line: int) -> None:
    """Raises Killed at the n-th line of the engine that runs from now on."""
    left = line

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if "headwater/streams" not in frame.f_code.co_filename:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise Killed
        return trace

    sys.settrace(trace)


_SCENARIOS = st.builds(
    lambda seed, length: _scenario(random.Random(seed), length), st.integers(0, 1 << 32), st.integers(3, 25)
)


def _scenario(rng: random.Random, length: int) -> list[tuple[str, Any]]:
    """What happens, in order: rows arrive, the engine steps, time passes, the engine is killed or restarted."""
    actions: list[tuple[str, Any]] = []
    base_ms = 1_000_000
    while len(actions) < length:
        base_ms += rng.choice([0, 3_000, 15_000])
        spread = rng.choice([2_000, 25_000, 80_000])
        rows = [
            {
                "device": rng.choice("abcdef"),
                "ts": (base_ms + rng.randint(-spread, spread)) * 1000,
                "x": rng.choice([None, rng.uniform(-1e6, 1e6)]),
                "k": rng.choice([None, -3, -2, 1, 2]),
                "mode": rng.choice(["", "auto", "manual"]),
            }
            for _ in range(rng.randint(1, 30))
        ]
        actions.append(("append", rows))
        for _ in range(rng.randint(0, 3)):
            actions.append(
                rng.choice(
                    [
                        ("step", rng.randint(1, 4)),
                        ("clock", rng.choice([1_000, 150_000, 900_000, 2_500_000, 5_000_000, 11_000_000])),
                        ("kill", rng.randint(1, rng.choice([60, 300, 1500]))),
                        ("restart", rng.random() < 0.5),
                        ("checkpoint", None),
                    ]
                )
            )
    return actions


# A kill between opening a file and its `with` leaves the file to the collector, as the real one would to the kernel.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    actions=_SCENARIOS,
    sql=st.sampled_from([BY_DEVICE, BY_MODE, IN_ALL, HOPPING, CUMULATING, SESSIONS, IN_ALL_SESSIONS]),
    partitions=st.sampled_from([1, 3]),
    lateness_us=st.sampled_from([0, 3 * S, 30 * S]),
    late=st.sampled_from(["amend", "drop"]),
    read_rows=st.sampled_from([1, 3, 7, 100_000]),
    slice_rows=st.sampled_from([1, 2, 5, 100_000]),
    held=st.sampled_from([1, 3, 12]),
    early_us=st.sampled_from([None, None, 1 * S, 4 * S]),
    changes=st.sampled_from([0, 2, 32]),
)
def test_any_disorder_cut_and_kill_gives_what_the_oracle_gives(
    actions: list[tuple[str, Any]],
    sql: str,
    partitions: int,
    lateness_us: int,
    late: Late,
    read_rows: int,
    slice_rows: int,
    held: int,
    early_us: int | None,
    changes: int,
) -> None:
    if sql in (SESSIONS, IN_ALL_SESSIONS):
        early_us = None
    terms = (lateness_us, late, early_us)
    patch = pytest.MonkeyPatch()
    # Whole states only, few changes between two, or many.
    patch.setattr(checkpoint_module, "MAX_CHANGES", changes)
    patch.setattr(query_module, "READ_ROWS", read_rows)
    patch.setattr(query_module, "SLICE_ROWS", slice_rows)
    # In memory where there is such a place: thousands of commits are synced here, and power stays on.
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with TemporaryDirectory(dir=memory) as directory, patch.context():
        options = EngineSettings(amend_windows=held)
        harness = Harness(Path(directory), SOURCE, partitions=partitions, settings=options)
        try:
            found = harness.add("q", sql, *terms)
            _play(harness, found, sql, terms, actions)
            # One more start must find the same, too.
            for _ in range(2):
                harness.settle(idle=True)
                harness.check(found, lateness_us, late, early_us=early_us)
                harness.restart()
                harness.add("q", sql, *terms)
        finally:
            sys.settrace(None)
            harness.close()
            patch.undo()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("sql", [BY_DEVICE, BY_MODE, HOPPING, SESSIONS])
def test_a_kill_at_any_line_of_a_start_a_step_and_a_checkpoint_changes_nothing(
    sql: str, request: Any
) -> None:
    """One scenario, killed at line 1, 2, 3, ... of the engine: each with `-m chaos`, else a sample."""
    stride = 1 if "chaos" in request.config.option.markexpr else 17
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    line, finished = 1, False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(query_module, "SLICE_ROWS", 4)
        while not finished:
            with TemporaryDirectory(dir=memory) as directory:
                harness = Harness(Path(directory), SOURCE, partitions=2)
                found = harness.add("q", sql)
                harness.append("t", [row(d, at, mode=d) for d in "abcdef" for at in (1, 4, 12, 27)])
                harness.engine.step()
                harness.engine.checkpoint()
                harness.append("t", [row(d, at, mode=d) for d in "abcdef" for at in (31, 3, 45)])
                harness.now_us += 1_000_000
                finished = _kill(harness, found, sql, (0, "amend", None), line)
                harness.append("t", [row(d, 60, mode=d) for d in "fedcba"])
                harness.settle(idle=True)
                harness.check(found)
                harness.close()
            line += stride
    assert line > 400


Terms = tuple[int, Late, int | None]


def _play(harness: Harness, found: Plan, sql: str, terms: Terms, actions: list[tuple[str, Any]]) -> None:
    for action, value in actions:
        if action == "append":
            harness.append("t", value)
        elif action == "step":
            for _ in range(value):
                harness.engine.step()
        elif action == "clock":
            harness.now_us += value
        elif action == "checkpoint":
            harness.engine.checkpoint()
        elif action == "restart":
            if value:
                harness.engine.close()
            harness.restart()
            harness.add("q", sql, *terms)
        else:
            _kill(harness, found, sql, terms, value)


def _kill(harness: Harness, found: Plan, sql: str, terms: Terms, line: int) -> bool:
    """Kills the engine at some line of steps, a checkpoint or a start, and starts it again; True: it ran to the end."""
    _kill_at(line)
    finished = False
    try:
        for _ in range(4):
            harness.engine.step()
        harness.engine.checkpoint()
        harness.restart()
        harness.add("q", sql, *terms)
        harness.engine.step()
        harness.engine.checkpoint()
        finished = True
    except Killed:
        pass
    finally:
        sys.settrace(None)
    harness.restart()
    harness.add("q", sql, *terms)
    return finished

"""What the benches compute from other programs' output: the figures are only as good as this."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benches import costs, criterion, flamegraph, rivals, subscribers
from benches.__main__ import ROWS, replace
from benches.bench import Bench
from benches.fleet import MINUTE_US, START_US, TUMBLE, Fleet, feed, windowed, windows_of
from benches.server import profile
from benches.table import NOT_MEASURED, PASS, SHORT, Row, judged, show
from headwater.costs import MEASURED
from tests.integration import peer

CRITERION = """\
decode/json             time:   [221.70 ns 237.73 ns 254.14 ns]
                        thrpt:  [348.99 MiB/s 373.07 MiB/s 400.05 MiB/s]
                 change:
                        time:   [+74.579% +98.697% +123.25%] (p = 0.00 < 0.05)
                        thrpt:  [−55.206% −49.672% −42.719%]
                        Performance has regressed.
Found 2 outliers among 10 measurements (20.00%)
decode/json_array_of_100
                        time:   [11.033 µs 11.155 µs 11.283 µs]
                        thrpt:  [794.58 MiB/s 803.69 MiB/s 812.58 MiB/s]
decode/untold           time:   [1.0 ms 2.0 ms 3.0 ms]
publish/match 1M subscriptions, exact
                        time:   [90.0 µs 100.0 µs 110.0 µs]
                        thrpt:  [4.5455 Melem/s 5.0000 Melem/s 5.5556 Melem/s]
"""


def test_timings_of_criterion_are_read_with_their_units() -> None:
    found = criterion.parse(CRITERION)
    assert list(found) == ["json", "json_array_of_100", "untold", "match 1M subscriptions, exact"]
    assert found["json"].readings_s == pytest.approx(1e9 / 237.73)
    assert found["json"].bytes_s == pytest.approx(373.07 * (1 << 20))
    assert found["json_array_of_100"].readings_s == pytest.approx(100 / 11.155e-6)
    assert (found["untold"].seconds, found["untold"].bytes_s) == (pytest.approx(2e-3), None)
    assert found["match 1M subscriptions, exact"].seconds == pytest.approx(100e-6)


PERF = """\
gateway-0
\t    7f01 core::ptr::read (inlined)
\t    7f02 headwater_core::net::worker::Worker::run::h0123456789abcdef
\t    7f03 std::thread::lifecycle::spawn_unchecked::{closure#1}
\t    7f04 clone3

gateway-1
\t    7f02 headwater_core::net::worker::Worker::run::h0123456789abcdef

log-commit
\t    7f05 <headwater_core::log::Committer as core::ops::Drop>::drop
\t    7f06 __x64_sys_fdatasync
"""


def test_stacks_of_perf_are_folded_by_thread_without_their_wrappers() -> None:
    root = flamegraph.Box("all")
    for stack in flamegraph.stacks(PERF.splitlines(keepends=True)):
        root.add(stack)
    assert root.samples == 3
    assert {name: box.samples for name, box in root.inner.items()} == {"gateway": 2, "log-commit": 1}
    run = root.inner["gateway"].inner["net::worker::Worker::run"]
    assert (run.samples, list(run.inner)) == (2, ["core::ptr::read"])
    [outer] = root.inner["log-commit"].inner
    assert outer == "__x64_sys_fdatasync"


def test_the_picture_is_well_formed_and_its_widths_add_up() -> None:
    root = flamegraph.Box("all")
    root.add(["gateway", "net::run", "a<b>&c"], 3)
    root.add(["store", "PyEval"], 1)
    tree = ElementTree.fromstring(flamegraph.draw(root, "title & more"))
    boxes = {
        group[0].text: float(group[1].get("width", "0"))
        for group in tree.iter("{http://www.w3.org/2000/svg}g")
    }
    assert boxes["gateway: 75.0%"] == pytest.approx(flamegraph.WIDTH * 0.75)
    assert boxes["store: 25.0%"] == pytest.approx(flamegraph.WIDTH * 0.25)
    assert "a<b>&c: 75.0%" in boxes


@given(st.lists(st.text("abc/#+", min_size=1, max_size=30), min_size=1, max_size=200))
def test_subscribe_packets_are_those_of_another_writer(filters: list[str]) -> None:
    body = b"\x00\x01" + b"".join(peer.text(each) + b"\x00" for each in filters)
    assert subscribers.subscribe(filters) == peer.packet(0x82, body)
    assert subscribers.connect("me") == peer.connect(client="me")


def test_the_profile_shows_shares_of_what_was_spent_in_between() -> None:
    text = profile({"gateway": 1.0}, {"gateway": 4.0, "log-commit": 1.0, "idle": 0.0}, messages=1_000_000)
    assert text == "CPU by thread: gateway 75% (3.00 us), log-commit 25% (1.00 us)"


def test_the_table_shows_verdicts_and_notes() -> None:
    rows = [Row("1", "a", "b", "c", judged(True)), Row("2", "a", "b", "c", judged(False), notes=["why"])]
    text = show(rows)
    assert f"| 1 | a | b | c | {PASS} |" in text
    assert f"| 2 | a | b | c | {SHORT} |" in text
    assert text.endswith("Row 2:\n\n- why")


#: Rows that need no yardstick.
ALONE = ("2", "5", "9", "10", "11", "12", "13", "14", "15")


@pytest.mark.parametrize("number", [number for number in ROWS if number not in ALONE])
def test_without_the_yardstick_every_row_says_that_it_was_not_measured(tmp_path: Path, number: str) -> None:
    bench = Bench(tmp_path, rounds=1, secs=1, long_secs=1, log_gb=0.1, yardstick=None, mosquitto=None)
    rows = ROWS[number](bench)
    assert rows
    assert {row.verdict for row in rows} == {NOT_MEASURED}
    assert all("YARDSTICK" in row.found for row in rows)


def test_every_engine_that_windows_are_compared_with_gives_the_same() -> None:
    fleet = Fleet(1000)
    batches = [fleet.batch(START_US) for _ in range(2)]
    windows = windows_of(windowed(TUMBLE, "temperature"), 0, 1 << 30)
    closed: list[pa.RecordBatch] = []
    for batch in [*batches, fleet.batch(START_US + 5 * MINUTE_US)]:
        feed(windows, batch, closed.append)
    ours = pa.Table.from_batches(closed).sort_by("_key")
    assert ours.num_rows == 1000
    compared = 0
    for make in (rivals.numpy_at, rivals.polars, rivals.duckdb):
        dense = rivals.Dense(1000)
        engine = make(dense)
        if engine is None:
            continue
        for batch in batches:
            engine(batch)
        compared += 1
        assert ours["aggregate_0"].to_pylist() == dense.count.tolist()
        assert np.allclose(ours["aggregate_1"], dense.sum)
        assert ours["aggregate_2"].to_pylist() == dense.low.tolist()
        assert ours["aggregate_3"].to_pylist() == dense.high.tolist()
    assert compared >= 2


def test_costs_are_taken_from_the_rows_that_were_measured() -> None:
    assert costs.of_rows([]) == MEASURED
    found = costs.of_rows(
        [
            Row("1", "", "", "", PASS, {"headwater": {"cpus_us": 0.5}}),
            Row("2b", "", "", "", PASS, {"cpu_us": 1.7, "store_bytes": 7.0}),
            Row("3b", "", "", "", PASS, {"headwater_us": [12.0, 14.0, 13.0]}),
        ]
    )
    assert (found.flat_out_us, found.one_per_write_us, found.store_bytes) == (0.5, 13.0, 7.0)
    assert found.pipeline_us == pytest.approx(1.2)
    assert any("(13.00 + 1.20) µs | 142 |" in line for line in costs.arithmetic(found))


def test_a_part_of_the_page_is_replaced_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- table -->\nold\n<!-- end of table -->\nb\n", encoding="utf-8")
    replace(page, "table", ["new", "lines"])
    assert page.read_text(encoding="utf-8") == "a\n<!-- table -->\nnew\nlines\n<!-- end of table -->\nb\n"

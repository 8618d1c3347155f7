"""MATCH_RECOGNIZE over a real log: against the plain reference under disorder, cuts and restarts; bounds; refusals."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater import _native
from headwater.config import EngineSettings
from headwater.errors import DataDirectoryError, LogFullError, QueryLimitError, SqlError
from headwater.streams import query as query_module
from headwater.streams.checkpoint import Encoded, Writer, read_checkpoint
from headwater.streams.sql import plan
from tests.streams import match_oracle
from tests.streams.harness import Harness, Inline
from tests.tables import table

SOURCE = table("t", "device string, ts timestamp, x bigint, id bigint, mode string")
S = 1_000_000


def sql(pattern: str, define: str, names: str = "AB", by: str = "PARTITION BY device", skip: str = "") -> str:
    measures = ", ".join(f"{name}.id AS id_{name.lower()}" for name in names)
    return (
        f"SELECT * FROM t MATCH_RECOGNIZE ({by} ORDER BY ts MEASURES {measures} ONE ROW PER MATCH {skip} "
        f"PATTERN ({pattern}) WITHIN INTERVAL '5' SECONDS {define})"
    )


DIRECT = sql("A B", "DEFINE A AS A.x = 1, B AS B.x = 2")
EVENTUAL = sql("A X*? B", "DEFINE A AS x = 1, B AS x = 2")


def is_(value: int) -> match_oracle.Fits:
    return lambda row, _first: row["x"] == value


def above(row: match_oracle.Row, first: match_oracle.Row) -> bool:
    return None not in (row["x"], first["x"]) and row["x"] > first["x"]


def any_(_row: match_oracle.Row, _first: match_oracle.Row) -> bool:
    return True


#: SQL, group column, variables of the reference, whether matches overlap.
PATTERNS: dict[str, tuple[str, str | None, list[tuple[bool, match_oracle.Fits]], bool]] = {
    "direct": (DIRECT, "device", [(False, is_(1)), (False, is_(2))], False),
    "eventual": (EVENTUAL, "device", [(False, is_(1)), (True, is_(2))], False),
    "three in a row, by another column": (
        sql("A B C", "DEFINE A AS x = 1, C AS x = 2", "ABC", "PARTITION BY mode"),
        "mode",
        [(False, is_(1)), (False, any_), (False, is_(2))],
        False,
    ),
    "compared": (
        sql("A B", "DEFINE B AS B.x > LAST(A.x)", skip="AFTER MATCH SKIP PAST LAST ROW"),
        "device",
        [(False, any_), (False, above)],
        False,
    ),
    "compared later, overlapping, in all": (
        sql("A X*? B C", "DEFINE A AS x = 1, B AS B.x > A.x", "ABC", "", "AFTER MATCH SKIP TO NEXT ROW"),
        None,
        [(False, is_(1)), (True, above), (False, any_)],
        True,
    ),
    "four": (
        sql("A B X*? C Y*? D", "DEFINE A AS x = 1, B AS x = 2, C AS C.x > A.x, D AS x = 1", "ABCD"),
        "device",
        [(False, is_(1)), (False, is_(2)), (True, above), (True, is_(1))],
        False,
    ),
    "overlapping": (
        sql(
            "A X*? B Y*? C",
            "DEFINE A AS x = 1, B AS x = 2, C AS x = 1",
            "ABC",
            skip="AFTER MATCH SKIP TO NEXT ROW",
        ),
        "device",
        [(False, is_(1)), (True, is_(2)), (True, is_(1))],
        True,
    ),
}


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    found = Harness(tmp_path, SOURCE, partitions=1)
    yield found
    found.close()


def row(
    device: str | None, at_s: float, x: int | None, id_: int = 0, mode: str | None = None
) -> dict[str, Any]:
    return {"device": device, "ts": round(at_s * S), "x": x, "id": id_, "mode": mode}


def ids(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Rows of the result as ids of the rows that they are made of, and `ts`."""
    return [(*(value for name, value in one.items() if name.startswith("id_")), one["ts"]) for one in rows]


def test_a_match_comes_out_when_the_watermark_has_passed_its_last_row(harness: Harness) -> None:
    harness.add("q", DIRECT, lateness_us=2 * S, late="drop")
    harness.append("t", [row("a", 3, 2, 2), row("a", 1, 1, 1)])
    harness.settle()
    assert harness.rows("q") == []
    harness.append("t", [row("b", 5, 0)])
    harness.settle()
    assert harness.rows("q") == []
    harness.append("t", [row("b", 5.000001, 0)])
    harness.settle()
    assert ids(harness.rows("q")) == [(1, 2, 3 * S)]
    metrics = harness.engine.metrics()["q"]
    assert (metrics["windows_closed"], metrics["dropped"], metrics["amendments"]) == (1, 0, 0)


def test_a_row_behind_the_watermark_is_dropped_and_counted(harness: Harness) -> None:
    harness.add("q", EVENTUAL, late="drop")
    harness.append(
        "t", [row("a", 1, 1, 1), row("a", 3, 0), row("a", 2, 2, 2), row("a", 4, 2, 3), row("a", 9, 0)]
    )
    harness.settle()
    assert ids(harness.rows("q")) == [(1, 3, 4 * S)]
    assert harness.engine.metrics()["q"]["dropped"] == 1


def test_within_is_less_than_the_interval(harness: Harness) -> None:
    harness.add("q", EVENTUAL, late="drop")
    rows = [row("a", 0, 1), row("a", 5, 2), row("b", 10, 1, 3), row("b", 14.999999, 2, 4), row("b", 30, 0)]
    harness.append("t", rows)
    harness.settle()
    assert ids(harness.rows("q")) == [(3, 4, 14_999_999)]


def test_nothing_is_kept_of_keys_without_a_start(harness: Harness) -> None:
    harness.add("q", DIRECT, late="drop")
    harness.append("t", [row(f"d{n}", n / 1000, n % 2 * 2) for n in range(3000)])
    harness.append("t", [row("a", 60, 0)])
    harness.settle()
    kept = harness.engine.metrics()["q"]["state_bytes"]
    assert 0 < kept < 200  # the last row, which waits for the watermark
    harness.append("t", [row("a", 61, 1, 7), row("a", 62, 0)])
    harness.settle()
    assert harness.engine.metrics()["q"]["state_bytes"] < 2 * kept


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(PATTERNS)))
def test_the_plain_reference_gives_the_same(data: st.DataObject, name: str) -> None:
    text, group, variables, overlaps = PATTERNS[name]
    drawn = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(["a", "a", "b", None]),
                st.integers(-4, 24),
                st.sampled_from([1, 1, 2, 2, 3, None]),
                st.sampled_from(["m", None]),
            ),
            max_size=40,
        )
    )
    rows = [row(device, at / 2 + n / 4, x, n, mode) for n, (device, at, x, mode) in enumerate(drawn)]
    lateness_us = data.draw(st.sampled_from([0, 3 * S, 8 * S]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=8)))
    restarts = data.draw(st.sets(st.integers(0, len(cuts))))
    stored = data.draw(st.sets(st.integers(0, len(cuts))))
    with TemporaryDirectory() as directory:
        harness = Harness(Path(directory), SOURCE, partitions=1)
        try:
            harness.add("q", text, lateness_us, "drop")
            for at, (low, high) in enumerate(zip([0, *cuts], [*cuts, len(rows)], strict=True)):
                if rows[low:high]:
                    harness.append("t", rows[low:high])
                harness.settle()
                if at in stored:
                    harness.engine.checkpoint()
                if at in restarts:
                    harness.restart()
                    harness.add("q", text, lateness_us, "drop")
                    harness.settle()
            expected = match_oracle.run(
                rows, group, match_oracle.Pattern(variables, 5 * S, overlaps), lateness_us
            )
            found = harness.rows("q")
            wanted = [(*(one["id"] for one in match), match[-1]["ts"]) for match in expected.matches]
            assert sorted(ids(found)) == sorted(wanted)
            assert harness.engine.metrics()["q"]["dropped"] == expected.dropped
        finally:
            harness.close()


@pytest.mark.parametrize("slice_rows", [1, 3, 100])
def test_a_kill_between_any_two_slices_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slice_rows: int
) -> None:
    """The memory is thrown away after every step, in the middle of many matches of one watermark, too."""
    monkeypatch.setattr(query_module, "SLICE_ROWS", slice_rows)
    harness = Harness(tmp_path, SOURCE, partitions=3)
    rows = [row(f"d{n % 7}", n / 3 - n % 5, 1 + n % 3 % 2, n) for n in range(120)]
    rows += [row(f"d{n}", 100 + n, 0) for n in range(7)]
    harness.add("q", EVENTUAL, 4 * S, "drop")
    harness.append("t", rows[:60])
    harness.append("t", rows[60:])
    undisturbed = Harness(tmp_path / "other", SOURCE, partitions=3)
    undisturbed.add("q", EVENTUAL, 4 * S, "drop")
    undisturbed.append("t", rows[:60])
    undisturbed.append("t", rows[60:])
    undisturbed.settle(idle=True)
    harness.now_us += S
    recorded, busy = 0, True
    while busy:
        busy = harness.engine.step()
        if len(harness.steps("q")) > recorded:
            recorded = len(harness.steps("q"))
            harness.restart()
            harness.add("q", EVENTUAL, 4 * S, "drop")
            busy = True
    harness.settle(idle=True)
    assert len(undisturbed.rows("q")) > 10
    assert sorted(ids(harness.rows("q"))) == sorted(ids(undisturbed.rows("q")))
    steps = harness.steps("q")
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    harness.close()
    undisturbed.close()


def test_at_the_bound_the_input_waits_and_nothing_is_lost(tmp_path: Path) -> None:
    harness = Harness(tmp_path, SOURCE, partitions=1, settings=EngineSettings(state_bytes=1 << 20))
    harness.add("q", DIRECT, 3600 * S, "drop")
    many = 40_000
    harness.append("t", [row("a", n / 1000, 1 + n % 2, n) for n in range(many)])
    with pytest.raises(
        QueryLimitError, match=r"query q: .*bytes of 1048576.*WITHIN or the stream's lateness"
    ):
        harness.settle()
    assert harness.rows("q") == []
    metrics = harness.engine.metrics()["q"]
    assert metrics["state_bytes"] <= 1 << 20
    assert metrics["lag_rows"] > 0
    harness.settings = EngineSettings()
    harness.restart()
    harness.add("q", DIRECT, 3600 * S, "drop")
    harness.append("t", [row("b", 4000, 0)])
    harness.settle()
    assert len(harness.rows("q")) == many // 2
    harness.close()


def test_first_and_last_of_a_text(harness: Harness) -> None:
    text = (
        "SELECT * FROM t MATCH_RECOGNIZE (PARTITION BY device ORDER BY ts MEASURES FIRST(A.mode) AS was, "
        "LAST(B.mode) AS became, CONCAT(FIRST(A.mode), LAST(A.mode)) AS both PATTERN (A X*? B) "
        "WITHIN INTERVAL '5' SECONDS DEFINE A AS A.x = 1, B AS B.mode <> LAST(A.mode))"
    )
    harness.add("q", text, late="drop")
    texts = [("a", 1, 1, "on"), ("a", 2, 0, "on"), ("a", 3, 0, None), ("a", 4, 0, ""), ("a", 8, 1, "off")]
    harness.append("t", [row(device, at, x, mode=mode) for device, at, x, mode in texts])
    harness.settle()
    harness.restart()
    harness.add("q", text, late="drop")
    harness.append("t", [row("a", 9, 0, mode="on"), row("a", 20, 0, mode="on")])
    harness.settle()
    found = [(r["was"], r["became"], r["both"]) for r in harness.rows("q")]
    assert found == [("on", "", "onon"), ("off", "on", "offoff")]


def test_a_full_log_keeps_matches(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.add("q", DIRECT, late="drop")
    harness.append("t", [row("a", 1, 1, 1), row("a", 2, 2, 2), row("a", 3, 0)])

    def full(_parts: Any) -> None:
        raise LogFullError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(harness.log, "append", full)
        with pytest.raises(LogFullError):
            harness.settle()
    harness.settle()
    assert ids(harness.rows("q")) == [(1, 2, 2 * S)]


def test_a_state_of_another_version_is_refused(harness: Harness) -> None:
    harness.add("q", DIRECT, late="drop")
    harness.append("t", [row("a", 1, 1, 1)])
    harness.settle()
    harness.engine.checkpoint()
    path = harness.directory / "engine" / "q.checkpoint"
    stored = read_checkpoint(path)
    assert stored is not None
    windows, _ = next(stored.states())
    other = _native.sealed(windows[:-4].replace(b"headwater.matches", b"headwater.matchez"))
    Writer(path, Inline()).write(stored.header, Encoded(other), None, whole=True).result()
    harness.restart()
    with pytest.raises(DataDirectoryError, match="its open matches are of another pattern or version"):
        harness.add("q", DIRECT, late="drop")


def test_a_query_reads_matches_by_name(harness: Harness) -> None:
    harness.add("q", EVENTUAL, late="drop")
    harness.add(
        "n",
        "SELECT device, COUNT(*) AS n FROM TABLE(TUMBLE(TABLE q, DESCRIPTOR(ts), INTERVAL '10' SECONDS)) "
        "GROUP BY device, window_start, window_end",
        late="drop",
    )
    harness.append("t", [row("a", 2 * n, 1 + n % 2, n) for n in range(12)] + [row("a", 40, 0)])
    harness.settle()
    assert [(one["device"], one["n"]) for one in harness.rows("n")] == [("a", 2), ("a", 3)]


def test_state_of_a_changed_pattern_is_not_gone_on_with() -> None:
    texts = [text for text, *_ in PATTERNS.values()]
    texts += [
        DIRECT.replace("'5'", "'6'"),
        DIRECT.replace("B.x = 2", "B.x = 3"),
        DIRECT.replace("B.id AS", "B.x AS"),
    ]
    signatures = {plan(text, "q", {"t": SOURCE}).signature(SOURCE) for text in texts}
    assert len(signatures) == len(texts)
    assert plan(DIRECT.replace(" ", "\n  "), "q", {"t": SOURCE}).signature(SOURCE) in signatures


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("FROM t MATCH", "FROM x.t MATCH", "something else than a stream"),
        ("FROM t MATCH", "FROM t TABLESAMPLE (5 PERCENT) MATCH", "something else than a stream"),
        ("FROM t MATCH", "FROM u MATCH", "found 'u', which is no stream"),
        ("(A B)", "()", "found 0 variables"),
        ("A.id AS", "LAST(A.id, 1) AS", "a variable is one row"),
        ("A.id AS", "A.ids AS", "found 'ids', which is no column of t; did you mean 'id'"),
        ("A.id AS id_a", "A.id AS revision", "which every result has by itself"),
        ("'5'", "'500'", None),
        ("'5' SECONDS", "'500' DAYS", "at most 366 days"),
        ("B.x = 2)", "B.x = 2) AS m(a, b)", "Columns of a match are named in MEASURES"),
        ("B.x = 2)", "B.x)", "is no condition"),
        ("B.x = 2)", "B.x = 2) WHERE x = 1", "found 'x', which is no column of the match"),
        ("PATTERN (A B)", "", "found no PATTERN"),
    ],
)
def test_what_is_outside_is_refused(old: str, new: str, message: str | None) -> None:
    text = DIRECT.replace(old, new)
    assert text != DIRECT
    if message is None:
        plan(text, "q", {"t": SOURCE})
        return
    with pytest.raises(SqlError, match=re.escape(message)):
        plan(text, "q", {"t": SOURCE})


@given(st.data())
def test_no_text_breaks_the_planner(data: st.DataObject) -> None:
    """Words left out, doubled or moved: a plan or a refusal."""
    words = re.findall(r"\w+|\S", PATTERNS["four"][0])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(words) - 1))
        words[at : at + 1] = data.draw(
            st.sampled_from([[], [words[at]] * 2, [words[-at]], ["("], [")"], ["*"], ["?"], ["'"], ["A"]])
        )
    with contextlib.suppress(SqlError):
        plan(" ".join(words), "q", {"t": SOURCE})


def test_a_refusal_names_the_place_and_the_nearest_thing() -> None:
    text = DIRECT.replace("(A B)", "(A B+)")
    with pytest.raises(SqlError, match=r"found B\+; .*PATTERN \(A X\*\? B\)") as refused:
        plan(text, "q", {"t": SOURCE})
    assert refused.value.position == text.index("B+")

"""Row 12: what windows, patterns and conditions cost, without log and network.

Batches are those that the log's reader gives, of 100,000 rows in four partitions; what is timed is a step of the engine
between reading them and writing results: preparing the rows, watermarks, the native kernel, taking closed windows from
it. CPU time of the process, so that a neighbour costs less than its load; garbage is collected outside. Other engines
take the same batches.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benches import rivals
from benches.bench import Bench
from benches.fleet import (
    HOP,
    MINUTE_US,
    ROWS,
    SECOND_US,
    START_US,
    TELEMETRY,
    TUMBLE,
    Fleet,
    feed,
    windowed,
    windows_of,
)
from benches.table import SHOWN, Row, judged, median
from headwater.alarm_settings import AlarmSettings
from headwater.alerts.conditions import Condition, compile_alarm
from headwater.alerts.tracker import Tracker
from headwater.errors import QueryLimitError
from headwater.expressions import Frame, compile_condition
from headwater.streams.sql import plan

KEYS = 1_000_000
TUMBLE_M, HOP_M, PREDICATES, PREDICATES_MS = 20.0, 5.0, 1_000, 15.0
GIB = 1 << 30
PATTERN = (
    "SELECT * FROM telemetry MATCH_RECOGNIZE (PARTITION BY device ORDER BY ts MEASURES A.ts AS began, "
    "B.temperature - A.temperature AS rise PATTERN (A X*? B) WITHIN INTERVAL '1' MINUTE "
    "DEFINE A AS temperature > {above}, B AS B.temperature > A.temperature + 5)"
)


def run(bench: Bench) -> list[Row]:
    """Every part on its own."""
    quick = bench.rounds < 3
    return [
        _tumble(bench, 10 if quick else 40),
        _hop(bench, 1, "12b"),
        _hop(bench, 3, "12c"),
        _predicates(bench),
        _alarms(bench),
        _growth(1_000_000 if quick else 10_000_000),
        _matches(bench, 60, "12g", "nothing matches"),
        _matches(bench, 25, "12h", "half of all rows start a match"),
    ]


def _cpu_s(task: Callable[[], object]) -> float:
    """CPU seconds of a task, on all threads."""
    gc.collect()
    begin = time.process_time()
    task()
    return time.process_time() - begin


def _all(task: Callable[[pa.RecordBatch], object], batches: Iterable[pa.RecordBatch]) -> Callable[[], object]:
    def run_all() -> None:
        for batch in batches:
            task(batch)

    return run_all


def _million(rows: int, seconds: Sequence[float]) -> float:
    """Million rows a CPU second, in the middle."""
    return rows / median(seconds) / 1e6


def _tumble(bench: Bench, count: int) -> Row:
    """Rows of random devices within one window, so that each costs a cache line of its own."""
    fleet = Fleet(KEYS)
    at = START_US + 60 * MINUTE_US
    batches = [fleet.batch(at, jitter_us=4 * MINUTE_US) for _ in range(count)]
    query = windowed(TUMBLE, "temperature")
    cases: dict[str, list[float]] = {"ours": [], "numpy.at": [], "polars": [], "duckdb": []}
    for _ in range(bench.rounds):
        windows = windows_of(query, 15 * MINUTE_US, GIB)
        _all(lambda batch, to=windows: feed(to, batch), batches)()
        cases["ours"].append(_cpu_s(_all(lambda batch, to=windows: feed(to, batch), batches)))
        others = {"numpy.at": rivals.numpy_at, "polars": rivals.polars, "duckdb": rivals.duckdb}
        for name, make in others.items():
            engine = make(rivals.Dense(KEYS))
            if engine is not None:
                _all(engine, batches[:3])()
                cases[name].append(_cpu_s(_all(engine, batches)))
    rows = count * ROWS
    rates = {name: _million(rows, seconds) for name, seconds in cases.items() if seconds}
    beside = ", ".join(
        f"{name} {rates[name]:.1f}M" if name in rates else f"{name} not installed"
        for name in cases
        if name != "ours"
    )
    return Row(
        "12a",
        "windows of 5 minutes over one field (count, sum, min, max), 1M devices, one core",
        f">= {TUMBLE_M:g}M rows/s",
        f"{rates['ours']:.1f}M rows/s; group-by of each batch and dense merge: {beside}",
        judged(rates["ours"] >= TUMBLE_M),
        {"cpu_s": cases, "rows": rows},
    )


def _hop(bench: Bench, readings: int, number: str) -> Row:
    """Minute after minute: so many readings of each device, then the window that ends there comes out."""
    fleet = Fleet(KEYS)
    # Closing a window merges five panes of each device: readings of one minute, shifted by whole minutes.
    minute = [batch for _ in range(readings) for batch in fleet.every_device(START_US, 50 * SECOND_US)]
    query = windowed(HOP, "temperature")
    found = []
    for _ in range(bench.rounds):
        windows, spent, closed = windows_of(query, 0, GIB), [], 0
        for at in range(9):
            shifted = [_later(batch, at * MINUTE_US) for batch in minute]

            results: list[int] = []
            take = lambda batch, to=windows, results=results: results.append(feed(to, batch))  # noqa: E731
            spent.append(_cpu_s(_all(take, shifted)))
            closed += sum(results)
        assert closed >= 7 * KEYS, f"{closed} results"
        found.append(median(spent[5:]))
    rows = readings * KEYS
    rate = _million(rows, found)
    often = "one reading" if readings == 1 else f"{readings} readings"
    return Row(
        number,
        f"windows of 5 minutes each minute over one field, 1M devices with {often} a minute, closing included",
        f">= {HOP_M:g}M rows/s",
        f"{rate:.1f}M rows/s, {median(found) * 1e3:.0f} ms for a minute of all devices",
        judged(rate >= HOP_M),
        {"cpu_s": found},
    )


def _later(batch: pa.RecordBatch, by_us: int) -> pa.RecordBatch:
    times = pa.array(batch.column("ts").cast(pa.int64()).to_numpy() + by_us, pa.int64())
    at = batch.schema.get_field_index("ts")
    return batch.set_column(at, batch.schema.field(at), times.cast(batch.schema.field(at).type))


def _thresholds(values: npt.NDArray[np.float64]) -> list[float]:
    """As many as there are predicates, each below at most one in a thousand values and all different."""
    top = np.sort(values)[-ROWS // 1000 :]
    return np.linspace(top[0], top[-1], PREDICATES).tolist()


def _predicates(bench: Bench) -> Row:
    batches = [Fleet(KEYS).batch(START_US) for _ in range(3)]
    types = {column.name: column.type for column in TELEMETRY.columns}
    conditions = [
        compile_condition(f"temperature > {value!r}", types)
        for value in _thresholds(batches[0].column("temperature").to_numpy())
    ]
    found = []
    for _ in range(bench.rounds):
        for batch in batches:
            found.append(_cpu_s(lambda batch=batch: _evaluate(conditions, Frame(batch))))
    ms = median(found) * 1e3
    return Row(
        "12d",
        f"{PREDICATES:,} conditions on one field, each true for up to 1 in 1,000 rows, for 100,000 rows",
        f"<= {PREDICATES_MS:g} ms",
        f"{ms:.1f} ms",
        judged(ms <= PREDICATES_MS),
        {"cpu_s": found},
    )


def _evaluate(conditions: Sequence[Condition], frame: Frame) -> None:
    for condition in conditions:
        condition.evaluate(frame)


def _alarms(bench: Bench) -> Row:
    """The same as whole alarms that nothing raises: what a batch costs where all is well."""
    batches = [Fleet(KEYS).batch(START_US) for _ in range(3)]
    highest = max(float(batch.column("temperature").to_numpy().max()) for batch in batches)
    trackers = [
        Tracker(
            compile_alarm(
                f"a{at}",
                AlarmSettings(on="telemetry", where=f"temperature > {highest + at}", key=["device"]),
                {"telemetry": TELEMETRY},
            ),
            {},
            (0,) * 4,
        )
        for at in range(1, PREDICATES + 1)
    ]
    found = []
    for _ in range(bench.rounds):
        for batch in batches:
            found.append(_cpu_s(lambda batch=batch: _judge(trackers, Frame(batch))))
    ms = median(found) * 1e3
    return Row(
        "12e",
        f"{PREDICATES:,} alarms on one stream of which nothing raises one, for 100,000 rows",
        f"<= {PREDICATES_MS:g} ms",
        f"{ms:.1f} ms",
        judged(ms <= PREDICATES_MS),
        {"cpu_s": found},
    )


def _judge(trackers: Sequence[Tracker], frame: Frame) -> None:
    for tracker in trackers:
        assert not tracker.judge(frame)


def _growth(most: int) -> Row:
    """From 10,000 devices to the most; then at a bound of half of that the query stops and says so."""
    query = windowed(TUMBLE, "temperature")
    rates, sizes = {}, {}
    for keys in (10_000, 100_000, 1_000_000, 10_000_000):
        if keys > most:
            break
        fleet = Fleet(keys)
        windows = windows_of(query, 15 * MINUTE_US, GIB)
        for batch in fleet.every_device(START_US):
            feed(windows, batch)
        batches = [fleet.batch(START_US) for _ in range(20)]
        rates[keys] = 20 * ROWS / _cpu_s(_all(lambda batch, to=windows: feed(to, batch), batches)) / 1e6
        sizes[keys] = windows.state_bytes()
    bounded = windows_of(query, 15 * MINUTE_US, sizes[most] // 2)
    stopped = False
    try:
        for batch in Fleet(most).every_device(START_US):
            feed(bounded, batch)
    except QueryLimitError:
        stopped = bounded.state_bytes() <= sizes[most] // 2
    text = ", ".join(
        f"{keys:,}: {rate:.0f}M rows/s, {sizes[keys] / keys:.0f} B" for keys, rate in rates.items()
    )
    return Row(
        "12f",
        f"windows of 5 minutes over one field as devices grow to {most:,}, state a device; the bound holds",
        "shown for each, the bound held",
        f"{text}; at half of that memory the query {'stops with its input unread' if stopped else 'went on'}",
        judged(stopped),
        {"rows_s": rates, "bytes": sizes},
    )


def _matches(bench: Bench, above: int, number: str, what: str) -> Row:
    query = plan(PATTERN.format(above=above), "q", {"telemetry": TELEMETRY})
    found, count = [], 10
    for _ in range(bench.rounds):
        fleet = Fleet(KEYS, named=True)
        batches = [fleet.batch(START_US + at * SECOND_US, jitter_us=SECOND_US) for at in range(count + 2)]
        windows = windows_of(query, 0, GIB)
        _all(lambda batch, to=windows: feed(to, batch), batches[:2])()
        found.append(_cpu_s(_all(lambda batch, to=windows: feed(to, batch), batches[2:])))
    rate = _million(count * ROWS, found)
    return Row(
        number,
        f"MATCH_RECOGNIZE of A, then B within a minute, 1M devices, one core: {what}",
        "shown",
        f"{rate:.2f}M rows/s",
        SHOWN,
        {"cpu_s": found},
    )

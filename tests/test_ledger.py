"""The books of captured levels: a real log, store and database; every term is a count of its own."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.config import LogSettings, QuerySettings, StoreSettings
from headwater.database import Database
from headwater.declarations import StreamSettings
from headwater.ledger import MAX_VALUES, OTHERS, Ledger, LevelAccount
from headwater.log.embedded import EmbeddedLog
from headwater.records import OWN_SCHEMAS
from headwater.store.embedded import EmbeddedStore
from tests.tables import table

READINGS = table("readings", "site string, line string, device string, ts timestamp, value double")
NOW = 1_795_471_200_000_000


def stream(*books: str) -> StreamSettings:
    return StreamSettings.model_validate(
        {"topic": "dt/{site}/{line}/{device}", "fields": {"value": "double"}, "books": list(books)}
    )


class Bench:
    """One data directory, opened as a process does."""

    def __init__(self, directory: Path, books: tuple[str, ...] = ("site",)) -> None:
        self.now = NOW
        self.log = EmbeddedLog(directory / "log", LogSettings(partitions=2), [*OWN_SCHEMAS, READINGS])
        self.store = EmbeddedStore(self.log, directory, StoreSettings(), QuerySettings(), lambda: self.now)
        self.store.create(READINGS)
        self.database = Database.in_directory(directory, None)
        self.ledger = Ledger(
            self.log,
            self.database,
            self.store,
            {"readings": stream(*books)},
            {"readings": READINGS},
            lambda: self.now,
        )

    def append(self, sites: list[str], line: str = "l1") -> None:
        columns = [
            pa.array(sites, pa.string()),
            pa.array([line] * len(sites), pa.string()),
            pa.array([f"d{n % 7}" for n in range(len(sites))]),
            pa.array([NOW] * len(sites), READINGS.arrow.field("ts").type),
            pa.array([1.0] * len(sites)),
        ]
        self.log.append([(READINGS, pa.RecordBatch.from_arrays(columns, schema=READINGS.arrow))])

    def decoded(self, level: str = "site") -> dict[str, int]:
        """What the ledger counted; every account must balance."""
        accounts = self.ledger.accounts("readings")[level]
        assert all(account.balanced for account in accounts.values()), accounts
        return {value: account.decoded for value, account in accounts.items()}

    def stop(self, *, orderly: bool = True) -> None:
        """Ends as a process does; not orderly: nobody has the time to commit or flush."""
        if orderly:
            self.ledger.close()
            self.store.flush()
        self.store.close()
        self.log.close()
        self.database.close()
        # The log's directory is free when nobody refers to the log.
        del self.ledger, self.store, self.log
        gc.collect()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, ("site", "line"))
    yield bench
    bench.stop()


def test_books_are_opened_and_closed_while_rows_come(bench: Bench) -> None:
    def keep(*books: str) -> None:
        bench.ledger.change({"readings": stream(*books)}, {"readings": READINGS})

    bench.append(["a", "b", "a"])
    assert bench.decoded() == {"a": 2, "b": 1}
    keep()
    assert bench.ledger.accounts("readings") == {}
    bench.append(["b"])
    bench.store.flush()
    bench.append(["c"])
    keep("site")
    assert bench.decoded() == {"a": 2, "b": 2, "c": 1}
    keep("line")
    bench.append(["a"], line="l2")
    assert bench.decoded("line") == {"l1": 5, "l2": 1}
    keep("line", "site")
    assert (bench.decoded("line"), bench.decoded()) == ({"l1": 5, "l2": 1}, {"a": 3, "b": 2, "c": 1})
    assert not bench.ledger.step()


def test_each_value_has_terms_of_its_own(bench: Bench) -> None:
    bench.append(["a", "b", "a"])
    bench.store.flush()
    bench.append(["a", "c"], line="l2")
    accounts = bench.ledger.accounts("readings")
    assert accounts["site"] == {
        "a": LevelAccount(3, 2, 1),
        "b": LevelAccount(1, 1, 0),
        "c": LevelAccount(1, 0, 1),
    }
    assert accounts["line"] == {"l1": LevelAccount(3, 3, 0), "l2": LevelAccount(2, 0, 2)}
    assert bench.ledger.accounts("others") == {}


def test_a_row_that_the_store_lost_shows_under_its_value(bench: Bench) -> None:
    bench.append(["a", "b"])
    bench.store.step()
    tail = bench.store._entries["readings"].tail
    tail._batches = [batch.filter(pa.compute.equal(batch["site"], "a")) for batch in tail._batches]
    accounts = bench.ledger.accounts("readings")["site"]
    assert accounts["a"].balanced
    assert accounts["b"] == LevelAccount(1, 0, 0)
    assert not accounts["b"].balanced


@pytest.mark.parametrize("orderly", [True, False])
def test_counts_hold_over_restarts(tmp_path: Path, orderly: bool) -> None:
    for times in range(1, 4):
        bench = Bench(tmp_path)
        bench.append(["a", "b", "a"])
        bench.store.step()
        bench.now += 2_000_000
        bench.ledger.step()
        bench.append(["b"])
        assert bench.decoded() == {"a": 2 * times, "b": 2 * times}
        bench.stop(orderly=orderly)


def test_books_that_are_opened_later_begin_with_what_is_there(tmp_path: Path) -> None:
    first = Bench(tmp_path, ())
    first.append(["a", "b"])
    first.store.flush()
    first.append(["a"])
    assert first.ledger.accounts("readings") == {}
    first.stop(orderly=False)
    for books in (("site",), ("site", "line"), ("site",)):
        bench = Bench(tmp_path, books)
        bench.append(["c"])
        assert bench.decoded()["a"] == 2
        bench.stop()
    last = Bench(tmp_path)
    assert last.decoded() == {"a": 2, "b": 1, "c": 3}
    last.stop()


def test_values_beyond_the_bound_are_counted_together(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.append([f"s{n}" for n in range(MAX_VALUES)])
    assert len(bench.decoded()) == MAX_VALUES
    bench.append(["new", "s3", "newer", "new"])
    found = bench.decoded()
    assert (found[OTHERS], found["s3"]) == (3, 2)
    bench.stop()
    again = Bench(tmp_path)
    assert again.decoded() == found
    again.stop()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.lists(st.sampled_from(["a", "b", ""]), min_size=1, max_size=9),
            st.sampled_from(["store", "ledger", "flush", "look", "restart", "kill"]),
        ),
        max_size=14,
    )
)
def test_books_balance_whatever_comes_in_between(
    tmp_path_factory: pytest.TempPathFactory, steps: list[list[str] | str]
) -> None:
    directory = tmp_path_factory.mktemp("ledger")
    bench, wanted = Bench(directory), Counter[str]()
    for step in steps:
        bench.now += 700_000
        match step:
            case "store":
                bench.store.step()
            case "ledger":
                bench.ledger.step()
            case "flush":
                bench.store.flush()
            case "look":
                assert bench.decoded() == wanted
            case "restart" | "kill":
                bench.stop(orderly=step == "restart")
                bench = Bench(directory)
            case list():
                bench.append(step)
                wanted.update(step)
    assert bench.decoded() == wanted
    bench.stop()

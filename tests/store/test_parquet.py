"""A file holds the rows it was given, sorted, whatever their values, and its statistics bound them."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import StoreError
from headwater.store import parquet

SCHEMA = pa.schema(
    [
        ("device", pa.string()),
        ("ts", pa.timestamp("us", "UTC")),
        ("site", pa.string()),
        ("value", pa.float64()),
        ("count", pa.int64()),
        ("ok", pa.bool_()),
        ("payload", pa.binary()),
    ]
)


def table(rows: list[dict[str, Any]], batches: int = 1) -> pa.Table:
    """The rows in so many chunks, as the tail has them."""
    step = max(1, -(-len(rows) // batches))
    parts = [
        pa.RecordBatch.from_pylist(rows[at : at + step], SCHEMA) for at in range(0, max(1, len(rows)), step)
    ]
    return pa.Table.from_batches(parts, SCHEMA)


def ordered(rows: pa.Table) -> list[str]:
    return sorted(map(repr, rows.to_pylist()))


_TEXT = st.one_of(st.none(), st.text(max_size=5), st.sampled_from(["a", "b", "c" * 100]))
_ROW = st.fixed_dictionaries(
    {
        "device": _TEXT,
        # Python shows years 1 to 9999; the whole of it makes (code, ts) too wide for one int64.
        "ts": st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999),
        "site": _TEXT,
        "value": st.one_of(st.none(), st.floats(allow_nan=False)),
        "count": st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
        "ok": st.one_of(st.none(), st.booleans()),
        "payload": st.one_of(st.none(), st.binary(max_size=5)),
    }
)


@given(st.lists(_ROW, min_size=1, max_size=60), st.integers(1, 4), st.sampled_from(["device", None]))
@settings(max_examples=60, deadline=None)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], batches: int, key: str | None
) -> None:
    directory = tmp_path_factory.mktemp("parquet")
    given_rows = table(rows, batches)
    written = parquet.write(directory, "part-x", given_rows, key)
    path = directory / written.name
    found = pq.read_table(path, page_checksum_verification=True)
    assert found.schema.remove_metadata().equals(SCHEMA)
    assert ordered(found) == ordered(given_rows)
    keys = [(row["device"] is not None, row["device"] or "") if key else () for row in found.to_pylist()]
    assert [*zip(keys, found["ts"].cast(pa.int64()).to_pylist(), strict=True)] == sorted(
        zip(keys, found["ts"].cast(pa.int64()).to_pylist(), strict=True)
    )
    by_duckdb = duckdb.sql(
        f"SELECT * FROM read_parquet('{path}', hive_partitioning = false)"
    ).to_arrow_table()
    assert ordered(by_duckdb.cast(SCHEMA)) == ordered(given_rows)
    parquet.verify(path, "x")
    assert (written.rows, written.size) == (len(rows), path.stat().st_size)
    _check_statistics(json.loads(written.stats), given_rows)


def _check_statistics(stats: dict[str, Any], rows: pa.Table) -> None:
    assert stats["numRecords"] == rows.num_rows
    assert stats["nullCount"] == {name: rows[name].null_count for name in rows.column_names}
    assert set(stats["minValues"]) == set(stats["maxValues"])
    assert "ts" in stats["minValues"]
    for name, low in stats["minValues"].items():
        high = stats["maxValues"][name]
        for value in rows[name].to_pylist():
            if name == "ts":
                assert datetime.fromisoformat(low) <= value <= datetime.fromisoformat(high)
            elif value is not None:
                assert low <= value <= high


@pytest.mark.parametrize("devices", [1, 3, 1000, 250_000])
def test_row_groups_keep_their_keys(tmp_path: Path, devices: int) -> None:
    """More than one row group, with and without a dictionary of keys."""
    count = 300_000
    names = [f"d{i % devices:06}" if i % 1000 else None for i in range(count)]
    columns = {
        "device": pa.array(names),
        "ts": pa.array(range(count), pa.timestamp("us", "UTC")),
        "value": pa.array([float(i % 50) for i in range(count)]),
    }
    written = parquet.write(tmp_path, "part-x", pa.table(columns), "device")
    found = pq.read_table(tmp_path / written.name).sort_by("ts")
    assert found["device"].to_pylist() == names
    assert found["value"].equals(pa.chunked_array([columns["value"]]))
    groups = pq.ParquetFile(tmp_path / written.name).metadata.num_row_groups
    assert groups == 3


def test_a_flipped_bit_shows(tmp_path: Path) -> None:
    written = parquet.write(tmp_path, "part-x", table([{"device": "a", "ts": 1, "value": 0.5}]), "device")
    path = tmp_path / written.name
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(StoreError, match=f"{path.name} is damaged"):
            parquet.verify(path, "x")

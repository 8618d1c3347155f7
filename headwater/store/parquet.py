"""One immutable Parquet file: rows of one table, sorted by (key, ts), in encodings chosen per type."""

from __future__ import annotations

import json
import math
import re
import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headwater import durable
from headwater.errors import StoreError
from headwater.store import keynumbers

#: Rows of a row group: what one thread of DuckDB scans at a time, and what statistics may skip. Ours.
ROW_GROUP_ROWS: Final = 122_880

#: A text column with more distinct values than this in a file is written plain; the key column never is. Ours.
_DICTIONARY_VALUES: Final = 4096

#: Values of which at most this share of a sample is distinct are written with a dictionary: measured on quantised
#: readings 11 B a row beside 20 with byte-stream-split, at the same CPU, and DuckDB reads them 2.5 times as fast. Ours.
_DISTINCT_SHARE: Final = 0.5
_SAMPLE_ROWS: Final = 4096

#: A key column with fewer rows than this per key is written without a dictionary: DuckDB needs 5 times as long for a
#: dictionary of which every entry is used once. Ours.
_ROWS_PER_KEY: Final = 3

#: Longest text put into statistics, characters. A longer bound would make the commit large and prune little. Ours.
_STATISTIC_CHARACTERS: Final = 64

_CHECKED_NAME: Final = re.compile(r"part-.*-([0-9a-f]{8})\.parquet")

_I64_MAX: Final = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Written:
    """A file that has been written and fsynced.

    name:  of the file in its directory; ends with the CRC-32 of all its bytes
    stats: Delta's statistics of the file as JSON text: numRecords, minValues, maxValues, nullCount
    """

    name: str
    size: int
    rows: int
    stats: str


def write(directory: Path, stem: str, table: pa.Table, key: str | None) -> Written:
    """Writes `table` sorted by (key, ts), durably: a power cut leaves the whole file or none of that name.

    stem:   beginning of the file's name
    table:  at least one row; column `ts` timestamp[us]
    key:    the string column that comes first in the order, None: by ts alone
    raises: OSError
    """
    order, codes, names = _sorted(table[key] if key is not None else None, table["ts"])
    stats = _Statistics(table.num_rows)
    columns: dict[str, Any] = {}
    for name in table.column_names:
        if name == key and codes is not None and names is not None:
            stats.add(name, table[name].null_count, names)
            columns[name] = _Keys(codes, names)
        else:
            column = _small_dictionary(table[name])
            stats.add(name, column.null_count, column)
            columns[name] = column.take(pa.array(order))
    durable.make_directory(directory)
    temporary = directory / f"{stem}.tmp"
    schema = pa.schema([pa.field(name, columns[name].type) for name in table.column_names])
    try:
        with pq.ParquetWriter(temporary, schema, **_options(schema, columns)) as writer:
            for start in range(0, table.num_rows, ROW_GROUP_ROWS):
                part = [columns[name].slice(start, ROW_GROUP_ROWS) for name in schema.names]
                writer.write_table(pa.table(part, schema=schema), row_group_size=ROW_GROUP_ROWS)
        name = f"{stem}-{_crc(temporary):08x}.parquet"
        durable.publish(temporary, directory / name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return Written(name, (directory / name).stat().st_size, table.num_rows, stats.json())


def verify(path: Path, table: str) -> None:
    """Compares the file's bytes with the checksum in its name, where it has one. raises: StoreError, which names it

    DuckDB does not look at the checksums of Parquet pages, so a flipped bit could become a wrong reading.
    """
    match = _CHECKED_NAME.fullmatch(path.name)
    try:
        whole = match is None or _crc(path) == int(match[1], 16)
    except OSError as error:
        raise StoreError(f"table {table!r}: reading {path.name}: {error.strerror}") from error
    if not whole:
        raise StoreError(
            f"table {table!r}: file {path.parent.name}/{path.name} is damaged: its bytes do not match the checksum in"
            " its name; restore it from a copy"
        )


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            crc = zlib.crc32(chunk, crc)
    return crc


def _sorted(
    key: pa.ChunkedArray | None, ts: pa.ChunkedArray
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None, pa.Array | None]:
    """The order of (key, ts), and in that order per row the rank of its key (-1: NULL), and the sorted distinct keys.

    From the texts, not from the log's dense ids: a key column that was changed in the configuration has ids of both.
    """
    time = pc.fill_null(ts.cast(pa.int64()), 0).combine_chunks().to_numpy(zero_copy_only=False)
    if key is None:
        return np.argsort(time, kind="stable"), None, None
    low = int(time.min())
    span = int(time.max()) - low + 1
    texts = _combined(key)
    numbered = keynumbers.numbers(texts, _I64_MAX // span)
    if numbered is not None:
        order = np.argsort(numbered * span + (time - low))
        numbers = numbered[order]
        begins = np.concatenate([[True], numbers[1:] != numbers[:-1]])
        return order, np.cumsum(begins) - 1, texts.take(pa.array(order[begins]))
    codes, names = _ranks(key)
    if (int(codes.max()) + 2) * span <= _I64_MAX:
        order = np.argsort((codes + 1) * span + (time - low))
    else:
        order = np.lexsort((time, codes))
    return order, codes[order], names


def _ranks(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """Per row the rank of its text among the column's sorted distinct texts (-1: NULL), and these texts."""
    encoded = _encode(column)
    sorted_at = pc.array_sort_indices(encoded.dictionary)
    # One slot more than texts: index -1 (NULL) finds the last one.
    rank = np.full(len(encoded.dictionary) + 1, -1, np.int64)
    rank[sorted_at.to_numpy()] = np.arange(len(encoded.dictionary))
    codes = rank[pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)]
    return codes, encoded.dictionary.take(sorted_at)


def _encode(column: pa.ChunkedArray) -> pa.DictionaryArray:
    encoded = column.dictionary_encode().combine_chunks()
    return encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded


def _small_dictionary(column: pa.ChunkedArray) -> pa.Array:
    """Texts with few distinct values as indices, which sort faster than text; all else as it is."""
    if pa.types.is_string(column.type) and column.length():
        encoded = _encode(column)
        if len(encoded.dictionary) <= _DICTIONARY_VALUES:
            return encoded
    return _combined(column)


def _combined(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined


class _Keys:
    """The key column, sorted: per row the index of its text in the sorted texts, -1 for NULL."""

    def __init__(self, codes: npt.NDArray[np.int64], names: pa.Array) -> None:
        self._codes = codes
        self._names = names
        self._many_rows = len(codes) >= _ROWS_PER_KEY * len(names)

    @property
    def type(self) -> pa.DataType:
        return pa.dictionary(pa.int32(), pa.string()) if self._many_rows else pa.string()

    def slice(self, start: int, rows: int) -> pa.Array:
        """A row group, with only its own stretch of the texts: pyarrow writes a whole dictionary."""
        codes = self._codes[start : start + rows]
        null = codes < 0
        if null.all():
            return pa.nulls(len(codes), pa.string()).cast(self.type)
        low, high = int(codes[~null].min()), int(codes.max())
        indices = pa.array((codes - low).astype(np.int32), mask=null)
        names = self._names.slice(low, high - low + 1)
        return pa.DictionaryArray.from_arrays(indices, names) if self._many_rows else names.take(indices)


def _options(schema: pa.Schema, columns: dict[str, Any]) -> dict[str, Any]:
    encodings = {}
    dictionaries = []
    for field in schema:
        type_ = field.type
        if pa.types.is_integer(type_) or pa.types.is_timestamp(type_):
            encodings[field.name] = "DELTA_BINARY_PACKED"
        elif pa.types.is_dictionary(type_) or (
            not pa.types.is_boolean(type_) and _repeats(columns[field.name])
        ):
            dictionaries.append(field.name)
        elif pa.types.is_floating(type_):
            encodings[field.name] = "BYTE_STREAM_SPLIT"
        elif pa.types.is_string(type_) or pa.types.is_binary(type_):
            encodings[field.name] = "DELTA_LENGTH_BYTE_ARRAY"
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": dictionaries,
        "column_encoding": encodings,
        "write_page_checksum": True,
        # Without Arrow's own schema every reader sees the plain types, not our dictionaries.
        "store_schema": False,
        "write_statistics": True,
    }


def _repeats(column: pa.Array | _Keys) -> bool:
    """Whether a dictionary pays: judged on rows spread evenly over the column."""
    if isinstance(column, _Keys):
        return False
    step = max(1, len(column) // _SAMPLE_ROWS)
    sample = column.take(pa.array(np.arange(0, len(column), step)))
    return len(sample.unique()) <= max(1, len(sample) * _DISTINCT_SHARE)


class _Statistics:
    """Statistics as in Delta's protocol, "Per-file Statistics". Every column of the file is in nullCount."""

    def __init__(self, rows: int) -> None:
        self._values: dict[str, Any] = {"numRecords": rows, "minValues": {}, "maxValues": {}, "nullCount": {}}

    def add(self, name: str, nulls: int, values: pa.Array) -> None:
        """values: the column, or its distinct values"""
        self._values["nullCount"][name] = nulls
        if pa.types.is_dictionary(values.type):
            values = values.dictionary
        if pa.types.is_boolean(values.type) or pa.types.is_binary(values.type):
            return
        bounds = pc.min_max(values)
        low, high = _plain(bounds["min"]), _plain(bounds["max"])
        if low is not None and high is not None:
            self._values["minValues"][name], self._values["maxValues"][name] = low, high

    def json(self) -> str:
        return json.dumps(self._values)


def _plain(bound: pa.Scalar) -> str | int | float | None:
    """JSON of a bound; None where JSON or other readers could not hold it exactly."""
    if not bound.is_valid:
        return None
    if pa.types.is_timestamp(bound.type):
        try:
            return iso(bound.value)
        except OverflowError:
            return None
    value = bound.as_py()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value if len(value) <= _STATISTIC_CHARACTERS else None
    return int(value)


def iso(time_us: int) -> str:
    """Delta's text of a timestamp: microseconds since the epoch, UTC. raises: OverflowError outside the years 1 to 9999

    >>> iso(1_000_001)
    '1970-01-01T00:00:01.000001Z'
    """
    time = datetime(1970, 1, 1) + timedelta(microseconds=time_us)
    return time.isoformat(timespec="microseconds") + "Z"

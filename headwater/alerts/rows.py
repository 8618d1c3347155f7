"""What is remembered of every key that sends: when it was last seen, and its last value, as columns over key numbers.

Only alarms with `silent` or `rate` keep it: 40 bytes and the key's text for each key, at most `max_keys` of them.
What has changed since the last commit is written as one journal record (docs/formats/alarm-rows.md), in the
transaction that holds the offsets; a new start reads all records and writes them as one.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from headwater.errors import DataDirectoryError

#: Of one key. seen_us: by the clock, 0: never; partition and offset: that row; at_us: event time of `value`, NEVER:
#: none.
_ROW: Final = np.dtype(
    [("seen_us", "<i8"), ("offset", "<u8"), ("at_us", "<i8"), ("value", "<f8"), ("partition", "<u2")]
)
#: No event time: before all that can be.
NEVER: Final = np.iinfo(np.int64).min

_MAGIC: Final = b"HWAR"
_VERSION: Final = 1

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Seen:
    """The last row of each of these keys, for the silence that follows: arrays of one length."""

    numbers: Numbers
    seen_us: npt.NDArray[np.int64]
    partitions: npt.NDArray[np.uint16]
    offsets: npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Values:
    """The last value of each of these keys, for the next rate."""

    numbers: Numbers
    at_us: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


class KeyRows:
    """Keys by number, in the order in which they were first seen. A key is its JSON text."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._rows = np.empty(0, _ROW)
        self._changed = np.zeros(0, np.bool_)
        self._written = 0  # numbers below it have their text in the journal

    def __len__(self) -> int:
        return len(self.texts)

    def add(self, text: str) -> int:
        """The number of a key that is new."""
        number = len(self.texts)
        self.texts.append(text)
        if number >= len(self._rows):
            more = max(1024, len(self._rows))
            fresh = np.zeros(more, _ROW)
            fresh["at_us"] = NEVER
            self._rows = np.concatenate([self._rows, fresh])
            self._changed = np.concatenate([self._changed, np.zeros(more, np.bool_)])
        return number

    def fits(self, names: Sequence[str]) -> bool:
        """Whether its keys have these columns, or there are none."""
        return not self.texts or sorted(orjson.loads(self.texts[0])) == sorted(names)

    def column(self, name: str) -> npt.NDArray[Any]:
        """One value per key; a view, valid until the next `add`."""
        found: npt.NDArray[Any] = self._rows[name][: len(self.texts)]
        return found

    def put_seen(self, seen: Seen) -> None:
        rows, at = self._rows, seen.numbers
        rows["seen_us"][at], rows["partition"][at], rows["offset"][at] = (
            seen.seen_us,
            seen.partitions,
            seen.offsets,
        )
        self._changed[at] = True

    def put_values(self, values: Values) -> None:
        self._rows["at_us"][values.numbers], self._rows["value"][values.numbers] = (
            values.at_us,
            values.values,
        )
        self._changed[values.numbers] = True

    def delay(self, by_us: int) -> None:
        """Moves every time of the clock: nothing could be seen for so long."""
        seen = self.column("seen_us")
        seen[seen > 0] += by_us

    def record(self) -> bytes | None:
        """What has changed since the last record, or None. Nothing counts as written before `recorded`."""
        numbers = np.flatnonzero(self._changed[: len(self.texts)])
        fresh = np.arange(self._written, len(self.texts))
        numbers = np.union1d(numbers, fresh)
        return self._encode(numbers, self._written) if len(numbers) else None

    def recorded(self) -> None:
        """The last `record` is committed."""
        self._changed[:] = False
        self._written = len(self.texts)

    def whole(self) -> bytes:
        """Everything as one record that stands for all before it."""
        return self._encode(np.arange(len(self.texts)), 0)

    def _encode(self, numbers: Numbers, texts_from: int) -> bytes:
        rows = self._rows[numbers]
        texts = [self.texts[at] if at >= texts_from else None for at in numbers.tolist()]
        batch = pa.record_batch(
            {
                "number": pa.array(numbers.astype(np.int32)),
                "key": pa.array(texts, pa.string()),
                **{name: pa.array(np.ascontiguousarray(rows[name])) for name in _ROW.names or ()},
            }
        )
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
            writer.write_batch(batch)
        body: bytes = sink.getvalue().to_pybytes()
        return _MAGIC + _VERSION.to_bytes(2, "little") + zlib.crc32(body).to_bytes(4, "little") + body

    @classmethod
    def restored(cls, alarm: str, records: Iterable[bytes]) -> KeyRows:
        """What these records, in their order, have left.

        raises: DataDirectoryError when a record is damaged or of another version
        """
        found = cls()
        for record in records:
            found._apply(_decode(alarm, record))
        found.recorded()
        return found

    def _apply(self, batch: pa.RecordBatch) -> None:
        numbers = batch.column("number").to_numpy().astype(np.int64)
        for number, text in zip(numbers.tolist(), batch.column("key").to_pylist(), strict=True):
            if text is not None and number == len(self.texts):
                self.add(text)
        for name in _ROW.names or ():
            self._rows[name][numbers] = batch.column(name).to_numpy()


def _decode(alarm: str, record: bytes) -> pa.RecordBatch:
    version, crc, body = int.from_bytes(record[4:6], "little"), record[6:10], record[10:]
    if record[:4] != _MAGIC or version != _VERSION or zlib.crc32(body) != int.from_bytes(crc, "little"):
        raise DataDirectoryError(
            f"reading what alarm {alarm!r} remembers of its keys: a record of table alarm_rows is damaged or "
            f"of another version (found {record[:6]!r}); delete the alarm's rows from that table to begin anew"
        )
    return pa.ipc.open_stream(pa.py_buffer(body)).read_next_batch()


def rates(
    numbers: Numbers,
    at_us: npt.NDArray[np.int64],
    values: npt.NDArray[np.float64],
    before: KeyRows,
    per_us: int,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], Values]:
    """How fast each key's value changes from row to row.

    A row counts where its event time is later than all of its key before; a late one has no rate and is forgotten.

    numbers, at_us, values: of each row, in the order of the log
    before:  the last value of each key
    gives:   the change in `per_us` and whether there is one, per row; and the last value of each key afterwards
    """
    keys, key_of = np.unique(numbers, return_inverse=True)
    # Each key's last row stands before its rows; then sorted by key, the order of the log kept.
    group = np.concatenate([np.arange(len(keys)), key_of])
    order = np.argsort(group, kind="stable")
    group = group[order]
    at = np.concatenate([before.column("at_us")[keys], at_us])[order]
    value = np.concatenate([before.column("value")[keys], values])[order]
    head = order < len(keys)
    # The latest event time of the key so far, by rank so that it never falls from one key to the next.
    rank = np.unique(at, return_inverse=True)[1].astype(np.int64)
    highest = np.maximum.accumulate(group * (len(at) + 1) + rank)
    counts = head.copy()
    counts[1:] |= (highest[1:] > highest[:-1]) & ~head[1:]
    position = np.arange(len(at))
    last = np.maximum.accumulate(np.where(counts, position, 0))
    previous = np.concatenate([[0], last[:-1]])
    known = counts & ~head & (at[previous] != NEVER)
    with np.errstate(all="ignore"):
        change = (value - value[previous]) * (per_us / np.where(known, (at - at[previous]), 1).astype(float))
    rate = np.empty(len(numbers))
    is_known = np.empty(len(numbers), np.bool_)
    rows = order[~head] - len(keys)
    rate[rows], is_known[rows] = change[~head], known[~head]
    ends = np.concatenate([np.flatnonzero(np.diff(group)), [len(group) - 1]]) if len(group) else position
    final = last[ends] if len(group) else position
    moved = ~head[final]
    return rate, is_known, Values(keys[moved], at[final][moved], value[final][moved])

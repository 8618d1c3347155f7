"""Small numbers for the keys of one alarm, so that numpy can tell which rows concern a key that is remembered.

Where the alarm's key is the stream's own, the log has numbered it already. Any other key, and every key of an alarm
that remembers all that send, gets a number here with its first row; Python runs once per distinct key of a batch at
most.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from headwater.alerts.conditions import Alarm
from headwater.alerts.rows import KeyRows, Numbers
from headwater.expressions import Frame

#: Keys that a number is remembered for before those of which nothing else is remembered are forgotten.
MAX_IDLE_KEYS: Final = 1_000_000

_UNMET, _REFUSED = -1, -2

_Key = tuple[Any, ...]
Rows = npt.NDArray[np.intp]


class Keys:
    """Numbers of the keys of `alarm`, and their text: a JSON object of the key columns, sorted by name.

    rows: where the alarm remembers every key that sends: they number the keys, durably
    """

    def __init__(self, alarm: Alarm, rows: KeyRows | None) -> None:
        self._names = alarm.key
        self._max_keys = alarm.max_keys
        self._rows = rows
        #: The alarm's key is the stream's: the log's `_key` tells it.
        self.dense = alarm.key == (alarm.schema.key,)
        self._by_key: dict[_Key, int] = {}
        self._by_log: npt.NDArray[np.int64] = np.full(1024, _UNMET, np.int64)
        #: Texts of the log's numbers that something is remembered for.
        self._texts: dict[int, str] = {}
        #: Restored texts whose number comes with their first row.
        self.unmet: dict[str, str] = {}
        self.refused = 0
        for number, text in enumerate(rows.texts if rows is not None else ()):
            self._by_key[self._parsed(text)] = number

    def fits(self, text: str) -> bool:
        """Whether a restored key has the columns of today's definition."""
        return sorted(orjson.loads(text)) == sorted(self._names)

    def restore(self, text: str) -> int | None:
        """The number of a restored key; None where it comes with the key's first row (`meet`)."""
        key = self._parsed(text)
        if self.dense and self._rows is None:
            self.unmet[key[0]] = text
            return None
        return self._number(key, bounded=False)

    def meet(self, frame: Frame) -> Iterable[tuple[str, int]]:
        """Text and number of restored keys of which a row comes by."""
        if not self.unmet:
            return
        keys = frame.batch.column(self._names[0]).fill_null("")
        members = pa.array(list(self.unmet), pa.string())
        rows = np.flatnonzero(pc.is_in(keys, value_set=members).to_numpy(zero_copy_only=False))
        names = keys.take(pa.array(rows)).to_pylist()
        for name, number in zip(names, frame.batch.column("_key").to_numpy()[rows].tolist(), strict=True):
            text = self.unmet.pop(name, None)
            if text is not None:
                self._texts[number] = text
                yield text, number

    def text(self, number: int) -> str:
        """The key of a number that `name` or `every` has met."""
        return self._rows.texts[number] if self._rows is not None else self._texts[number]

    def name(self, frame: Frame, row: int, number: int) -> None:
        """Remembers the text of the key of this row."""
        if self._rows is None and number not in self._texts:
            key = tuple(frame.batch.column(name)[row].as_py() for name in self._names)
            self._texts[number] = self._json(key)

    def every(self, frame: Frame, rows: Rows) -> Numbers:
        """The number of each of these rows' keys; -1 where `max_keys` are known without it."""
        if not self._names:
            return np.full(len(rows), self._number(()), np.int64)
        if not self.dense:
            columns = [frame.batch.column(name).take(pa.array(rows)) for name in self._names]
            return self._numbered(columns)
        log = frame.batch.column("_key").to_numpy()[rows].astype(np.int64)
        most = int(log.max(initial=0)) + 1
        if most > len(self._by_log):
            more = np.full(max(most, 2 * len(self._by_log)) - len(self._by_log), _UNMET, np.int64)
            self._by_log = np.concatenate([self._by_log, more])
        new = np.flatnonzero(self._by_log[log] == _UNMET)
        if len(new):
            fresh, first = np.unique(log[new], return_index=True)
            names = frame.batch.column(self._names[0]).take(pa.array(rows[new[first]])).to_pylist()
            # In the order of the log, so that it does not depend on the batch who is refused.
            for at in np.argsort(first, kind="stable").tolist():
                number = self._number((names[at] or "",))
                self._by_log[fresh[at]] = number if number >= 0 else _REFUSED
        found: Numbers = np.maximum(self._by_log[log], -1)
        return found

    def some(self, frame: Frame, counts: Any, raises: Any, remembered: Iterable[int]) -> tuple[Rows, Numbers]:
        """Rows that count and whose key is remembered or raises, and the number of each one's key."""
        if self._rows is not None:
            rows = np.flatnonzero(counts)
            numbers = self.every(frame, rows)
            return rows[numbers >= 0], numbers[numbers >= 0]
        if self.dense:
            rows = np.flatnonzero(counts)
            return rows, frame.batch.column("_key").to_numpy()[rows].astype(np.int64)
        if not self._names:
            rows = np.flatnonzero(counts)
            return rows, np.full(len(rows), self._number(()), np.int64)
        # Told by the first key column, then exactly by the number.
        first = frame.batch.column(self._names[0])
        kept = set(remembered)
        known = pa.array([key[0] for key, number in self._by_key.items() if number in kept], first.type)
        members = pa.concat_arrays([known, first.filter(pa.array(raises))]).unique()
        rows = np.flatnonzero(counts & pc.is_in(first, value_set=members).to_numpy(zero_copy_only=False))
        columns = [frame.batch.column(name).take(pa.array(rows)) for name in self._names]
        return rows, self._numbered(columns, bounded=False)

    def forget(self, number: int) -> None:
        """Nothing is remembered for this number any more."""
        if self.dense:
            self._texts.pop(number, None)

    def crowded(self, remembered: int) -> bool:
        """Whether too many keys have a number here that nothing is remembered of."""
        return self._rows is None and not self.dense and len(self._by_key) > MAX_IDLE_KEYS + remembered

    def renumber(self, remembered: Container[int]) -> list[tuple[int, int]]:
        """Forgets the other keys; gives old and new number of those that are remembered."""
        kept = [(key, number) for key, number in self._by_key.items() if number in remembered]
        self._texts = {new: self._texts[old] for new, (_, old) in enumerate(kept)}
        self._by_key = {key: new for new, (key, _) in enumerate(kept)}
        return [(old, new) for new, (_, old) in enumerate(kept)]

    def _number(self, key: _Key, bounded: bool = True) -> int:
        number = self._by_key.get(key)
        if number is None:
            if self._rows is None:
                number = len(self._by_key)
                self._texts[number] = self._json(key)
            elif bounded and len(self._rows) >= self._max_keys:
                self.refused += 1
                return -1
            else:
                number = self._rows.add(self._json(key))
            self._by_key[key] = number
        return number

    def _numbered(self, columns: list[pa.Array], bounded: bool = True) -> Numbers:
        codes = np.zeros(len(columns[0]), np.int64)
        for column in columns:
            encoded = column.dictionary_encode(null_encoding="encode")
            codes = codes * len(encoded.dictionary) + encoded.indices.to_numpy()
            codes = np.unique(codes, return_inverse=True)[1]
        _, firsts = np.unique(codes, return_index=True)
        keys = list(zip(*(column.take(pa.array(firsts)).to_pylist() for column in columns), strict=True))
        numbers = np.empty(len(keys), np.int64)
        for at in np.argsort(firsts, kind="stable").tolist():
            numbers[at] = self._number(keys[at], bounded)
        return numbers[codes]

    def _json(self, key: _Key) -> str:
        # The log knows one empty key: a missing name and an empty one are the same instance.
        values = [(value or "") if self.dense else value for value in key]
        return orjson.dumps(dict(zip(self._names, values, strict=True)), option=orjson.OPT_SORT_KEYS).decode()

    def _parsed(self, text: str) -> _Key:
        key = orjson.loads(text)
        return tuple((key[name] or "") if self.dense else key[name] for name in self._names)

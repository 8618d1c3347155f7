"""The instances of one alarm in memory, and which rows of a batch can change them.

Most rows change nothing: they are told apart by numpy, and the state machine runs only over rows of keys that some row
of the batch moves. Nothing is kept before `keep`: a batch whose transaction failed is judged again from the same state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from headwater.alerts.conditions import Alarm
from headwater.alerts.machine import Instance, State, advance
from headwater.expressions import Frame
from headwater.records import ColumnType, Offsets

_PENDING: Final = 1
_FIRING: Final = 2

#: Keys that a general (not the stream's own) key remembers a number for before it forgets those without an instance.
MAX_IDLE_KEYS: Final = 1_000_000

_Key = tuple[Any, ...]
_Slots = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Transition:
    """One state that an instance entered.

    key:      JSON object of the key columns, sorted by name
    instance: the instance as it was left (resolved, inactive) or entered (pending, firing)
    at_us, partition, offset: the row that caused it
    """

    key: str
    state: State
    instance: Instance
    at_us: int
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one batch does to an alarm: transitions in log order, and the instances afterwards by slot."""

    transitions: list[Transition]
    instances: dict[int, Instance | None]


class Tracker:
    """The instances of `alarm`; a slot is a key's small number: the log's `_key`, or one given here."""

    def __init__(self, alarm: Alarm, instances: Mapping[str, Instance], start: Offsets) -> None:
        """
        instances: open ones, by key in JSON
        start:     the alarm sees no rows below these offsets
        """
        self.alarm = alarm
        self._dense = alarm.key == (alarm.schema.key,)
        self._instances: dict[int, Instance] = {}
        self._phase = np.zeros(1024, np.uint8)
        self._touched = np.zeros(1024, np.bool_)
        self._slots: dict[_Key, int] = {}
        self._unseen: dict[str, Instance] = {}  # dense: restored, its slot is known with its first row
        self._start: npt.NDArray[np.uint64] | None = np.array(start, np.uint64)
        for text, instance in instances.items():
            key = orjson.loads(text)
            if sorted(key) != sorted(alarm.key):
                continue  # of an earlier definition with another key: stays as it is
            if self._dense:
                self._unseen[key[alarm.key[0]] or ""] = instance
            else:
                self._put(self._slot(tuple(key[name] for name in alarm.key)), instance)

    def judge(self, frame: Frame) -> Judgement:
        """What the batch's rows do, without doing it."""
        raises, cancels = self.alarm.where.evaluate(frame)
        if not (self._instances or self._unseen or raises.any()):
            return Judgement([], {})
        resolves = self.alarm.clear.evaluate(frame)[0] if self.alarm.clear else cancels
        partitions = frame.batch.column("_partition").to_numpy()
        offsets = frame.batch.column("_offset").to_numpy()
        counts = raises | cancels | resolves
        if self._start is not None:
            counts = counts & (offsets >= self._start[partitions])
        self._find_unseen(frame)
        rows, slots = self._rows(frame, counts, raises)
        if not len(rows):
            return Judgement([], {})

        # A row matters if it moves its key's instance as it is now; then all later rows of that key may matter.
        phase = self._phase[slots]
        up, down, out = raises[rows], cancels[rows], resolves[rows]
        moves = np.where(phase == _FIRING, out, up | (down & (phase == _PENDING)))
        moved = slots[moves]
        self._touched[moved] = True
        chosen = np.flatnonzero(self._touched[slots])
        self._touched[moved] = False

        times = frame.value("ts", ColumnType.TIMESTAMP)[0]
        at = rows[chosen]
        judged = zip(
            at.tolist(),
            slots[chosen].tolist(),
            up[chosen].tolist(),
            down[chosen].tolist(),
            out[chosen].tolist(),
            times[at].tolist(),
            partitions[at].tolist(),
            offsets[at].tolist(),
            strict=True,
        )
        return self._advance(frame, judged)

    def keep(self, judgement: Judgement, position: Offsets) -> None:
        """The batch is committed: its instances are those from now on, and reading has come to `position`."""
        for slot, instance in judgement.instances.items():
            self._put(slot, instance)
        if self._start is not None and all(np.array(position, np.uint64) >= self._start):
            self._start = None
        if len(self._slots) > MAX_IDLE_KEYS + len(self._instances):
            self._forget_idle()

    def _advance(self, frame: Frame, judged: Any) -> Judgement:
        for_us = self.alarm.for_us
        instances: dict[int, Instance | None] = {}
        transitions: list[Transition] = []
        for row, slot, raises, cancels, resolves, at_us, partition, offset in judged:
            before = instances[slot] if slot in instances else self._instances.get(slot)
            after, entered = advance(
                before,
                raises=raises,
                cancels=cancels,
                resolves=resolves,
                at_us=at_us,
                partition=partition,
                offset=offset,
                for_us=for_us,
            )
            if entered:
                instances[slot] = after
                key, instance = self._key_json(frame, row), after or before
                assert instance is not None  # a state is entered or left by an instance
                transitions += [
                    Transition(key, state, instance, at_us, partition, offset) for state in entered
                ]
        return Judgement(transitions, instances)

    def _rows(self, frame: Frame, counts: Any, raises: Any) -> tuple[npt.NDArray[np.intp], _Slots]:
        """Rows that could matter, and the slot of each one's key."""
        if self._dense:
            rows = np.flatnonzero(counts)
            slots = frame.batch.column("_key").to_numpy()[rows].astype(np.int64)
            self._grow(int(slots.max(initial=0)) + 1)
            return rows, slots
        if not self.alarm.key:
            rows = np.flatnonzero(counts)
            self._grow(self._slot(()) + 1)
            return rows, np.zeros(len(rows), np.int64)
        # Only keys with an instance or with a row that raises: told by the first key column, then exactly by the slot.
        first = frame.batch.column(self.alarm.key[0])
        known = pa.array([key[0] for key, slot in self._slots.items() if slot in self._instances], first.type)
        raised = first.filter(pa.array(raises))
        members = pa.concat_arrays([known, raised]).unique()
        rows = np.flatnonzero(counts & pc.is_in(first, value_set=members).to_numpy(zero_copy_only=False))
        slots = self._numbered([frame.batch.column(name).take(pa.array(rows)) for name in self.alarm.key])
        self._grow(len(self._slots))
        return rows, slots

    def _numbered(self, columns: list[pa.Array]) -> _Slots:
        """The slot of each row's key; Python runs once per distinct key."""
        codes = np.zeros(len(columns[0]), np.int64)
        for column in columns:
            encoded = column.dictionary_encode(null_encoding="encode")
            codes = codes * len(encoded.dictionary) + encoded.indices.to_numpy()
            codes = np.unique(codes, return_inverse=True)[1]
        _, firsts = np.unique(codes, return_index=True)
        keys = zip(*(column.take(pa.array(firsts)).to_pylist() for column in columns), strict=True)
        return np.array([self._slot(key) for key in keys], np.int64)[codes]

    def _find_unseen(self, frame: Frame) -> None:
        """Gives restored instances their slot as soon as a row of their key comes by."""
        if not self._unseen:
            return
        keys = frame.batch.column(self.alarm.key[0]).fill_null("")
        members = pa.array(list(self._unseen), pa.string())
        rows = np.flatnonzero(pc.is_in(keys, value_set=members).to_numpy(zero_copy_only=False))
        for key, slot in zip(
            keys.take(pa.array(rows)).to_pylist(),
            frame.batch.column("_key").to_numpy()[rows].tolist(),
            strict=True,
        ):
            instance = self._unseen.pop(key, None)
            if instance is not None:
                self._put(slot, instance)

    def _key_json(self, frame: Frame, row: int) -> str:
        key = {name: frame.batch.column(name)[row].as_py() for name in self.alarm.key}
        if self._dense:
            # The log knows one empty key: a missing name and an empty one are the same instance.
            key = {name: value or "" for name, value in key.items()}
        return orjson.dumps(key, option=orjson.OPT_SORT_KEYS).decode()

    def _slot(self, key: _Key) -> int:
        return self._slots.setdefault(key, len(self._slots))

    def _put(self, slot: int, instance: Instance | None) -> None:
        self._grow(slot + 1)
        if instance is None:
            self._instances.pop(slot, None)
            self._phase[slot] = 0
        else:
            self._instances[slot] = instance
            self._phase[slot] = _FIRING if instance.firing else _PENDING

    def _grow(self, size: int) -> None:
        if size > len(self._phase):
            more = max(size, 2 * len(self._phase)) - len(self._phase)
            self._phase = np.concatenate([self._phase, np.zeros(more, np.uint8)])
            self._touched = np.concatenate([self._touched, np.zeros(more, np.bool_)])

    def _forget_idle(self) -> None:
        """Numbers the keys that have an instance anew and forgets the others."""
        kept = {key: self._instances[slot] for key, slot in self._slots.items() if slot in self._instances}
        self._slots, self._instances = {}, {}
        self._phase[:] = 0
        for key, instance in kept.items():
            self._put(self._slot(key), instance)

"""Dead letters: found by who, where, when and why, and decoded again once the settings are right.

A replayed letter's readings and the note that it was replayed are one commit of the log, so a letter is replayed
once, whatever happens in between: a letter without a note has no readings in the log, one with a note has all of them.
A letter is named by a hash of its content and time of arrival; of letters that are equal in all of that, which one a
note is about makes no difference, so notes are counted. One replay runs at a time, and the log has one process.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from headwater import _native
from headwater.declarations import StreamSettings
from headwater.errors import RecordError, TooLargeError
from headwater.gateway.listener import declaration
from headwater.log.embedded import EmbeddedLog
from headwater.records import REPLAYS_SCHEMA, Schema

#: Payload bytes and letters that are decoded and appended together. Ours.
_CHUNK_BYTES: Final = 4 << 20
_CHUNK_LETTERS: Final = 4096
#: Letters that are looked over at a time; below the default of query.max_rows. Ours.
_SCAN: Final = 50_000

#: Every letter with its name and whether a note says that it was replayed.
_LETTERS: Final = """
    WITH named AS (
        SELECT *, sha256(concat_ws('/', epoch_us(ts), length(stream), stream, length(topic), topic,
                                   length(client), client, sha256(payload))) AS id
        FROM dead_letters),
    notes AS (SELECT id, COUNT(*) AS n FROM dead_letter_replays GROUP BY id)
    SELECT named.*, row_number() OVER (PARTITION BY named.id) <= coalesce(notes.n, 0) AS replayed
    FROM named LEFT JOIN notes ON notes.id = named.id
"""

Query = Callable[[str, Sequence[object]], pa.Table]


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters; None: all.

    topic:        an MQTT topic filter
    since, until: time of arrival, microseconds UTC, both included
    replayed:     whether they have been replayed
    """

    stream: str | None = None
    client: str | None = None
    reason: str | None = None
    topic: str | None = None
    since: int | None = None
    until: int | None = None
    replayed: bool | None = None

    def sql(self) -> tuple[str, list[object]]:
        """A condition over `_LETTERS`, and its parameters. raises: RecordError: the topic is no filter"""
        terms: list[tuple[str, object]] = [
            (f"{name} = ?", value)
            for name in ("stream", "client", "reason", "replayed")
            if (value := getattr(self, name)) is not None
        ]
        if self.topic is not None:
            terms.append(("regexp_full_match(topic, ?)", _pattern(self.topic)))
        if self.since is not None:
            terms.append(("epoch_us(ts) >= ?", self.since))
        if self.until is not None:
            terms.append(("epoch_us(ts) <= ?", self.until))
        return " AND ".join(["true", *(term for term, _ in terms)]), [value for _, value in terms]


@dataclass(slots=True)
class Replayed:
    """What a replay did.

    letters:  whose readings are durable now
    readings: rows that they gave
    refused:  letters that cannot be decoded by today's settings either, by stream and reason; they stay as they are
    examples: for each of those, the first one's detail
    """

    letters: int = 0
    readings: int = 0
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], str] = field(default_factory=dict)

    def refuse(self, stream: str, reason: str, detail: str) -> None:
        """Counts one letter that stays."""
        self.refused[stream, reason] += 1
        self.examples.setdefault((stream, reason), detail)


class Letters:
    """The dead letters of one pipeline.

    query:   runs a SELECT over the store
    schemas: of all streams, the newest
    clock:   microseconds UTC
    """

    def __init__(
        self,
        log: EmbeddedLog,
        query: Query,
        streams: Mapping[str, StreamSettings],
        schemas: Mapping[str, Schema],
        clock: Callable[[], int],
    ) -> None:
        self._log = log
        self._query = query
        self._streams = streams
        self._schemas = schemas
        self._clock = clock
        self._replaying = threading.Lock()

    def change(self, streams: Mapping[str, StreamSettings]) -> None:
        """Letters are replayed by these settings from now on."""
        self._streams = streams

    def find(self, wanted: Filter, limit: int, skip: int = 0) -> list[dict[str, Any]]:
        """Letters, newest first: columns of `dead_letters`, `id`, `replayed`.

        skip:   how many of the newest to leave out
        raises: RecordError, QueryLimitError, StoreError
        """
        where, params = wanted.sql()
        order = "ORDER BY ts DESC, id, replayed LIMIT ? OFFSET ?"
        found = self._query(f"SELECT * FROM ({_LETTERS}) WHERE {where} {order}", [*params, limit, skip])
        rows: list[dict[str, Any]] = found.to_pylist()
        return rows

    def count(self, wanted: Filter) -> list[dict[str, Any]]:
        """Letters by stream and reason, the most frequent first: `n`, and how many of them were `replayed`."""
        where, params = wanted.sql()
        found = self._query(
            f"SELECT stream, reason, COUNT(*) AS n, COUNT(*) FILTER (WHERE replayed) AS replayed FROM ({_LETTERS})"
            f" WHERE {where} GROUP BY stream, reason ORDER BY n DESC, stream, reason",
            params,
        )
        rows: list[dict[str, Any]] = found.to_pylist()
        return rows

    def replay(self, wanted: Filter) -> Replayed:
        """Decodes by today's settings every letter that was not replayed, and appends the readings, each letter once.

        Readings keep the time of arrival of their letter, and fall under `late` and `dedupe` as any others do.

        raises: RecordError, LogFullError (call it again: what was replayed is not replayed twice), LogError,
                QueryLimitError, StoreError
        """
        done = Replayed()
        wanted = Filter(
            wanted.stream, wanted.client, wanted.reason, wanted.topic, wanted.since, wanted.until, False
        )
        with self._replaying:
            for low, high in self._chunks(wanted):
                where, params = wanted.sql()
                letters = self._query(
                    f"SELECT * FROM ({_LETTERS}) WHERE {where} AND epoch_us(ts) BETWEEN ? AND ? ORDER BY ts",
                    [*params, low, high],
                ).to_pylist()
                by_stream: dict[str, list[dict[str, Any]]] = {}
                for letter in letters:
                    by_stream.setdefault(letter["stream"], []).append(letter)
                for stream, each in by_stream.items():
                    self._replay(stream, each, done)
        return done

    def _chunks(self, wanted: Filter) -> Iterator[tuple[int, int]]:
        """Spans of arrival (first and last, us) that hold letters worth one commit; those of one time stay together."""
        where, params = wanted.sql()
        after = -1
        while True:
            spans = self._query(
                "SELECT epoch_us(ts) AS arrived, COUNT(*) AS n, SUM(octet_length(payload)) AS bytes"
                f" FROM ({_LETTERS}) WHERE {where} AND epoch_us(ts) > ? GROUP BY ALL ORDER BY arrived LIMIT {_SCAN}",
                [*params, after],
            ).to_pylist()
            if not spans:
                return
            first, letters, size = spans[0]["arrived"], 0, 0
            last = first
            for span in spans:
                if letters and (letters + span["n"] > _CHUNK_LETTERS or size + span["bytes"] > _CHUNK_BYTES):
                    yield first, last
                    first, letters, size = span["arrived"], 0, 0
                last, letters, size = span["arrived"], letters + span["n"], size + int(span["bytes"])
            yield first, last
            after = last

    def _replay(self, name: str, letters: list[dict[str, Any]], done: Replayed) -> None:
        """One commit, or several where it is too large: readings of one stream's letters and a note for each letter."""
        settings = self._streams.get(name)
        if settings is None:
            for _ in letters:
                done.refuse(name, "no-such-stream", f"no stream {name!r} is configured any more")
            return
        messages = [(each["topic"], each["payload"], _micros(each["ts"])) for each in letters]
        while True:
            schema = self._schemas[name]
            inferred = self._log.inferred(schema.stream) if settings.infer else ()
            spec = declaration(name, settings, schema, inferred)
            readings, counts, refused, undeclared = _native.decode_messages(spec, messages)
            if not undeclared:
                break
            self._log.infer(schema, undeclared)
        stays = {at for at, _, _ in refused}
        passed = [(letters[at]["id"], counts[at]) for at in range(len(letters)) if at not in stays]
        if passed:
            notes = pa.RecordBatch.from_pydict(
                {
                    "ts": [self._clock()] * len(passed),
                    "id": [id_ for id_, _ in passed],
                    "stream": [name] * len(passed),
                    "readings": [count for _, count in passed],
                },
                REPLAYS_SCHEMA.arrow,
            )
            batch = readings.select([column.name for column in schema.columns])
            try:
                self._log.append([(schema, batch), (REPLAYS_SCHEMA, notes)])
            except TooLargeError as error:
                if len(letters) == 1:
                    done.refuse(name, "too-large", str(error))
                    return
                middle = len(letters) // 2
                self._replay(name, letters[:middle], done)
                self._replay(name, letters[middle:], done)
                return
            done.letters += len(passed)
            done.readings += batch.num_rows
        for at, reason, detail in refused:
            done.refuse(name, reason, f"topic {letters[at]['topic']}: {detail}")


def _pattern(topic_filter: str) -> str:
    """A regular expression for the topics that an MQTT filter matches (MQTT 5 section 4.7).

    raises: RecordError

    >>> _pattern("dt/+/d1.5/#")
    'dt/[^/]*/d1\\\\.5(/.*)?'
    """
    levels = topic_filter.split("/")
    misplaced = any("#" in level for level in levels[:-1]) or any(
        len(level) > 1 and ("#" in level or "+" in level) for level in levels
    )
    if not topic_filter or misplaced:
        raise RecordError(
            f"finding dead letters: {topic_filter!r} is no topic filter; + and # are whole levels, # the last one"
        )
    if topic_filter == "#":
        return r"[^$](?s:.*)"
    several = levels[-1] == "#"
    parts = ["[^/]*" if level == "+" else re.escape(level) for level in levels[: -1 if several else None]]
    return "/".join(parts) + ("(/.*)?" if several else "")


def _micros(time: Any) -> int:
    return int(pa.scalar(time, pa.timestamp("us", tz="UTC")).value)

"""The shadow service: answers requests on `$aws/things/{thing}/shadow/...` and of REST from one store, in one order.

Requests are rows of the `_raw` stream, whoever sent them: the gateway logs what devices publish there, `request`
appends what REST asks for. A batch's documents, answers and offsets are one transaction; the answers then go from the
outbox to the `_downlink` stream. A crash in between sends them again, and never applies a request twice.

Not requests, and so counted as ignored: other sub-topics, and answers (`.../accepted`) that a client publishes itself;
live subscribers get those as any message. There is no limit on requests in flight (AWS: 10 a connection).
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
import structlog

from headwater.config import ShadowSettings
from headwater.database import DOWNLINK_OUTBOX, SHADOWS, Database, load_offsets, save_offsets
from headwater.devices import document as documents
from headwater.devices.document import Document, Json
from headwater.errors import ShadowError
from headwater.log.base import Log, Reader
from headwater.records import DOWNLINK_SCHEMA, RAW, RAW_SCHEMA, Offsets

READER: Final = "shadow"

#: What the gateway must log raw, so that it comes here.
TOPICS: Final = ("$aws/things/+/shadow/#",)

#: Rows of `_raw` in one transaction.
BATCH_ROWS: Final = 4096

_PREFIX: Final = "$aws/things/"
_COMMIT_INTERVAL_US: Final = 1_000_000
_IN_LIST: Final = 500

_logger = structlog.get_logger(__name__)

Operation = Literal["get", "update", "delete"]


@dataclass(frozen=True, slots=True)
class _Request:
    """One request; topic: the prefix of its answers. request: of REST, else None."""

    topic: str
    operation: str
    thing: str
    name: str
    payload: bytes
    at_us: int
    request: str | None

    @property
    def key(self) -> tuple[str, str]:
        return self.thing, self.name

    @property
    def shown_name(self) -> str:
        return f"{self.thing}~{self.name}" if self.name else self.thing


@dataclass(slots=True)
class _Batch:
    """What a batch of requests leads to. shadows: (version, document or None where deleted) by thing and name.

    stored: those that have a row
    """

    shadows: dict[tuple[str, str], tuple[int, Document | None]]
    stored: frozenset[tuple[str, str]]
    changed: set[tuple[str, str]] = field(default_factory=set)
    accepted: int = 0
    messages: list[tuple[str, Json]] = field(default_factory=list)
    answers: list[tuple[str, Json | ShadowError]] = field(default_factory=list)


class ShadowService:
    """All shadows; `step` is called by one thread, `request` and `names` by any.

    clock: microseconds UTC, for REST; a request's time is that of its arrival, so that a replay gives the same answer
    """

    def __init__(
        self, log: Log, database: Database, settings: ShadowSettings, clock: Callable[[], int]
    ) -> None:
        self._log = log
        self._database = database
        self._max_bytes = settings.max_document_bytes
        self._clock = clock
        self.counters = {"accepted": 0, "rejected": 0, "ignored": 0}
        self._waiting: dict[str, Future[Json]] = {}
        self._moved = threading.Condition()
        self._reader: Reader | None = None
        with database.read() as connection:
            offsets = load_offsets(connection, READER, RAW)
            self._next_id = (connection.scalar(sa.select(sa.func.max(DOWNLINK_OUTBOX.c.id))) or 0) + 1
        start = log.start(RAW)
        self._position: Offsets = tuple(map(max, offsets, start)) if offsets else start
        self._committed, self._committed_us = self._position, clock()
        #: Outbox rows below this id are on the downlink stream and wait to be deleted.
        self._sent_id = 0
        self._unsent = self._next_id > 1  # left over by a crash
        log.hold(READER, RAW, self._position)

    def step(self) -> bool:
        """Answers what is there, at most BATCH_ROWS rows; True where there was something.

        raises: LogError, and what the database raises. Nothing is half done then: the next step goes on.
        """
        if self._unsent:
            self._send()
        if self._reader is None:
            self._reader = self._log.reader(RAW, self._position, ["ts", "topic", "payload", "request"])
        reader, self._reader = self._reader, None  # a step that fails begins again from the position
        batch = reader.read(BATCH_ROWS)
        if batch is not None:
            self._answer(self._requests(batch), reader.offsets())
        elif self._sent_id or self._clock() - self._committed_us >= _COMMIT_INTERVAL_US:
            self._commit_position()
        self._reader = reader
        return batch is not None

    def request(
        self, operation: Operation, thing: str, name: str = "", payload: bytes = b"", timeout_s: float = 5.0
    ) -> bytes:
        """The answer to a REST request, once it is durable: the JSON body that AWS gives.

        It sees every request, of REST and MQTT, that was acknowledged before. A get leaves no trace in the log.
        name:   '' is the classic shadow
        raises: ShadowError with AWS's code; 503 when the service did not answer in time (an update may still be done)
        """
        documents.check_names(thing, name)
        shown_name = f"{thing}~{name}" if name else thing
        if operation == "get":
            self._wait_for(self._log.end(RAW), timeout_s)
            with self._database.read() as connection:
                found = _load(connection, [(thing, name)]).get((thing, name))
            document = documents.get(
                found[1] if found else None,
                payload,
                shown_name=shown_name,
                now_s=self._clock() // 1_000_000,
                max_bytes=self._max_bytes,
            )
            return orjson.dumps(document)
        if len(payload) > documents.REQUEST_FACTOR * self._max_bytes:
            raise ShadowError(413, "The payload exceeds the maximum size allowed")
        return orjson.dumps(self._through_log(operation, thing, name, payload, timeout_s))

    def names(self, thing: str, after: str = "", limit: int = 100) -> list[str]:
        """Names of the thing's named shadows in their order, those after `after`."""
        named = sa.select(SHADOWS.c.name).where(
            SHADOWS.c.thing == thing,
            SHADOWS.c.name != "",
            SHADOWS.c.name > after,
            SHADOWS.c.document.is_not(None),
        )
        with self._database.read() as connection:
            return list(connection.scalars(named.order_by(SHADOWS.c.name).limit(limit)))

    def close(self) -> None:
        """Sends and commits what is left; the service is of no use afterwards."""
        if self._unsent:
            self._send()
        self._commit_position()

    def _requests(self, batch: pa.RecordBatch) -> Iterable[_Request]:
        topics = batch.column("topic")
        mine = batch.filter(pc.starts_with(topics, _PREFIX))
        columns = (mine.column(name) for name in ("topic", "payload", "ts", "request"))
        topic, payload, ts, request = columns
        rows = zip(
            topic.to_pylist(),
            payload.to_pylist(),
            ts.cast(pa.int64()).to_pylist(),
            request.to_pylist(),
            strict=True,
        )
        for name, body, at_us, id_ in rows:
            match name.removeprefix(_PREFIX).split("/"):
                case [thing, "shadow", ("get" | "update" | "delete") as operation]:
                    yield _Request(name, operation, thing, "", body or b"", at_us, id_)
                case [thing, "shadow", "name", shadow, ("get" | "update" | "delete") as operation]:
                    yield _Request(name, operation, thing, shadow, body or b"", at_us, id_)
                case [_, "shadow", *_]:
                    self.counters["ignored"] += 1

    def _answer(self, requests: Iterable[_Request], after: Offsets) -> None:
        """One transaction for the requests; then their messages go out and REST gets its answers."""
        asked = list(requests)
        if not asked:
            self._position = after
            if self._clock() - self._committed_us >= _COMMIT_INTERVAL_US:
                self._commit_position()
            self._notify_position()
            return
        with self._database.begin() as connection:
            found = _load(connection, list({one.key for one in asked}))
            batch = _Batch(found, frozenset(found))
            for one in asked:
                self._apply(batch, one)
            _store(connection, batch)
            self._delete_sent(connection)
            outgoing = [
                {"id": id_, "topic": topic, "payload": orjson.dumps(body), "qos": 1, "retain": False}
                for id_, (topic, body) in enumerate(batch.messages, self._next_id)
            ]
            if outgoing:
                connection.execute(sa.insert(DOWNLINK_OUTBOX), outgoing)
            save_offsets(connection, READER, RAW, after)
        self._position, self._sent_id = after, 0
        self._next_id += len(outgoing)
        self._have_committed()
        self.counters["accepted"] += batch.accepted
        self.counters["rejected"] += len(asked) - batch.accepted
        for id_, answer in batch.answers:
            future = self._waiting.pop(id_, None)
            if future is None:
                continue  # asked before a restart, or given up
            if isinstance(answer, ShadowError):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        self._notify_position()
        if outgoing:
            self._unsent = True
            self._send(outgoing)

    def _apply(self, batch: _Batch, one: _Request) -> None:
        """One request upon the batch's documents. Whatever a device sends, it is answered."""
        now_s = one.at_us // 1_000_000
        try:
            messages = self._outcome(batch, one, now_s)
        except ShadowError as error:
            refusal = error
        except Exception:  # a mistake of ours must not stop everybody's shadows at this row for ever
            _logger.exception("answering a shadow request failed", topic=one.topic)
            refusal = ShadowError(500, "Internal service failure")
        else:
            batch.accepted += 1
            batch.messages += messages
            if one.request is not None:
                batch.answers.append((one.request, messages[0][1]))
            return
        if one.request is not None:
            batch.answers.append((one.request, refusal))  # REST failures are not published
        else:
            body = documents.rejected(refusal, one.payload, now_s, self._max_bytes)
            batch.messages.append((f"{one.topic}/rejected", body))

    def _outcome(self, batch: _Batch, one: _Request, now_s: int) -> list[tuple[str, Json]]:
        """The messages of an accepted request; the first is its answer. raises: ShadowError"""
        documents.check_names(one.thing, one.name)
        version, document = batch.shadows.get(one.key, (0, None))
        if one.operation == "update":
            update = documents.update(
                document, one.payload, last_version=version, now_s=now_s, max_bytes=self._max_bytes
            )
            batch.shadows[one.key] = update.document.version, update.document
            batch.changed.add(one.key)
            messages = [(f"{one.topic}/accepted", update.accepted)]
            if update.delta is not None:
                messages.append((f"{one.topic}/delta", update.delta))
            return [*messages, (f"{one.topic}/documents", update.documents)]
        operation = documents.get if one.operation == "get" else documents.delete
        answer = operation(
            document, one.payload, shown_name=one.shown_name, now_s=now_s, max_bytes=self._max_bytes
        )
        if one.operation == "delete":
            batch.shadows[one.key] = version, None
            batch.changed.add(one.key)
        return [(f"{one.topic}/accepted", answer)]

    def _send(self, outgoing: Sequence[Mapping[str, Any]] = ()) -> None:
        """Appends the outbox to the downlink stream. Its rows are deleted with the next transaction.

        outgoing: what the outbox holds, where that is known; else it is read
        """
        if not outgoing:
            unsent = sa.select(DOWNLINK_OUTBOX).where(DOWNLINK_OUTBOX.c.id >= self._sent_id)
            with self._database.read() as connection:
                found = connection.execute(unsent.order_by(DOWNLINK_OUTBOX.c.id)).mappings()
                outgoing = [dict(row) for row in found]
        if outgoing:
            columns = {
                name: [row[name] for row in outgoing] for name in ("topic", "payload", "qos", "retain")
            }
            times = pa.array([self._clock()] * len(outgoing), pa.int64()).cast(pa.timestamp("us", tz="UTC"))
            batch = pa.RecordBatch.from_pydict(columns | {"ts": times}, schema=DOWNLINK_SCHEMA.arrow)
            self._log.append([(DOWNLINK_SCHEMA, batch)])
            self._sent_id = outgoing[-1]["id"] + 1
        self._unsent = False

    def _delete_sent(self, connection: sa.Connection) -> None:
        if self._sent_id:
            connection.execute(sa.delete(DOWNLINK_OUTBOX).where(DOWNLINK_OUTBOX.c.id < self._sent_id))

    def _commit_position(self) -> None:
        if self._position == self._committed and not self._sent_id:
            return
        with self._database.begin() as connection:
            self._delete_sent(connection)
            save_offsets(connection, READER, RAW, self._position)
        self._sent_id = 0
        self._have_committed()

    def _have_committed(self) -> None:
        self._committed, self._committed_us = self._position, self._clock()
        self._log.hold(READER, RAW, self._position)

    def _through_log(self, operation: str, thing: str, name: str, payload: bytes, timeout_s: float) -> Json:
        id_ = uuid.uuid4().hex
        future: Future[Json] = Future()
        self._waiting[id_] = future
        shadow = f"name/{name}/" if name else ""
        row = {
            "ts": [self._clock()],
            "topic": [f"{_PREFIX}{thing}/shadow/{shadow}{operation}"],
            "client": [""],
            "qos": [1],
            "retain": [False],
            "payload": [payload],
            "request": [id_],
            "properties": [None],
        }
        try:
            batch = pa.RecordBatch.from_pydict(row, schema=RAW_SCHEMA.arrow)
            self._log.append([(RAW_SCHEMA, batch)])
            return future.result(timeout_s)
        except TimeoutError:
            raise _too_slow(timeout_s) from None
        finally:
            self._waiting.pop(id_, None)

    def _wait_for(self, offsets: Offsets, timeout_s: float) -> None:
        with self._moved:
            reached = self._moved.wait_for(
                lambda: all(at >= end for at, end in zip(self._position, offsets, strict=True)), timeout_s
            )
        if not reached:
            raise _too_slow(timeout_s)

    def _notify_position(self) -> None:
        with self._moved:
            self._moved.notify_all()


def _too_slow(timeout_s: float) -> ShadowError:
    return ShadowError(
        503, f"The shadow service did not answer within {timeout_s:g} s; it may still do what was asked"
    )


def _load(
    connection: sa.Connection, keys: list[tuple[str, str]]
) -> dict[tuple[str, str], tuple[int, Document | None]]:
    """(version, document or None where deleted) of those shadows that ever were."""
    found: dict[tuple[str, str], tuple[int, Document | None]] = {}
    things = sorted({thing for thing, _ in keys})
    wanted = set(keys)
    names = sorted({name for _, name in keys})
    for at in range(0, len(things), _IN_LIST):
        some = sa.select(SHADOWS).where(SHADOWS.c.thing.in_(things[at : at + _IN_LIST]))
        if len(names) <= _IN_LIST:
            some = some.where(SHADOWS.c.name.in_(names))
        for row in connection.execute(some):
            if (row.thing, row.name) not in wanted:
                continue
            document = None
            if row.document is not None:
                stored = orjson.loads(row.document)
                document = Document(row.version, stored["state"], stored["metadata"])
            found[row.thing, row.name] = row.version, document
    return found


def _store(connection: sa.Connection, batch: _Batch) -> None:
    new, known = [], []
    for thing, name in batch.changed:
        version, document = batch.shadows[thing, name]
        stored = None
        if document is not None:
            stored = orjson.dumps({"state": document.state, "metadata": document.metadata}).decode()
        if (thing, name) in batch.stored:
            known.append({"thing_": thing, "name_": name, "version": version, "document": stored})
        else:
            new.append({"thing": thing, "name": name, "version": version, "document": stored})
    if new:
        connection.execute(sa.insert(SHADOWS), new)
    if known:
        that = sa.and_(SHADOWS.c.thing == sa.bindparam("thing_"), SHADOWS.c.name == sa.bindparam("name_"))
        connection.execute(sa.update(SHADOWS).where(that), known)

"""The seam to the Rust crate, as Python sees it: batches cross, never messages.

Arrow data crosses by the Arrow PyCapsule interface without copying. Long calls release the interpreter
lock. Errors are those of `headwater.errors`; built-in ones where they fit (ValueError for a bad argument).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import pyarrow as pa

@final
class Log:
    """The durable log of one data directory: one commit thread, any number of readers."""

    def __init__(
        self,
        directory: str,
        *,
        partitions: int,
        durability: str,
        commit_bytes: int,
        commit_interval_us: int,
        segment_bytes: int,
        queue_bytes: int,
        retention_bytes: int,
        disk_max_bytes: int,
        max_keys: int,
        schemas: list[tuple[int, int, str, list[tuple[str, str]], str | None]],
    ) -> None:
        """Opens or creates the log and recovers it.

        partitions:  fixed when the directory is created; a different number later is an error
        durability:  "sync" (acknowledge after fdatasync) or "async"
        schemas:     (schema id, stream id, stream name, [(column, type)], key column or None) of all
                     versions ever registered
        raises:      LogCorruptError, DataDirectoryError (in use), LogError
        """

    def recovery(self) -> dict[str, Any]:
        """What opening found: `epoch`, `segments`, `keys`, `bytes_read`, `torn_tail` (text or None), `took_ms`."""

    def register(
        self, id: int, stream: int, name: str, columns: list[tuple[str, str]], key: str | None
    ) -> None:
        """Makes a schema known. The registry must hold it durably before."""

    def inferred(self, stream: int) -> tuple[int, list[tuple[str, str, str]]]:
        """Id of the stream's newest schema (0: none yet), and its fields that messages have shown: (column, type,
        path in the payload), in the order of their columns."""

    def infer(self, schema: int, fields: list[tuple[str, str, str]]) -> int:
        """Gives the stream of `schema` further columns, (column, type, path) each; the id of the schema that
        has them, which is durable and registered.

        schema: ends with the columns of all fields inferred before
        raises: LogError when it does not, as when another thread was faster, or when it cannot be written
        """

    def dedupe(self, schema: int, columns: list[str], window_us: int, max_keys: int, now_us: int) -> None:
        """From now on rows of the schema's stream that repeat an earlier one in these columns, within the window after
        that one's arrival, are left out. Reads the rows of the window that the log holds.

        raises: ConfigError when the columns cannot serve; LogError
        """

    def dedupe_end(self, stream: int) -> None:
        """From now on rows of this stream are stored however often they come."""

    def dedupe_stats(self, stream: int) -> dict[str, int]:
        """`duplicates` left out and `evicted` keys since the start, `keys` in memory; zeros without `dedupe`."""

    def partitions(self) -> int: ...
    def append(self, parts: list[tuple[int, pa.RecordBatch]]) -> list[tuple[int, int, int, int]]:
        """Appends rows of one or more schemas in one commit and returns once they are durable.

        parts:   (schema id, batch with that schema's columns; missing columns are NULL); all or nothing
        returns: (stream, partition, first offset, rows) of each block written
        raises:  LogFullError, LogError; RecordError for a batch that does not fit its schema
        """

    def reader(self, stream: int, offsets: list[int], columns: list[str] | None = None) -> LogReader:
        """A reader from these offsets (one per partition; short lists are filled with 0).

        columns: only these columns (and the reader's own), all by default
        raises:  LogError when an offset lies before the first one kept
        """

    def end(self, stream: int) -> list[int]:
        """Durable end: the offset after the last readable row, per partition."""

    def start(self, stream: int) -> list[int]:
        """The first offset still kept, per partition."""

    def hold(self, reader: str, stream: int, offsets: list[int]) -> None:
        """Keeps rows from these offsets on from being trimmed, until the next call of the same reader."""

    def release(self, reader: str, stream: int) -> None: ...
    def hold_all(self, reader: str) -> None:
        """The reader needs every row of every stream until `release_all`."""

    def release_all(self, reader: str) -> None: ...
    def wait(self, seen: int, timeout_s: float) -> int:
        """Number of the last durable commit, as soon as it is greater than `seen` or time is up."""

    def keys(self, ids: pa.Array) -> pa.Array:
        """Key strings of these dense ids (uint32 array, `_key` of a batch)."""

    def key_id(self, key: str) -> int | None:
        """The dense id of a key, as `_key` has it; None: no stream has a row of it."""

    def stats(self) -> dict[str, Any]: ...
    def close(self) -> None:
        """Writes what is queued and stops the commit thread."""

@final
class LogReader:
    """Rows of one stream in the order of the log, behind its own offsets."""

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        """The next durable rows, at most about `max_rows`; None when there is nothing new.

        columns: those of the stream's newest schema, then `_key` uint32 (dense id of the key over all
                 partitions), `_partition` uint16, `_offset` uint64
        raises:  LogCorruptError
        """

    def offsets(self) -> list[int]:
        """The next offset per partition after what was read."""

@final
class Logins:
    """CONNECT packets that wait for somebody to say who the client is, and the policies of those who come in."""

    def __init__(
        self, policies: list[tuple[str, str]], timeout_us: int, max_waiting: int, max_waiting_bytes: int
    ) -> None:
        """policies: name and AWS-style document (JSON)
        timeout_us: a CONNECT that waits longer is refused with 0x88
        raises: ConfigError: policy, statement and field, what was found and how to fix it
        """

    def take(
        self, max_logins: int, timeout_s: float
    ) -> list[tuple[int, str, str | None, bytes | None, str | None, str | None, str, str]]:
        """Logins that wait, oldest first, as soon as there is one: id, client id, user name, password, fingerprint and
        common name of the certificate, peer, listener. Empty when none came in time. Releases the interpreter."""

    def allow(self, id: int, identity: dict[str, Any]) -> bool:
        """Lets the client in, if its policies let it connect. False: they do not, it is refused; or it has gone.

        identity: `user`, `tenant`, `policies` (names), `thing`, `attributes`; `until_ms`: milliseconds since the Unix
                  epoch at which its connections end with 0xA0, or None; `line`: source, name, version of the file and
                  mark of the line that says all this, or None
        """

    def deny(self, id: int, reason: int, text: str) -> None:
        """Refuses the client with a reason code of MQTT 5; `text` is for the operator."""

    def waiting(self) -> int:
        """CONNECT packets that wait now."""

    def set_policies(self, policies: list[tuple[str, str]]) -> None:
        """Other policies from now on, also for who is connected; who may not connect any more is closed with 0x87.

        raises: ConfigError, and the former ones hold
        """

    def set_lines(self, source: str, version: int, marks: dict[str, int]) -> None:
        """A source has read its file again: connections whose line is gone or has another mark are closed with 0x87.

        version: of the file, grows
        marks:   of all lines, by name
        """

@final
class Gateway:
    """MQTT listener, decoder and ack path; runs on its own threads until `stop`."""

    def __init__(
        self, log: Log, options: dict[str, Any], streams: list[dict[str, Any]], logins: Logins | None = None
    ) -> None:
        """Opens the listeners and starts.

        options: `host`, `port` and the limits of the `mqtt` section; `loads_retained` (`restore` and `retained_loaded`
                 will be called); `sessions`: directory of those that outlive the process, or None;
                 `listeners`, each with `name`, `transport`,
                 `host`, `port`, `certificate`, `key`, `client_ca`, `crl`, `client_certificate`, `origins`,
                 `proxy_protocol`, `max_connections`, `limits`; `limits`: `connect_rate`, `message_rate`, `byte_rate`,
                 `flapping_connects`, `max_takeovers`, 0 for none
        streams: `schema` (id), `name`, `topic`, `format`, `time` (path or None), `time_unit`,
                 `fields` [(name, type, path)], `infer` (further fields come from the messages),
                 `protobuf` (a FileDescriptorSet and a message's full name, or None)
        logins:  where CONNECT packets wait for an answer; None: everybody is anonymous and may do everything
        raises:  ListenError, ConfigError, DataDirectoryError
        """

    def address(self) -> str:
        """`host:port` of the plain listener, as bound."""

    def listeners(self) -> list[dict[str, Any]]:
        """Each listener, the plain one first: `name`, `transport`, `address`; `connections` now; `accepted`,
        `refused`, `handshakes`, `resumed`, `failures` by reason, `limits` reached by setting, `refusals` and `endings`
        by reason code since the start."""

    def reload(self) -> list[tuple[str, str | None]]:
        """Reads the files of every TLS listener anew: name, and what was wrong with them or None."""

    def restore(self, messages: Sequence[tuple[str, bytes, bytes, int, int]]) -> None:
        """Takes over messages of before the start: topic, encoded MQTT 5 properties, payload, QoS, age in seconds."""

    def retained_loaded(self) -> None:
        """All of them have come: subscriptions that wait for retained messages get theirs."""

    def rebind(self, log: Log, added: list[dict[str, Any]], removed: list[str]) -> None:
        """Fills these streams from now on, `added` (declared as for the start) in place of their namesakes, and no more
        those `removed`; returns once every thread does.

        raises: ConfigError, and nothing has changed; LogFullError: a thread changes as soon as the log takes its turn
        """

    def counters(self) -> dict[str, Any]:
        """Counters as integers, one balanced snapshot; `refused_connections` and `ended_connections` by reason."""

    def ack_latency(self) -> dict[str, float]:
        """`p50_ms`, `p99_ms`, `max_ms`, `count` from PUBLISH read to PUBACK written."""

    def unmatched(self) -> list[dict[str, Any]]:
        """Topics that no stream matched: `topic`, `count`, `payload` (example), `last_seen_us`, `suggestion`."""

    def connected(self, client_id: str) -> bool:
        """Whether a client of this id is connected."""

    def clients(
        self, search: str, connected: bool | None, after: int, limit: int
    ) -> tuple[list[dict[str, Any]], int | None]:
        """Clients whose id begins with `search` or matches it (`*`, `?`), and `after` of the next page: `client`,
        `connected`, `connected_at_ms`, `address`, `listener`, `protocol`, `user`, `tenant`.

        raises: RuntimeError: an event loop does not answer
        """

    def client(self, client_id: str) -> dict[str, Any] | None:
        """One client: as in `clients`, and `keep_alive_s`, `clean_start`, `session_expiry_s`, `will_topic`,
        `certificate`, `receive_maximum`, `unacknowledged`, `in_flight`, `queued`, `queued_bytes`, `unsent_bytes`,
        `held_back`, `subscription_count`, `subscriptions` (`filter`, `qos`, `shared`; 1,000 at most)."""

    def last_close(self, client_id: str) -> tuple[int, str] | None:
        """When (ms since the epoch) its last connection ended, and how: `client`, `lost` or a reason code's name."""

    def kick(self, client_id: str, session: bool) -> str:
        """Ends a connection with 0x98 and, if asked for, its session: `connection`, `session`, `away` or `unknown`."""

    def trace(self, kind: str, text: str) -> Trace:
        """Watches packets; kind: `client` (id) or `topic` (filter). raises: TraceError"""

    def events(self) -> list[dict[str, Any]]:
        """Events for the operator since the last call, oldest first, bounded: `at_us`, `kind`, `client`, `reason`,
        `detail`, `origin` (address, listener and certificate of a connection)."""

    def stop(self, drain_s: float) -> None: ...

@final
class Trace:
    """Packets as they come and go, in a ring of 1,000; whoever is too slow loses the oldest."""

    def take(self, timeout_s: float) -> tuple[list[dict[str, Any]], int]:
        """Lines that have come, as soon as there is one, and how many were lost before them: `at_us`, `client`,
        `direction` (`in`, `out`), `packet`, `bytes`, `detail`."""

    def close(self) -> None: ...

def decode(stream: dict[str, Any], payload: bytes, received_at_us: int) -> pa.RecordBatch:
    """Decodes one payload as the gateway would, for HTTP ingest.

    stream:  as for `Gateway`, with a topic that captures nothing
    returns: `ts`, `received_at` and the declared fields, one row per reading
    raises:  RecordError with reason and position
    """

def decode_messages(
    stream: dict[str, Any], messages: list[tuple[str, bytes, int]]
) -> tuple[pa.RecordBatch, list[int], list[tuple[int, str, str]], list[tuple[str, str, str]]]:
    """Decodes messages (topic, payload, time of arrival in us) as the gateway would.

    stream:  as for `Gateway`
    returns: captured levels, `ts`, `received_at` and fields of all readings; their number by message; index, reason and
             detail of the messages that are refused; columns (name, type, path) that the stream must get before all is
             decoded again
    raises:  ValueError: the declaration is wrong
    """

def undeclared(stream: dict[str, Any], payload: bytes) -> list[tuple[str, str, str]]:
    """Columns (name, type, path) for the fields that the payload shows and the declaration lacks.

    stream:  as for `decode`, with `infer`
    raises:  RecordError with reason and position
    """

def check(stream: dict[str, Any]) -> None:
    """Compiles a stream's declaration as the gateway would.

    stream: as for `Gateway`
    raises: ValueError: what is wrong with it
    """

def message_fields(
    descriptor: bytes, message: str, captures: list[str], time: str | None
) -> list[tuple[str, str, str]]:
    """Columns (name, type, path) for the fields of a Protocol Buffers message.

    descriptor: a FileDescriptorSet with all imports
    message:    its full name
    captures:   names taken already
    time:       path of the event time, which gets no column
    raises:     ValueError: no such message, or one with too many fields
    """

@final
class Frozen:
    """A state as it was when it was frozen, sealed: docs/formats/window-state.md. The state itself goes on."""

    def length(self) -> int:
        """Bytes of it."""

    def append_to(self, path: Path) -> None:
        """Writes it to the end of a file, which is not synced. raises: OSError"""

def sealed(content: bytes) -> bytes:
    """The content with its CRC32C after it."""

def is_sealed(content: bytes) -> bool:
    """Whether the last four bytes are the CRC32C of those before."""

@final
class AlignedWindows:
    """Window kernel for TUMBLE, HOP, CUMULATE and calendar windows: dense records per (pane, key), in Rust.

    shape:      kind and microseconds: tumble (size), hop (slide, size), cumulate (step, size), calendar (starts)
    aggregates: (function, index into inputs or None, parameter): count_star | count | sum | avg | min | max | var_pop |
                var_samp | stddev_pop | stddev_samp | first_value | last_value | count_distinct | percentile; the
                parameter of percentile is its share in millionths, else 0
    inputs:     "double", "bigint" or "text" for each input column; text that is only counted may be "bigint", too
    """

    def __init__(
        self,
        shape: tuple[str, list[int]],
        aggregates: list[tuple[str, int | None, int]],
        inputs: list[str],
        max_bytes: int,
        max_panes: int,
    ) -> None: ...
    def add(
        self,
        keys: pa.Array,
        ts: pa.Array,
        inputs: list[pa.Array],
        select: pa.Array | None,
        watermark_us: int,
    ) -> tuple[int, int, int]:
        """Adds rows. Returns (rows in open windows alone, late rows that amend, rows dropped as too late).

        keys uint32, ts timestamp[us] or int64, inputs float64, int64 or string of equal length, select boolean
        raises: LogFullError at max_bytes or max_panes, with nothing added
        """

    def close(self, watermark_us: int, max_rows: int) -> pa.RecordBatch | None:
        """Windows that ended at or before the watermark: `_key`, `window_start`, `window_end`, one column
        `aggregate_0`, `aggregate_1`, ... per aggregate, `revision` (0, then +1 for each amendment)."""

    def early(self, watermark_us: int, max_rows: int) -> pa.RecordBatch | None:
        """Results so far of open windows that have begun at the watermark, of keys changed since those before; columns
        as above, `revision` 0. No rows may be added between two calls until it is None."""

    def forget(self, before_us: int) -> None:
        """Drops closed windows that ended at or before this."""

    def stats(self) -> dict[str, int]: ...
    def freeze(self, whole: bool) -> Frozen:
        """The state as it is now, or what has changed since it was frozen last."""

    def apply(self, changes: bytes) -> None:
        """Takes in changes that `freeze` wrote of the state that this is. raises: ValueError"""

    @staticmethod
    def decode(
        state: bytes,
        shape: tuple[str, list[int]],
        aggregates: list[tuple[str, int | None, int]],
        inputs: list[str],
        max_bytes: int,
        max_panes: int,
    ) -> AlignedWindows: ...

@final
class SessionWindows:
    """Window kernel for SESSION: open sessions per key that rows extend and merge, in Rust.

    gap_us: rows no further apart than this are one session; aggregates and inputs as those of AlignedWindows
    """

    def __init__(
        self,
        gap_us: int,
        aggregates: list[tuple[str, int | None, int]],
        inputs: list[str],
        max_bytes: int,
    ) -> None: ...
    def add(
        self,
        keys: pa.Array,
        ts: pa.Array,
        inputs: list[pa.Array],
        select: pa.Array | None,
        watermarks: pa.Array,
    ) -> tuple[int, int, int]:
        """Adds rows; watermarks int64 is the watermark before each. Returns (rows added, 0, rows dropped as too late).

        raises: LogFullError at max_bytes, with nothing added
        """

    def close(self, watermark_us: int, max_rows: int) -> pa.RecordBatch | None:
        """Sessions that ended at or before the watermark, in order of (end, key, start); columns as above."""

    def stats(self) -> dict[str, int]: ...
    def freeze(self, whole: bool) -> Frozen:
        """The state as it is now, or what has changed since it was frozen last."""

    def apply(self, changes: bytes) -> None:
        """Takes in changes that `freeze` wrote of the state that this is. raises: ValueError"""

    @staticmethod
    def decode(
        state: bytes,
        gap_us: int,
        aggregates: list[tuple[str, int | None, int]],
        inputs: list[str],
        max_bytes: int,
    ) -> SessionWindows: ...

@final
class KeyInterner:
    """Tuples of group columns to dense ids and back."""

    def __init__(self, types: list[str], max_keys: int) -> None: ...
    def ids(self, columns: list[pa.Array], rows: int) -> pa.Array:
        """uint32 id per row. raises: LogFullError-like ValueError at max_keys"""

    def columns(self, ids: pa.Array) -> list[pa.Array]: ...
    def freeze(self, whole: bool) -> Frozen:
        """The state as it is now, or what has changed since it was frozen last."""

    def apply(self, changes: bytes) -> None:
        """Takes in changes that `freeze` wrote of the state that this is. raises: ValueError"""

    @staticmethod
    def decode(state: bytes, types: list[str], max_keys: int) -> KeyInterner: ...

@final
class Fleet:
    """A simulated fleet or a load generator over real MQTT, on threads of its own."""

    def __init__(self, options: dict[str, Any]) -> None: ...
    def report(self) -> dict[str, Any]: ...
    def open(self) -> None:
        """Lets a load generator send without waiting for the connections that are not up."""

    def is_open(self) -> bool:
        """Whether sending has begun."""

    def histograms(self) -> dict[str, list[tuple[int, int]]]:
        """Of ack, connect and delivery: (microseconds, count) of each step that was hit."""

    def stop(self) -> dict[str, Any]: ...

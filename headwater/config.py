"""Typed settings: one section per stage, read once at the edge.

Sources, the later wins: defaults, the TOML file, environment `HEADWATER_SECTION__KEY`, `--set section.key=value`.
Unknown keys are refused with the nearest known one. Durations are written `250ms`, `10s`, `5m`, `1h`, `7d`.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from headwater import protobuf as protobuf_messages
from headwater.errors import ConfigError
from headwater.records import NAME, OWN_TABLES, ColumnType

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_US: Final = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_CAPTURE: Final = re.compile(r"\{([a-z][a-z0-9_]*)\}")

#: Column names that a stream gets by itself.
RESERVED_COLUMNS: Final = frozenset({"ts", "received_at", "hour"})


def parse_duration_us(text: object) -> object:
    """Microseconds of a duration such as `10s`; anything but text is passed on for pydantic to judge."""
    if not isinstance(text, str):
        return text
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no duration; write a number with ms, s, m, h or d, such as 10s")
    return round(float(match[1]) * _UNIT_US[match[2]])


#: A duration in microseconds.
DurationUs = Annotated[int, BeforeValidator(parse_duration_us), Field(ge=0)]


class Section(BaseModel):
    """A section of the configuration: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ListenerSection(Section):
    """A section with `host` and `port`; `port` may also be written `host:port`."""

    @model_validator(mode="before")
    @classmethod
    def _split_host_port(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("port"), str) and ":" in values["port"]:
            host, _, port = values["port"].rpartition(":")
            values = {**values, "host": host.strip("[]"), "port": port}
        return values


class MqttSettings(ListenerSection):
    """The MQTT listener and its limits."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(1883, ge=0, le=65535, description="TCP port; 0 picks a free one.")
    insecure: bool = Field(
        False,
        description="Allows a non-loopback listener without TLS and authentication: anyone may publish.",
    )
    threads: int = Field(0, ge=0, le=64, description="Event-loop threads; 0: one per core.")
    max_connections: int = Field(
        1_000_000, gt=0, description="Connections at a time; more are refused with 0x97."
    )
    max_keep_alive_s: int = Field(65535, ge=1, le=65535, description="Longest keep alive granted, seconds.")
    first_packet_timeout_s: int = Field(
        10, ge=1, description="A connection without CONNECT is closed after this."
    )
    receive_maximum: int = Field(
        1000, ge=1, le=65535, description="Unacknowledged QoS 1 messages per MQTT 5 client."
    )
    maximum_qos: Literal[0, 1] = Field(1, description="Highest QoS accepted.")
    retain_available: bool = Field(True, description="Whether retained messages are accepted.")
    max_retained_messages: int = Field(1_000_000, gt=0, description="Retained messages kept; more get 0x97.")
    max_retained_bytes: int = Field(256 << 20, gt=0, description="Bytes of retained messages kept.")
    max_payload_bytes: int = Field(
        128 << 10,
        gt=0,
        description="Largest payload; a larger one is refused (MQTT 5, QoS 1: PUBACK 0x97) or ends the connection.",
    )
    max_packet_bytes: int = Field(
        256 << 10, gt=0, description="Largest packet; a larger one ends the connection."
    )
    max_queued_messages: int = Field(
        1000,
        gt=0,
        description="Messages waiting for one slow subscriber; further ones are dropped and counted.",
    )
    max_queued_bytes: int = Field(4 << 20, gt=0, description="Bytes waiting for one slow subscriber.")
    max_subscriptions: int = Field(1000, gt=0, description="Subscriptions of one client; more get 0x97.")
    max_topic_levels: int = Field(32, gt=0, le=128, description="Levels of a topic; deeper ones are invalid.")


class HttpSettings(ListenerSection):
    """The HTTP listener: API, health and metrics."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="TCP port; 0 picks a free one.")
    insecure: bool = Field(False, description="Allows a non-loopback listener without TLS.")
    max_body_bytes: int = Field(16 << 20, gt=0, description="Largest request body.")


class LogSettings(Section):
    """The durable log."""

    kind: Literal["embedded"] = Field("embedded", description="Implementation of the log.")
    durability: Literal["sync", "async"] = Field(
        "sync", description="`sync`: acknowledge after fdatasync. `async`: before; a power cut may lose data."
    )
    partitions: int = Field(
        4, ge=1, le=256, description="Partitions; fixed when the data directory is created."
    )
    commit_bytes: int = Field(1 << 20, ge=4096, le=16 << 20, description="A commit closes at this size.")
    commit_interval_ms: float = Field(0.3, ge=0, le=1000, description="Least time between two commits.")
    segment_bytes: int = Field(64 << 20, ge=1 << 20, description="Size of a segment file.")
    queue_bytes: int = Field(
        64 << 20, ge=1 << 20, description="Bytes waiting for a commit; then back-pressure."
    )
    retention_bytes: int = Field(256 << 20, ge=0, description="Kept behind the slowest reader, bytes.")
    disk_max_bytes: int = Field(
        64 << 30,
        ge=1 << 26,
        description="Most the log takes while readers lag; then nothing is acknowledged.",
    )
    max_keys: int = Field(16_000_000, ge=1, description="Distinct keys per partition; more are dead letters.")


class PipelineSettings(Section):
    """What runs behind the log."""

    enabled: bool = Field(True, description="false: gateway, log, health and metrics alone.")


class StoreSettings(Section):
    """The table store."""

    kind: Literal["embedded"] = Field("embedded", description="Implementation of the store.")
    flush_rows: int = Field(
        4_000_000, ge=1, description="Rows of one stream in memory before they become a file."
    )
    flush_bytes: int = Field(512 << 20, ge=1 << 20, description="The same in bytes, over all streams.")
    flush_interval: DurationUs = Field(60_000_000, description="Longest time before rows become a file.")


class QuerySettings(Section):
    """Limits of one SQL query over the API."""

    timeout: DurationUs = Field(30_000_000, description="A query is cancelled after this.")
    max_rows: int = Field(1_000_000, ge=1, description="A result with more rows is refused.")
    memory_bytes: int = Field(1 << 30, ge=1 << 26, description="Memory of one query.")
    concurrent: int = Field(4, ge=1, description="Queries at a time; others wait.")


class EngineSettings(Section):
    """The stream engine that runs `[queries.*]`."""

    kind: Literal["embedded"] = Field("embedded", description="Implementation of the engine.")
    idle_timeout: DurationUs = Field(
        5_000_000, description="A partition without rows for so long does not hold windows open."
    )
    checkpoint_interval: DurationUs = Field(10_000_000, description="Time between two checkpoints of state.")
    state_bytes: int = Field(1 << 30, ge=1 << 20, description="Memory of one query's windows.")
    amend_windows: int = Field(12, ge=0, description="Closed windows kept so that late rows can amend them.")
    max_keys: int = Field(10_000_000, ge=1, description="Distinct group keys of one query.")


class ShadowSettings(Section):
    """Device shadows."""

    max_document_bytes: int = Field(8 << 10, gt=0, description="Largest state document; AWS has 8 KB.")


class FieldSettings(Section):
    """One declared field: a type, and where in the payload it stands."""

    type: ColumnType
    path: str | None = Field(None, description="Dotted path in the payload; the field's name by default.")

    @field_validator("type")
    @classmethod
    def _no_binary(cls, type_: ColumnType) -> ColumnType:
        if type_ is ColumnType.BINARY:
            raise ValueError("a field is double, bigint, boolean, string or timestamp; JSON holds no binary")
        return type_


class ProtobufSettings(Section):
    """The message type of a stream's payloads."""

    descriptor: Path = Field(
        description="File written by `protoc --include_imports --descriptor_set_out=FILE`, read at the start."
    )
    message: str = Field(description="Full name of the message: `acme.Telemetry`.")
    _bytes: bytes = PrivateAttr(b"")

    @model_validator(mode="after")
    def _read(self) -> Self:
        try:
            self._bytes = self.descriptor.read_bytes()
        except OSError as error:
            raise ValueError(
                f"reading descriptor {self.descriptor}: {error.strerror}; "
                "`protoc --include_imports --descriptor_set_out=FILE` writes one"
            ) from None
        return self

    @property
    def compiled(self) -> tuple[bytes, str]:
        """The descriptor's bytes as read at the start, and the message's name."""
        return self._bytes, self.message


class TimeSettings(Section):
    """Event time of a reading."""

    path: str
    unit: Literal["auto", "s", "ms", "us", "iso"] = "auto"


def _field(value: object) -> object:
    return {"type": value} if isinstance(value, str) else value


def _time(value: object) -> object:
    return {"path": value} if isinstance(value, str) else value


def _message_fields(values: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Fields of the message that a stream's declaration names; none where its sections are not valid."""
    try:
        protobuf = ProtobufSettings.model_validate(values.get("protobuf"))
        time = None if values.get("time") is None else TimeSettings.model_validate(_time(values["time"])).path
    except ValidationError:
        return {}  # Which the sections' own validation says.
    captures = _CAPTURE.findall(str(values.get("topic")))
    fields = protobuf_messages.message_fields(*protobuf.compiled, captures, time)
    return {name: {"type": type_, "path": path} for name, type_, path in fields}


class StreamSettings(Section):
    """A named, typed table fed by a topic filter."""

    topic: str = Field(description="Topic filter; `{name}` captures a level into a column.")
    format: Literal[
        "json", "cbor", "msgpack", "senml-json", "senml-cbor", "influx", "csv", "protobuf", "sparkplug-b"
    ] = Field("json", description="Format of the payload.")
    protobuf: ProtobufSettings | None = Field(
        None, description="Of format `protobuf`: the file with the descriptor, and the message's name."
    )
    time: Annotated[TimeSettings | None, BeforeValidator(_time)] = Field(
        None, description="Payload field with the event time; absent: time of arrival."
    )
    fields: dict[str, Annotated[FieldSettings, BeforeValidator(_field)]] = Field(
        description='Declared fields and their types; `"infer"`: they come from the messages.'
    )
    infer: bool = Field(False, description='Fields come from the messages; written `fields = "infer"`.')
    key: str | None = Field(
        None, description="String column that orders and partitions; default `device`, else the last capture."
    )
    lateness: DurationUs = Field(
        10_000_000, description="How far the watermark stays behind the latest event."
    )
    late: Literal["amend", "drop"] = Field(
        "amend", description="What late rows do to windows already closed."
    )
    dedupe: list[str] = Field(
        default_factory=list, description="Columns that name a reading: one that comes again is stored once."
    )
    dedupe_window: DurationUs = Field(
        600_000_000, gt=0, description="How long after its arrival a reading's duplicates are left out."
    )
    dedupe_max_keys: int = Field(
        4_000_000, gt=0, description="Readings remembered for it, about 60 bytes each; older ones go early."
    )

    @property
    def captures(self) -> list[str]:
        """Names of the captured topic levels, in their order."""
        return _CAPTURE.findall(self.topic)

    @property
    def key_column(self) -> str | None:
        """The key column, None for a stream whose rows all share the empty key."""
        names = [*self.captures, *self.fields]
        if self.key is not None:
            return self.key
        if "device" in names:
            return "device"
        return self.captures[-1] if self.captures else None

    @model_validator(mode="before")
    @classmethod
    def _inferred(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("fields") == "infer":
            values = {**values, "fields": {}, "infer": True}
            if values.get("format") == "protobuf" and (fields := _message_fields(values)):
                values = {**values, "fields": fields, "infer": False}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        levels = self.topic.split("/")
        for at, level in enumerate(levels):
            if (level == "#" and at == len(levels) - 1) or level == "+" or _CAPTURE.fullmatch(level):
                continue
            if any(mark in level for mark in "#+{}"):
                raise ValueError(
                    f"topic {self.topic!r}: level {level!r} is neither text, `+`, a last `#` nor a capture `{{name}}`"
                )
        if self.topic.startswith("$"):
            raise ValueError(f"topic {self.topic!r}: `$` topics belong to the server")
        captures = self.captures
        if len(set(captures)) != len(captures):
            raise ValueError(f"topic {self.topic!r} captures a name twice")
        if not self.fields and not self.infer:
            raise ValueError('fields: a stream needs at least one declared field, or fields = "infer"')
        if self.fields and self.infer:
            raise ValueError('fields: either declare them or write fields = "infer", which sets infer')
        if (self.format == "protobuf") != (self.protobuf is not None):
            raise ValueError(
                'format = "protobuf" goes with protobuf = { descriptor = "FILE", message = "package.Message" }'
            )
        if self.format == "sparkplug-b":
            if not self.topic.startswith("spBv1.0/"):
                raise ValueError(
                    f"topic {self.topic!r}: Sparkplug topics are spBv1.0/{{group}}/{{message}}/{{edge}} or "
                    "spBv1.0/{group}/{message}/{edge}/{device}"
                )
            if self.time is not None:
                raise ValueError("time: Sparkplug payloads state their times; leave it out")
        for name in self.fields:
            if not NAME.fullmatch(name):
                raise ValueError(f"field {name!r}: a name is lower-case letters, digits and _, at most 63")
        for name in [*captures, *self.fields]:
            if name in RESERVED_COLUMNS:
                raise ValueError(
                    f"column {name!r} is reserved; rename the field and give its place with path"
                )
        if both := set(captures) & set(self.fields):
            raise ValueError(f"{sorted(both)} are both captured levels and fields")
        columns = {*captures, *self.fields, "ts"}
        for name in self.dedupe:
            if name not in columns:
                raise ValueError(f"dedupe: {name!r} is no column; there are {', '.join(sorted(columns))}")
        key = self.key_column
        if self.dedupe and key is not None and key not in self.dedupe:
            raise ValueError(f"dedupe: name the stream's key {key!r} too, whose partition duplicates meet in")
        if key is not None and key not in captures:
            field = self.fields.get(key)
            if field is None:
                raise ValueError(f"key {key!r} is neither a captured level nor a field")
            if field.type is not ColumnType.STRING:
                raise ValueError(f"key {key!r} is {field.type}; a key must be a string")
        if self.protobuf is not None:
            protobuf_messages.check(
                {
                    "schema": 0,
                    "name": "this",
                    "topic": self.topic,
                    "format": self.format,
                    "time": self.time.path if self.time else None,
                    "time_unit": self.time.unit if self.time else "auto",
                    "fields": [
                        (name, field.type.value, field.path or name) for name, field in self.fields.items()
                    ],
                    "infer": False,
                    "protobuf": self.protobuf.compiled,
                }
            )
        return self


class QuerySection(Section):
    """A continuous query; its result is a stream and a table of its name."""

    sql: str
    late: Literal["amend", "drop"] | None = Field(None, description="Overrides the stream's late policy.")


class AlarmSettings(Section):
    """An alarm: a condition with memory, one instance per key."""

    on: str = Field(description="A stream or a query.")
    where: str = Field(description="SQL condition that raises.")
    clear: str | None = Field(None, description="SQL condition that resolves; absent: `where` is false.")
    key: list[str] = Field(
        default_factory=list, description="Columns that name an instance; default the key."
    )
    for_: DurationUs = Field(0, alias="for", description="How long `where` must hold, event time.")
    severity: Literal["info", "warning", "minor", "major", "critical"] = "major"
    notify: list[str] = Field(default_factory=list, description="Names of `[notify.*]` targets.")


class NotifySettings(Section):
    """A notification target."""

    url: SecretStr = Field(
        description="An Apprise URL, http(s)://... (a JSON webhook), or mqtt:topic/{alarm}/{device}."
    )


class Settings(BaseSettings):
    """The whole configuration."""

    model_config = SettingsConfigDict(
        env_prefix="HEADWATER_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    data_dir: Path = Field(Path("headwater-data"), description="Directory that holds everything durable.")
    admin_token: SecretStr | None = Field(None, description="API token; set it by HEADWATER_ADMIN_TOKEN.")
    database_url: str | None = Field(None, description="SQLAlchemy URL; default a SQLite file in data_dir.")
    mqtt: MqttSettings = MqttSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()
    pipeline: PipelineSettings = PipelineSettings()
    store: StoreSettings = StoreSettings()
    query: QuerySettings = QuerySettings()
    engine: EngineSettings = EngineSettings()
    shadow: ShadowSettings = ShadowSettings()
    streams: dict[str, StreamSettings] = Field(default_factory=dict)
    queries: dict[str, QuerySection] = Field(default_factory=dict)
    alarms: dict[str, AlarmSettings] = Field(default_factory=dict)
    notify: dict[str, NotifySettings] = Field(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Everything is merged by `load` and arrives as init settings, so that the order is in one place."""
        return (init_settings,)

    @model_validator(mode="after")
    def _names(self) -> Self:
        tables = [*self.streams, *self.queries]
        for name in [*tables, *self.alarms, *self.notify]:
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r}: a name is lower-case letters, digits and _, at most 63")
        for name in tables:
            if tables.count(name) > 1:
                raise ValueError(f"{name!r} is both a stream and a query; a table has one owner")
            if name in OWN_TABLES:
                raise ValueError(f"{name!r} is a table of the product; choose another name")
        for name, alarm in self.alarms.items():
            if alarm.on not in tables:
                raise ValueError(
                    f"alarms.{name}.on: {alarm.on!r} is no stream or query{_nearest(alarm.on, tables)}"
                )
            for target in alarm.notify:
                if target not in self.notify:
                    raise ValueError(
                        f"alarms.{name}.notify: {target!r} is no [notify.*] target{_nearest(target, list(self.notify))}"
                    )
        return self

    @model_validator(mode="after")
    def _secure_by_default(self) -> Self:
        for section, listener in (("mqtt", self.mqtt), ("http", self.http)):
            if listener.host not in ("localhost", "::1") and not listener.host.startswith("127."):
                if section == "http" and self.admin_token is not None:
                    continue
                if not listener.insecure:
                    raise ValueError(
                        f"{section}.host = {listener.host!r} is reachable from outside without TLS and authentication; "
                        f"use 127.0.0.1, or write {section}.insecure = true to accept it"
                    )
        return self


def load(
    path: Path | None = None, overrides: Sequence[str] = (), environ: dict[str, str] | None = None
) -> Settings:
    """The settings of a TOML file, the environment and `section.key=value` overrides.

    path:   None: defaults only
    raises: ConfigError with one line per mistake: key, value found, remedy
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(
                f"reading configuration {path}: no such file; `headwater init` writes one"
            ) from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"reading configuration {path}: {error}") from error
    for name, value in (os.environ if environ is None else environ).items():
        if name == "HEADWATER_ADMIN_TOKEN":
            values["admin_token"] = value
        elif name.startswith("HEADWATER_") and ("__" in name or name == "HEADWATER_DATA_DIR"):
            _put(values, name.removeprefix("HEADWATER_").lower().split("__"), _scalar(value), name)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override!r}: write section.key=value")
        _put(values, key.strip().split("."), _scalar(value.strip()), f"--set {key}")
    try:
        return Settings(**values)
    except ValidationError as error:
        raise ConfigError(_explain(error, str(path) if path else "configuration")) from None


def _put(values: dict[str, Any], path: list[str], value: object, source: str) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{source}: {part!r} is a value, not a section")
    values[path[-1]] = value


def _scalar(text: str) -> object:
    """A TOML value where the text is one (numbers, booleans, lists), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _nearest(wrong: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(wrong, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are {sorted(known)}" if known else ""


def _explain(error: ValidationError, source: str) -> str:
    lines = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"]) or "configuration"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = _known_keys(problem["loc"][:-1])
            message = f"unknown key{_nearest(str(problem['loc'][-1]), known)}"
        elif problem["type"] == "missing":
            message = "is required"
        elif problem["loc"] and not isinstance(problem["input"], (dict, SecretStr)):
            message = f"{message} (found {problem['input']!r})"
        lines.append(f"{source}: {path}: {message}")
    return "\n".join(lines)


def _known_keys(path: tuple[int | str, ...]) -> list[str]:
    model: Any = Settings
    for part in path:
        field = (
            model.model_fields.get(str(part))
            if isinstance(model, type) and issubclass(model, BaseModel)
            else None
        )
        annotation = field.annotation if field is not None else model
        inner = [a for a in _flatten(annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not inner:
            return []
        model = inner[0]
    fields: dict[str, Any] = model.model_fields
    return [field.alias or name for name, field in fields.items()]


def _flatten(annotation: Any) -> list[Any]:
    arguments = getattr(annotation, "__args__", None)
    return [annotation] if not arguments else [part for a in arguments for part in _flatten(a)]

"""What a user declares: streams and queries, as sections of the configuration.

Alarms are in `alarm_settings.py`, targets and routes in `notify_settings.py`.

Durations are written `250ms`, `10s`, `5m`, `1h`, `7d`.
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from headwater import protobuf as protobuf_messages
from headwater.records import NAME, ColumnType

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


def format_duration(us: int) -> str:
    """A duration as it is written, in the largest unit that divides it.

    >>> format_duration(90_000_000), format_duration(1_500)
    ('90s', '1.5ms')
    """
    for unit, size in reversed(_UNIT_US.items()):
        if us >= size and us % size == 0:
            return f"{us // size}{unit}"
    return f"{Decimal(us) / 1000}ms" if us else "0s"


def is_duration(field: FieldInfo) -> bool:
    """Whether a field of a section is a duration, or may be one."""
    inner = (getattr(part, "__metadata__", ()) for part in get_args(field.annotation))
    parts = [*field.metadata, *(each for found in inner for each in found)]
    return any(getattr(part, "func", None) is parse_duration_us for part in parts)


#: A duration in microseconds.
DurationUs = Annotated[int, BeforeValidator(parse_duration_us), Field(ge=0)]


class Section(BaseModel):
    """A section of the configuration: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def written(self) -> dict[str, Any]:
        """The section as a TOML file has it, without what is the default; equal sections are written alike."""
        found = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if field.is_required() or value != field.get_default(call_default_factory=True):
                key = field.alias or name
                found[key] = format_duration(value) if is_duration(field) else _plain(value)
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.written()
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, (str, Path)) else value


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

    books: list[str] = Field(
        default_factory=list, description="Captured levels whose values have books of their own, by row."
    )
    paused: bool = Field(False, description="Takes no messages; its table stays as it is.")

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

    def written(self) -> dict[str, Any]:
        found = super().written()
        if found.pop("infer", False):
            found["fields"] = "infer"
        for name, field in (found["fields"] if isinstance(found["fields"], dict) else {}).items():
            if field.get("path", name) == name:
                found["fields"][name] = field["type"]
        if "unit" not in found.get("time", {"unit": None}):
            found["time"] = found["time"]["path"]
        return found

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
        for name in self.books:
            if name not in captures:
                raise ValueError(f"books: {name!r} is no captured level; there are {captures}")
        if len(set(self.books)) != len(self.books):
            raise ValueError(f"books: {self.books} names a level twice")
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
    paused: bool = Field(False, description="Reads nothing; its table stays as it is.")
    early: Annotated[DurationUs, Field(ge=1_000_000)] | None = Field(
        None,
        description="Open windows show what they hold so far each time the watermark passes a multiple of this.",
    )

"""Protocol Buffers by descriptor against Google's own library, and what a wrong declaration is told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater import _native, config
from headwater.errors import ConfigError, RecordError

ARRIVAL_US = 1_700_000_000_000_000
F = descriptor_pb2.FieldDescriptorProto
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

I32, I64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
U32, U63 = st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1)
#: Every scalar type: its number, column type and values.
SCALARS: dict[str, tuple[int, str, Any]] = {
    "f_double": (F.TYPE_DOUBLE, "double", st.floats(allow_nan=False)),
    "f_float": (F.TYPE_FLOAT, "double", st.floats(allow_nan=False, width=32)),
    "f_int64": (F.TYPE_INT64, "bigint", I64),
    "f_uint64": (F.TYPE_UINT64, "bigint", U63),
    "f_int32": (F.TYPE_INT32, "bigint", I32),
    "f_fixed64": (F.TYPE_FIXED64, "bigint", U63),
    "f_fixed32": (F.TYPE_FIXED32, "bigint", U32),
    "f_bool": (F.TYPE_BOOL, "boolean", st.booleans()),
    "f_string": (F.TYPE_STRING, "string", st.text(st.characters(codec="utf-8"), max_size=20)),
    "f_uint32": (F.TYPE_UINT32, "bigint", U32),
    "f_enum": (F.TYPE_ENUM, "string", st.sampled_from([0, 1, -5])),
    "f_sfixed32": (F.TYPE_SFIXED32, "bigint", I32),
    "f_sfixed64": (F.TYPE_SFIXED64, "bigint", I64),
    "f_sint32": (F.TYPE_SINT32, "bigint", I32),
    "f_sint64": (F.TYPE_SINT64, "bigint", I64),
}
LABELS = {0: "OFF", 1: "ON", -5: "BROKEN"}


def described(syntax: str) -> tuple[bytes, type]:
    """A FileDescriptorSet and the reference's class for test.M: all scalars, once nested (`inner`) and once
    with presence (`opt_...`), a repeated field, a map, a oneof and a Timestamp."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{syntax}.proto", package="test", syntax=syntax)
    file.dependency.append("google/protobuf/timestamp.proto")
    file.enum_type.add(name="E", value=[{"name": label, "number": at} for at, label in LABELS.items()])
    inner, message = file.message_type.add(name="Inner"), file.message_type.add(name="M")
    for at, (name, (type_, _, _)) in enumerate(SCALARS.items()):
        of = ".test.E" if type_ == F.TYPE_ENUM else None
        inner.field.add(name=name, number=at + 1, label=1, type=type_, type_name=of)
        message.field.add(name=name, number=at + 1, label=1, type=type_, type_name=of)
    message.oneof_decl.add(name="either")
    add = message.field.add
    add(name="inner", number=100, label=1, type=F.TYPE_MESSAGE, type_name=".test.Inner")
    add(name="many", number=101, label=3, type=F.TYPE_INT32)
    add(name="left", number=102, label=1, type=F.TYPE_INT32, oneof_index=0)
    add(name="right", number=103, label=1, type=F.TYPE_MESSAGE, type_name=".test.Inner", oneof_index=0)
    add(name="at", number=104, label=1, type=F.TYPE_MESSAGE, type_name=".google.protobuf.Timestamp")
    add(name="labels", number=105, label=3, type=F.TYPE_MESSAGE, type_name=".test.M.LabelsEntry")
    add(name="blob", number=2000, label=1, type=F.TYPE_BYTES)
    entry = message.nested_type.add(name="LabelsEntry", options={"map_entry": True})
    entry.field.add(name="key", number=1, label=1, type=F.TYPE_STRING)
    entry.field.add(name="value", number=2, label=1, type=F.TYPE_SINT64)
    if syntax == "proto3":
        message.oneof_decl.add(name="_opt")
        add(name="opt", number=106, label=1, type=F.TYPE_DOUBLE, oneof_index=1, proto3_optional=True)
    else:
        add(name="opt", number=106, label=1, type=F.TYPE_DOUBLE)
    pool = descriptor_pool.DescriptorPool()
    stamp = descriptor_pb2.FileDescriptorProto()
    timestamp_pb2.DESCRIPTOR.CopyToProto(stamp)
    pool.Add(stamp)
    pool.Add(file)
    of_file = descriptor_pb2.FileDescriptorSet(file=[stamp, file])
    return of_file.SerializeToString(), message_factory.GetMessageClass(pool.FindMessageTypeByName("test.M"))


DESCRIBED = {syntax: described(syntax) for syntax in ("proto2", "proto3")}
FIELDS = [(name, type_, name) for name, (_, type_, _) in SCALARS.items()]
NESTED = [(f"inner_{name}", type_, f"inner.{name}") for name, type_, _ in FIELDS]
MORE = [
    ("opt", "double", "opt"),
    ("left", "bigint", "left"),
    ("right_f_int32", "bigint", "right.f_int32"),
    ("label_a", "bigint", "labels.a"),
    ("number", "bigint", "f_enum"),
]


def decoded(syntax: str, payload: bytes) -> dict[str, Any]:
    """The row of a payload."""
    stream = {
        "schema": 0,
        "name": "t",
        "topic": "t",
        "format": "protobuf",
        "time": "at",
        "time_unit": "auto",
        "fields": FIELDS + NESTED + MORE,
        "infer": False,
        "protobuf": (DESCRIBED[syntax][0], "test.M"),
    }
    [row] = pa.Table.from_batches([_native.decode(stream, payload, ARRIVAL_US)]).to_pylist()
    return row


def expected(syntax: str, message: Any) -> dict[str, Any]:
    """The row as the reference library reads the message."""

    def scalar(of: Any, name: str) -> Any:
        if of is None or (of.DESCRIPTOR.fields_by_name[name].has_presence and not of.HasField(name)):
            return None
        value = getattr(of, name)
        return LABELS[value] if name == "f_enum" else value

    def part(name: str) -> Any:
        return getattr(message, name) if message.HasField(name) else None

    row = {name: scalar(message, name) for name in SCALARS}
    row |= {f"inner_{name}": scalar(part("inner"), name) for name in SCALARS}
    row["opt"], row["left"] = scalar(message, "opt"), scalar(message, "left")
    row["right_f_int32"] = scalar(part("right"), "f_int32")
    row["label_a"] = message.labels.get("a")
    present = syntax == "proto3" or message.HasField("f_enum")
    row["number"] = message.f_enum if present else None
    return row


scalars = st.fixed_dictionaries({}, optional={name: values for name, (_, _, values) in SCALARS.items()})
messages = st.tuples(
    scalars,
    st.fixed_dictionaries(
        {},
        optional={
            "inner": scalars,
            "many": st.lists(I32, max_size=4),
            "labels": st.dictionaries(st.sampled_from(["a", "b"]), I64),
            "blob": st.binary(max_size=10),
            "opt": st.floats(allow_nan=False),
            "at": st.fixed_dictionaries(
                {"seconds": st.integers(0, 4_000_000_000), "nanos": st.integers(0, 10**9 - 1)}
            ),
        },
    ),
    st.one_of(st.just({}), st.fixed_dictionaries({"left": I32}), st.fixed_dictionaries({"right": scalars})),
)


@pytest.mark.parametrize("syntax", ["proto2", "proto3"])
@patient
@given(sent=st.lists(messages, min_size=1, max_size=2))
def test_reads_as_the_reference_does(syntax: str, sent: list[tuple[dict[str, Any], ...]]) -> None:
    kind = DESCRIBED[syntax][1]
    # Serialized messages one behind the other are one message: the later wins, nested ones are merged.
    payload = b"".join(kind(**(a | b | c)).SerializeToString() for a, b, c in sent)
    message = kind.FromString(payload)
    row = decoded(syntax, payload)
    ts = row.pop("ts")
    row.pop("received_at")
    assert row == expected(syntax, message)
    # A time is no message to merge: the last counts.
    times = [b["at"] for _, b, _ in sent if "at" in b]
    wanted = times[-1]["seconds"] * 1_000_000 + times[-1]["nanos"] // 1000 if times else ARRIVAL_US
    assert round(ts.timestamp() * 1e6) == wanted


@patient
@given(payload=st.binary(max_size=40))
def test_what_the_reference_refuses_of_declared_fields_is_refused(payload: bytes) -> None:
    kind = DESCRIBED["proto3"][1]
    try:
        row = decoded("proto3", payload)
    except RecordError:
        return
    try:
        message = kind.FromString(payload)
    except Exception:
        return  # It also reads what is not declared here.
    for name, found in row.items():
        if name in SCALARS and name != "f_enum":
            wanted = getattr(message, name)
            assert found == wanted or (math.isnan(found) and math.isnan(wanted))


def loaded(tmp_path: Path, stream: str) -> config.Settings:
    path = tmp_path / "m.desc"
    path.write_bytes(DESCRIBED["proto3"][0])
    (tmp_path / "c.toml").write_text("[streams.m]\ntopic = 'm/{left}'\n" + stream.replace("DESC", str(path)))
    return config.load(tmp_path / "c.toml", environ={})


def test_fields_come_from_the_descriptor(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        "format = 'protobuf'\nprotobuf = { descriptor = 'DESC', message = 'test.M' }\ntime = 'at'\nfields = 'infer'",
    )
    stream = settings.streams["m"]
    assert not stream.infer
    found = {name: (field.type.value, field.path) for name, field in stream.fields.items()}
    wanted = {name: (type_, path) for name, type_, path in FIELDS + NESTED}
    assert found.items() >= wanted.items()
    assert found["left_2"] == ("bigint", "left")
    assert not {"many", "blob", "labels", "at"} & found.keys()


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (
            "format = 'protobuf'\nfields = { f_double = 'double' }",
            "goes with protobuf = { descriptor",
        ),
        ("protobuf = { descriptor = 'DESC', message = 'test.M' }\nfields = { a = 'double' }", "goes with"),
        (
            "format = 'protobuf'\nprotobuf = { descriptor = '/nowhere', message = 'test.M' }\nfields = 'infer'",
            "reading descriptor /nowhere: No such file",
        ),
        (
            "format = 'protobuf'\nprotobuf = { descriptor = 'DESC', message = 'test.N' }\nfields = 'infer'",
            'no message "test.N"; it has',
        ),
        (
            "format = 'protobuf'\nprotobuf = { descriptor = 'DESC', message = 'test.M' }\nfields = { x = 'double' }",
            'has no field "x"',
        ),
        (
            "format = 'protobuf'\nprotobuf = {descriptor = 'DESC', message = 'test.M'}\nfields = {f_double = 'bigint'}",
            "is double, but its column wants a whole number",
        ),
    ],
)
def test_a_wrong_declaration_is_told(tmp_path: Path, stream: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        loaded(tmp_path, stream)
    assert message in str(refused.value)

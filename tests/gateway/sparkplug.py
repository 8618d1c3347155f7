"""The schema of Sparkplug B payloads (3.0, section 6.4.1) for Google's library, as far as tests use it."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

F = descriptor_pb2.FieldDescriptorProto

INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64, FLOAT, DOUBLE, BOOLEAN, STRING, DATETIME, TEXT = (
    range(1, 15)
)


def _payload() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="sparkplug.proto", package="tahu", syntax="proto2")
    payload = file.message_type.add(name="Payload")
    metric = payload.nested_type.add(name="Metric")
    metric.oneof_decl.add(name="value")
    for number, name, type_ in [
        (1, "name", F.TYPE_STRING),
        (2, "alias", F.TYPE_UINT64),
        (3, "timestamp", F.TYPE_UINT64),
        (4, "datatype", F.TYPE_UINT32),
        (5, "is_historical", F.TYPE_BOOL),
        (6, "is_transient", F.TYPE_BOOL),
        (7, "is_null", F.TYPE_BOOL),
    ]:
        metric.field.add(name=name, number=number, label=1, type=type_)
    for number, name, type_ in [
        (10, "int_value", F.TYPE_UINT32),
        (11, "long_value", F.TYPE_UINT64),
        (12, "float_value", F.TYPE_FLOAT),
        (13, "double_value", F.TYPE_DOUBLE),
        (14, "boolean_value", F.TYPE_BOOL),
        (15, "string_value", F.TYPE_STRING),
        (16, "bytes_value", F.TYPE_BYTES),
    ]:
        metric.field.add(name=name, number=number, label=1, type=type_, oneof_index=0)
    for number, name, type_ in [
        (1, "timestamp", F.TYPE_UINT64),
        (3, "seq", F.TYPE_UINT64),
        (4, "uuid", F.TYPE_STRING),
        (5, "body", F.TYPE_BYTES),
    ]:
        payload.field.add(name=name, number=number, label=1, type=type_)
    payload.field.add(
        name="metrics", number=2, label=3, type=F.TYPE_MESSAGE, type_name=".tahu.Payload.Metric"
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tahu.Payload"))


Payload: Any = _payload()

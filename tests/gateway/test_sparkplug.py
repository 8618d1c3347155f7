"""Sparkplug B payloads against Google's library with the specification's schema."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater import _native
from headwater.declarations import StreamSettings
from headwater.errors import RecordError
from tests.gateway import sparkplug as sp

ARRIVAL_US = 1_700_000_000_000_000
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

#: Datatype: column, member of `value`, values as the device means them, and how they are written.
TYPES: dict[int, tuple[str, str, Any, int]] = {
    sp.INT8: ("i", "int_value", st.integers(-(2**7), 2**7 - 1), 32),
    sp.INT16: ("i", "int_value", st.integers(-(2**15), 2**15 - 1), 32),
    sp.INT32: ("i", "int_value", st.integers(-(2**31), 2**31 - 1), 32),
    sp.INT64: ("i", "long_value", st.integers(-(2**63), 2**63 - 1), 64),
    sp.UINT8: ("i", "int_value", st.integers(0, 2**8 - 1), 32),
    sp.UINT32: ("i", "int_value", st.integers(0, 2**32 - 1), 32),
    sp.UINT64: ("i", "long_value", st.integers(0, 2**63 - 1), 64),
    sp.FLOAT: ("d", "float_value", st.floats(allow_nan=False, width=32), 0),
    sp.DOUBLE: ("d", "double_value", st.floats(allow_nan=False), 0),
    sp.BOOLEAN: ("b", "boolean_value", st.booleans(), 0),
    sp.STRING: ("s", "string_value", st.text(st.characters(codec="utf-8"), max_size=10), 0),
    sp.TEXT: ("s", "string_value", st.text(st.characters(codec="utf-8"), max_size=10), 0),
}
COLUMNS = {"d": "double", "i": "bigint", "b": "boolean", "s": "string"}


def decoded(payload: Any) -> list[dict[str, Any]]:
    stream = {
        "schema": 0,
        "name": "t",
        "topic": "t",
        "format": "sparkplug-b",
        "time": None,
        "time_unit": "auto",
        "fields": [(name, type_, f"Inputs/{name}") for name, type_ in COLUMNS.items()],
        "infer": False,
    }
    batch = _native.decode(stream, payload.SerializeToString(), ARRIVAL_US)
    return pa.Table.from_batches([batch]).to_pylist()


metrics = st.sampled_from(list(TYPES)).flatmap(
    lambda datatype: st.tuples(
        st.just(datatype), st.none() | TYPES[datatype][2], st.none() | st.integers(0, 4_000_000_000_000)
    )
)


@patient
@given(sent=st.lists(metrics, max_size=8), sent_ms=st.none() | st.integers(0, 4_000_000_000_000))
def test_values_and_times(sent: list[tuple[int, Any, int | None]], sent_ms: int | None) -> None:
    payload = sp.Payload(timestamp=sent_ms, seq=0)
    wanted: dict[int, dict[str, Any]] = {}
    for datatype, value, at_ms in sent:
        column, member, _, bits = TYPES[datatype]
        metric = payload.metrics.add(name=f"Inputs/{column}", datatype=datatype, timestamp=at_ms)
        if value is None:
            metric.is_null = True
        else:
            setattr(metric, member, value % (1 << bits) if bits else value)
        ms = at_ms if at_ms is not None else sent_ms
        us = ARRIVAL_US if ms is None else ms * 1000
        wanted.setdefault(us, dict.fromkeys(COLUMNS))[column] = value
    rows = decoded(payload)
    assert [round(row.pop("ts").timestamp() * 1e6) for row in rows] == list(wanted)
    assert [{name: row[name] for name in COLUMNS} for row in rows] == list(wanted.values())


def test_an_alias_alone_names_nothing() -> None:
    payload = sp.Payload(seq=1)
    payload.metrics.add(alias=7, datatype=sp.DOUBLE, double_value=1.5)
    with pytest.raises(RecordError, match="unknown-metric: 1 metrics have no name"):
        decoded(payload)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"topic": "x/{edge}"}, "Sparkplug topics are"), ({"time": "timestamp"}, "state their times")],
)
def test_declarations_that_cannot_work(changes: dict[str, Any], message: str) -> None:
    stream = {"topic": "spBv1.0/{group}/+/{edge}", "format": "sparkplug-b", "fields": {"d": "double"}}
    with pytest.raises(ValueError, match=message):
        StreamSettings.model_validate(stream | changes)

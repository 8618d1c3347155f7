"""Payload formats against the field's reference libraries: what those write, the native decoder reads alike."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

import cbor2
import msgpack
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater import _native
from headwater.errors import RecordError

ARRIVAL_US = 1_700_000_000_000_000
FIELDS = {"d": "double", "i": "bigint", "b": "boolean", "s": "string"}

#: The first draw of texts builds tables of all characters, which a busy machine takes seconds for.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

#: One reading; each field may be absent or None.
readings = st.fixed_dictionaries(
    {},
    optional={
        "d": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "i": st.none() | st.integers(-(2**63), 2**63 - 1),
        "b": st.none() | st.booleans(),
        "s": st.none() | st.text(st.characters(codec="utf-8"), max_size=20),
        "other": st.recursive(
            st.none() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
            max_leaves=8,
        ),
    },
)


def declaration(format_: str, **changes: Any) -> dict[str, Any]:
    """The stream that all formats decode for."""
    fields = [(name, type_, name) for name, type_ in FIELDS.items()]
    stream = {"schema": 0, "name": "t", "topic": "t", "format": format_, "time": None, "time_unit": "auto"}
    return {**stream, "fields": fields, "infer": False, **changes}


def decoded(format_: str, payload: bytes, **changes: Any) -> list[dict[str, Any]]:
    """Rows of one payload, as Python values."""
    batch = _native.decode(declaration(format_, **changes), payload, ARRIVAL_US)
    return pa.Table.from_batches([batch]).select(list(FIELDS)).to_pylist()


def expected(sent: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the readings are as rows."""
    return [{name: reading.get(name) for name in FIELDS} for reading in sent]


@patient
@given(st.lists(readings, max_size=4))
def test_cbor(sent: list[dict[str, Any]]) -> None:
    for options in ({}, {"canonical": True}, {"indefinite_containers": True}):
        assert decoded("cbor", cbor2.dumps(sent, **options)) == expected(sent)


@patient
@given(st.lists(readings, max_size=4))
def test_msgpack(sent: list[dict[str, Any]]) -> None:
    assert decoded("msgpack", msgpack.packb(sent)) == expected(sent)


@patient
@given(st.lists(readings, max_size=4))
def test_json_and_the_other_json_reader(sent: list[dict[str, Any]]) -> None:
    payload = json.dumps(sent).encode()
    if any("\\ud" in json.dumps(reading.get("s") or "") for reading in sent):
        return  # Half surrogate pairs cannot be text.
    assert decoded("json", payload) == expected(sent)


@patient
@given(st.lists(readings.map(lambda reading: {k: v for k, v in reading.items() if k != "other"}), max_size=4))
def test_csv(sent: list[dict[str, Any]]) -> None:
    file = io.StringIO()
    writer = csv.writer(
        file, quoting=csv.QUOTE_STRINGS if hasattr(csv, "QUOTE_STRINGS") else csv.QUOTE_MINIMAL
    )
    writer.writerow(FIELDS)
    rows = [[reading.get(name) for name in FIELDS] for reading in sent]
    shown = [
        [
            ""
            if v is None
            else str(v).lower()
            if isinstance(v, bool)
            else repr(v)
            if isinstance(v, float)
            else v
            for v in row
        ]
        for row in rows
    ]
    writer.writerows(shown)
    wanted = expected(sent)
    for reading in wanted:
        # Without quotes a CSV writer cannot tell the empty text from none.
        reading["s"] = reading["s"] or None
    if any("\r" in (reading["s"] or "") for reading in wanted):
        return
    assert decoded("csv", file.getvalue().encode()) == wanted


@patient
@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=False, allow_infinity=False),
            st.integers(-(2**63), 2**63 - 1),
            st.booleans(),
            st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), min_size=1, max_size=10),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_influx(points: list[tuple[float, int, bool, str]]) -> None:
    lines = []
    for d, i, b, s in points:
        quoted = s.replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'm,tag=x d={d!r},i={i}i,b={str(b).lower()},s="{quoted}" 1465839830100400200')
    rows = decoded("influx", "\n".join(lines).encode())
    assert [tuple(row.values()) for row in rows] == points


@patient
@given(st.lists(st.tuples(st.sampled_from(["d", "i"]), st.integers(-1000, 1000)), min_size=1, max_size=6))
def test_senml_json_and_cbor_agree(values: list[tuple[str, int]]) -> None:
    records = [{"n": name, "v": value} for name, value in values]
    records[0] |= {"bn": "dev:", "bt": 1_700_000_000}
    labels = {"bn": -2, "bt": -3, "n": 0, "v": 2}
    packed = [{labels[key]: value for key, value in record.items()} for record in records]
    wanted: dict[str, Any] = dict.fromkeys(FIELDS)
    wanted |= {name: float(value) if name == "d" else value for name, value in values}
    assert decoded("senml-json", json.dumps(records).encode()) == [wanted]
    assert decoded("senml-cbor", cbor2.dumps(packed)) == [wanted]


def test_floats_that_json_lacks() -> None:
    for format_, payload in (
        ("cbor", cbor2.dumps({"d": math.inf})),
        ("msgpack", msgpack.packb({"d": math.inf})),
    ):
        assert decoded(format_, payload)[0]["d"] == math.inf


@pytest.mark.parametrize("format_", ["cbor", "msgpack", "senml-json", "senml-cbor", "influx", "csv"])
def test_refusals_say_reason_and_place(format_: str) -> None:
    with pytest.raises(RecordError, match=r"(invalid-|not-an-object|too-deep)"):
        decoded(format_, b"\xff\xff\xff")

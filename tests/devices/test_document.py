"""Shadow documents: the examples of the AWS guide, its refusals, and the laws of version, delta and metadata."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.devices import document as documents
from headwater.devices.document import Document, Update
from headwater.errors import ShadowError

T = 1_700_000_000
AT = {"timestamp": T}
LATER = {"timestamp": T + 5}


def update(
    document: Document | None, request: Any, now_s: int = T, last_version: int | None = None
) -> Update:
    payload = request if isinstance(request, bytes) else json.dumps(request).encode()
    version = last_version if last_version is not None else document.version if document else 0
    return documents.update(document, payload, last_version=version, now_s=now_s, max_bytes=8192)


def get(document: Document | None, payload: bytes = b"") -> dict[str, Any]:
    return documents.get(document, payload, shown_name="pump", now_s=T + 9, max_bytes=8192)


def state(desired: Any = None, reported: Any = None) -> dict[str, Any]:
    sections = {"desired": desired, "reported": reported}
    return {"state": {name: section for name, section in sections.items() if section is not None}}


def test_an_update_echoes_the_request_and_not_the_document() -> None:
    first = update(None, state(desired={"color": "red", "power": {"on": True}}))
    assert first.accepted == {
        "state": {"desired": {"color": "red", "power": {"on": True}}},
        "metadata": {"desired": {"color": AT, "power": {"on": AT}}},
        "version": 1,
        "timestamp": T,
    }
    second = update(first.document, state(reported={"color": "blue"}) | {"clientToken": "abc"}, now_s=T + 5)
    assert second.accepted == {
        "state": {"reported": {"color": "blue"}},
        "metadata": {"reported": {"color": LATER}},
        "version": 2,
        "timestamp": T + 5,
        "clientToken": "abc",
    }
    assert second.delta == {
        "state": {"color": "red", "power": {"on": True}},
        "metadata": {"color": AT, "power": {"on": AT}},
        "version": 2,
        "timestamp": T + 5,
        "clientToken": "abc",
    }
    assert second.documents == {
        "previous": {
            "state": {"desired": {"color": "red", "power": {"on": True}}},
            "metadata": {"desired": {"color": AT, "power": {"on": AT}}},
            "version": 1,
        },
        "current": {
            "state": {"desired": {"color": "red", "power": {"on": True}}, "reported": {"color": "blue"}},
            "metadata": {"desired": {"color": AT, "power": {"on": AT}}, "reported": {"color": LATER}},
            "version": 2,
        },
        "timestamp": T + 5,
        "clientToken": "abc",
    }
    assert first.documents["previous"] is None


def test_get_shows_the_delta_only_where_something_differs() -> None:
    document = update(None, state(desired={"a": 1, "b": [1, 2]}, reported={"a": 1.0, "c": 3})).document
    assert get(document, b'{"clientToken":"t"}') == {
        "state": {"desired": {"a": 1, "b": [1, 2]}, "reported": {"a": 1.0, "c": 3}, "delta": {"b": [1, 2]}},
        "metadata": {
            "desired": {"a": AT, "b": [AT, AT]},
            "reported": {"a": AT, "c": AT},
            "delta": {"b": [AT, AT]},
        },
        "version": 1,
        "timestamp": T + 9,
        "clientToken": "t",
    }
    same = update(document, state(reported={"b": [1, 2]}))
    assert same.delta is None
    assert set(get(same.document)["state"]) == {"desired", "reported"}


@pytest.mark.parametrize(
    ("before", "patch", "after"),
    [
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}, {"a": {"x": 1, "y": 3}}),
        ({"a": {"x": 1}}, {"a": {"x": None}}, {"a": {}}),
        ({"a": 1, "b": 2}, {"a": None}, {"b": 2}),
        ({"a": [1, 2, 3]}, {"a": [4]}, {"a": [4]}),
        ({"a": 1}, {"a": {"x": 1, "y": None}}, {"a": {"x": 1}}),
        ({"a": {"x": 1}}, {"a": 5}, {"a": 5}),
        ({"a": 1}, {"never": None}, {"a": 1}),
        ({"a": 1}, {"b": {}}, {"a": 1, "b": {}}),
        ({"a": 1}, {"a": None}, None),
        ({"a": 1}, None, None),
    ],
)
def test_merge(before: dict[str, Any], patch: dict[str, Any] | None, after: dict[str, Any] | None) -> None:
    document = update(None, state(desired=before)).document
    merged = update(document, {"state": {"desired": patch}})
    assert merged.document.state == ({} if after is None else {"desired": after})
    assert merged.accepted["state"] == {"desired": patch}
    assert before == json.loads(json.dumps(before))


def test_null_state_clears_and_is_no_deletion() -> None:
    document = update(None, state({"a": 1}, {"a": 2})).document
    cleared = update(document, {"state": None})
    assert (cleared.document.state, cleared.document.version, cleared.delta) == ({}, 2, None)
    assert get(cleared.document)["state"] == {}


def test_untouched_leaves_keep_their_time() -> None:
    document = update(None, state(desired={"a": 1, "b": {"c": 1, "d": 1}})).document
    again = update(document, state(desired={"b": {"c": 1}}), now_s=T + 5).document
    assert again.metadata["desired"] == {"a": AT, "b": {"c": LATER, "d": AT}}


@pytest.mark.parametrize(
    ("desired", "reported", "delta"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": 1}, {"a": 1.0}, None),
        ({"a": 1}, {"a": True}, {"a": 1}),
        ({"a": False}, {"a": 0}, {"a": False}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"x": 1}}, {"a": {"y": 2}}),
        ({"a": {"x": 1}}, {"a": 5}, {"a": {"x": 1}}),
        ({"a": [1, {"b": 1}]}, {"a": [1, {"b": True}]}, {"a": [1, {"b": 1}]}),
        ({"a": [1, 2]}, {"a": [1, 2, 3]}, {"a": [1, 2]}),
        ({"a": {}}, {"a": {"x": 1}}, None),
        ({"a": {}}, {"b": 1}, {"a": {}}),
    ],
)
def test_delta(desired: dict[str, Any], reported: dict[str, Any], delta: dict[str, Any] | None) -> None:
    found = update(None, state(desired, reported)).delta
    assert (found and found["state"]) == delta


def test_version() -> None:
    document = update(None, state({"a": 1})).document
    assert update(document, state({"a": 2}) | {"version": 1}).document.version == 2
    assert update(None, state({"a": 1}), last_version=7).document.version == 8  # it was deleted at 7
    for at, request in ((document, {"version": 2}), (None, {"version": 0}), (None, {"version": 7})):
        with pytest.raises(ShadowError, match="Version conflict") as caught:
            update(at, state({"a": 1}) | request)
        assert caught.value.code == 409


def deep(levels: int) -> dict[str, Any]:
    value: Any = "leaf"
    for level in range(levels):
        value = {str(level): value}
    return value


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (b"{", 400, "Payload contains invalid json"),
        (b"", 400, "Payload contains invalid json"),
        (b"[1]", 400, "Payload contains invalid json"),
        (b'{"state":{"desired":{"a":NaN}}}', 400, "Payload contains invalid json"),
        (b"[" * 9000, 400, "Payload contains invalid json"),
        (
            b'{"state":{"desired":{"a":"\xff"}}}',
            415,
            "Unsupported documented encoding; supported encoding is UTF-8",
        ),
        ({}, 400, "Missing required node: state"),
        ({"state": 5}, 400, "State node must be an object"),
        ({"state": {"desired": 5}}, 400, "Desired node must be an object"),
        ({"state": {"reported": []}}, 400, "Reported node must be an object"),
        ({"state": {"delta": {}}}, 400, "State contains an invalid node"),
        (state({"a": [1, None]}), 400, "State contains an invalid node: arrays may not contain null"),
        (state({"a": [{"b": None}]}), 400, "State contains an invalid node: arrays may not contain null"),
        (state({"a": 1}) | {"version": "1"}, 400, "Invalid version"),
        (state({"a": 1}) | {"version": True}, 400, "Invalid version"),
        (state({"a": 1}) | {"version": -1}, 400, "Invalid version"),
        (state({"a": 1}) | {"clientToken": 5}, 400, "Invalid clientToken"),
        (state({"a": 1}) | {"clientToken": "x" * 65}, 400, "Invalid clientToken"),
        (state({"a": 1}) | {"clientToken": "ü" * 33}, 400, "Invalid clientToken"),
        (state(deep(7)), 400, "JSON contains too many levels of nesting; maximum is 6"),
        (state({"a": [[[[[[[1]]]]]]]}), 400, "JSON contains too many levels of nesting; maximum is 6"),
        (state({"a": "x" * 8192}), 413, "The payload exceeds the maximum size allowed"),
        (b" " * (4 * 8192) + b"{}", 413, "The payload exceeds the maximum size allowed"),
    ],
)
def test_refusals(request_: Any, code: int, message: str) -> None:
    with pytest.raises(ShadowError) as caught:
        update(None, request_)
    assert (caught.value.code, str(caught.value)) == (code, message)


def test_limits_are_reached_and_not_passed() -> None:
    assert update(None, state(deep(6))).document.version == 1
    assert update(None, state({"a": 1}) | {"clientToken": "ü" * 32}).accepted["clientToken"] == "ü" * 32
    most = 8192 - len('{"desired":{"a":""}}')
    document = update(None, state({"a": "x" * most})).document
    with pytest.raises(ShadowError, match="exceeds"):
        update(document, state(reported={"b": 1}))  # the merged document counts


def test_missing_shadows() -> None:
    for operation in (documents.get, documents.delete):
        with pytest.raises(ShadowError, match="No shadow exists with name: pump") as caught:
            operation(None, b"", shown_name="pump", now_s=T, max_bytes=8192)
        assert caught.value.code == 404
    document = update(None, state({"a": 1})).document
    answer = documents.delete(document, b'{"clientToken":"t"}', shown_name="", now_s=T, max_bytes=8192)
    assert answer == {"version": 1, "timestamp": T, "clientToken": "t"}


def test_rejected_echoes_a_valid_token_only() -> None:
    error = ShadowError(409, "Version conflict")
    assert documents.rejected(error, b'{"clientToken":"t"}', T, 8192) == {
        "code": 409, "message": "Version conflict", "timestamp": T, "clientToken": "t",
    }  # fmt: skip
    for payload in (b"{", b'{"clientToken":5}', b"\xff"):
        assert "clientToken" not in documents.rejected(error, payload, T, 8192)


@pytest.mark.parametrize(
    ("thing", "name", "good"),
    [
        ("pump:1_a-B", "", True),
        ("p" * 128, "n" * 64, True),
        ("p" * 129, "", False),
        ("p", "n" * 65, False),
        ("", "", False),
        ("pump 1", "", False),
        ("pump", "a.b", False),
        ("pump\n", "", False),
    ],
)
def test_names(thing: str, name: str, good: bool) -> None:
    if good:
        documents.check_names(thing, name)
        return
    with pytest.raises(ShadowError) as caught:
        documents.check_names(thing, name)
    assert caught.value.code == 400


KEYS = st.sampled_from("abc")
LEAF = st.sampled_from([0, 1, 1.0, 2.5, True, False, "x", ""])
PATCH = st.recursive(
    LEAF | st.none() | st.lists(LEAF, max_size=2),
    lambda inner: st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
SECTION = st.none() | st.dictionaries(KEYS, PATCH, max_size=3)
REQUEST = st.fixed_dictionaries({}, optional={"desired": SECTION, "reported": SECTION})


@settings(max_examples=300, deadline=None)
@given(st.lists(REQUEST, min_size=1, max_size=6))
def test_laws(requests: list[dict[str, Any]]) -> None:
    document: Document | None = None
    for number, request in enumerate(requests, start=1):
        outcome = update(document, {"state": request}, now_s=T + number)
        before, document = document, outcome.document
        assert document.version == number
        for section, merged in document.state.items():
            assert merged
            assert shape(document.metadata[section]) == shape(merged)
        assert document.state.keys() == document.metadata.keys()
        assert outcome.documents["previous"] == (before.shown() if before else None)
        # Reporting what the delta asks for leaves no delta.
        if outcome.delta is not None:
            answered = update(document, {"state": {"reported": outcome.delta["state"]}})
            assert answered.delta is None
            assert shape(outcome.delta["metadata"]) == shape(outcome.delta["state"])
        # The same request again changes nothing but version and times.
        assert update(document, {"state": request}).document.state == document.state


def shape(value: Any) -> Any:
    """The nesting of a value or of its metadata, with True at every leaf."""
    if isinstance(value, dict) and value.keys() != {"timestamp"}:
        return {key: shape(part) for key, part in value.items()}
    return [shape(part) for part in value] if isinstance(value, list) else True

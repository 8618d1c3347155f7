"""Shadow documents as AWS IoT defines them. Pure: documents and requests in, documents and answers out.

Source: AWS IoT developer guide, "Device Shadow service documents", "Device Shadow error messages" and the quotas
"Device Shadow service limits"; live behaviour where the guide is silent. All times are integer epoch seconds.

Where the guide leaves a choice: objects outside `state`, `version` and `clientToken` are ignored; an object that loses
its last key stays `{}`, a section (`desired`, `reported`) that does disappears; 1 equals 1.0 but not true.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from headwater.errors import ShadowError

#: Keys below `desired` or `reported`, one inside the other (developer guide, error messages: "maximum is 6").
MAX_LEVELS: Final = 6
MAX_CLIENT_TOKEN_BYTES: Final = 64

#: A request larger than this many documents is not parsed; AWS limits the document, so white space may be more.
REQUEST_FACTOR: Final = 4

_THING: Final = re.compile(r"[a-zA-Z0-9:_-]{1,128}")
_SHADOW: Final = re.compile(r"[a-zA-Z0-9:_-]{1,64}")
_SECTIONS: Final = ("desired", "reported")

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Document:
    """A shadow: sections and their metadata by `desired` and `reported`; an empty section is absent."""

    version: int
    state: Json = field(default_factory=dict)
    metadata: Json = field(default_factory=dict)

    def shown(self) -> Json:
        """As in `update/documents`: state, metadata and version."""
        return {"state": self.state, "metadata": self.metadata, "version": self.version}

    def delta(self) -> tuple[Json, Json]:
        """What is desired and not reported, and the desired metadata of it; empty where nothing differs."""
        return _difference(
            self.state.get("desired", {}), self.state.get("reported", {}), self.metadata.get("desired", {})
        )


@dataclass(frozen=True, slots=True)
class Update:
    """What an accepted update leads to. delta: None where nothing differs."""

    document: Document
    accepted: Json
    delta: Json | None
    documents: Json


def check_names(thing: str, name: str) -> None:
    """Refuses names that AWS does not allow. name: '' is the classic shadow.

    raises: ShadowError 400
    """
    if not _THING.fullmatch(thing):
        raise ShadowError(400, "Invalid thing name: 1 to 128 of a-z A-Z 0-9 : _ - are allowed")
    if name and not _SHADOW.fullmatch(name):
        raise ShadowError(400, "Invalid shadow name: 1 to 64 of a-z A-Z 0-9 : _ - are allowed")


def update(
    document: Document | None, payload: bytes, *, last_version: int, now_s: int, max_bytes: int
) -> Update:
    """Merges a request `{"state": {"desired": ..., "reported": ...}, "version"?, "clientToken"?}`.

    document:     None where no shadow exists
    last_version: version the shadow had last, also when it is deleted; 0: it never was. It goes on from there
    max_bytes:    most that `state` may be as JSON, without metadata
    raises:       ShadowError 400, 409, 413, 415
    """
    request = _parse(payload, max_bytes)
    token = _token_of(request)
    if "state" not in request:
        raise ShadowError(400, "Missing required node: state")
    patch = request["state"]
    _check_state(patch)
    if "version" in request:
        _check_version(request["version"], document)

    state: Json = {}
    metadata: Json = {}
    for section in _SECTIONS if patch is not None else ():
        before = document.state.get(section, {}) if document else {}
        stamps = document.metadata.get(section, {}) if document else {}
        if section in patch and patch[section] is None:
            continue
        merged, merged_stamps = _merge(before, stamps, patch.get(section, {}), {"timestamp": now_s})
        if merged:
            state[section], metadata[section] = merged, merged_stamps
    if len(orjson.dumps(state)) > max_bytes:
        raise ShadowError(413, "The payload exceeds the maximum size allowed")

    after = Document(last_version + 1, state, metadata)
    common = {"timestamp": now_s} | token
    stamps = (
        {} if patch is None else {name: _stamps(part, {"timestamp": now_s}) for name, part in patch.items()}
    )
    differing, its_metadata = after.delta()
    return Update(
        after,
        {"state": patch, "metadata": stamps, "version": after.version} | common,
        {"state": differing, "metadata": its_metadata, "version": after.version} | common
        if differing
        else None,
        {"previous": document.shown() if document else None, "current": after.shown()} | common,
    )


def get(document: Document | None, payload: bytes, *, shown_name: str, now_s: int, max_bytes: int) -> Json:
    """The answer to a get: the document with its delta.

    payload:    empty, or `{"clientToken": ...}`
    shown_name: how a missing shadow is called in the error
    raises:     ShadowError 400, 404, 413, 415
    """
    token = _token_of(_parse(payload, max_bytes)) if payload else {}
    if document is None:
        raise ShadowError(404, f"No shadow exists with name: {shown_name}")
    state, metadata = dict(document.state), dict(document.metadata)
    differing, its_metadata = document.delta()
    if differing:
        state["delta"], metadata["delta"] = differing, its_metadata
    return {"state": state, "metadata": metadata, "version": document.version, "timestamp": now_s} | token


def delete(document: Document | None, payload: bytes, *, shown_name: str, now_s: int, max_bytes: int) -> Json:
    """The answer to a delete; the caller drops the document and keeps its version. As `get` otherwise."""
    token = _token_of(_parse(payload, max_bytes)) if payload else {}
    if document is None:
        raise ShadowError(404, f"No shadow exists with name: {shown_name}")
    return {"version": document.version, "timestamp": now_s} | token


def rejected(error: ShadowError, payload: bytes, now_s: int, max_bytes: int) -> Json:
    """The answer on `.../rejected`, with the request's clientToken where it has a valid one."""
    try:
        token = _token_of(_parse(payload, max_bytes))
    except ShadowError:
        token = {}
    return {"code": error.code, "message": str(error), "timestamp": now_s} | token


def _parse(payload: bytes, max_bytes: int) -> Json:
    if len(payload) > REQUEST_FACTOR * max_bytes:
        raise ShadowError(413, "The payload exceeds the maximum size allowed")
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError:
        raise ShadowError(415, "Unsupported documented encoding; supported encoding is UTF-8") from None
    try:
        request = orjson.loads(payload)
    except orjson.JSONDecodeError:
        raise ShadowError(400, "Payload contains invalid json") from None
    if not isinstance(request, dict):
        raise ShadowError(400, "Payload contains invalid json")
    return request


def _token_of(request: Json) -> Json:
    if "clientToken" not in request:
        return {}
    token = request["clientToken"]
    if not isinstance(token, str) or len(token.encode()) > MAX_CLIENT_TOKEN_BYTES:
        raise ShadowError(400, "Invalid clientToken")
    return {"clientToken": token}


def _check_state(state: object) -> None:
    if state is None:
        return
    if not isinstance(state, dict):
        raise ShadowError(400, "State node must be an object")
    for name, section in state.items():
        if name not in _SECTIONS:
            raise ShadowError(400, "State contains an invalid node")
        if section is None:
            continue
        if not isinstance(section, dict):
            raise ShadowError(400, f"{name.capitalize()} node must be an object")
        _check_section(section, 0, within_array=False)


def _check_section(value: object, levels: int, within_array: bool) -> None:
    """Depth is bounded here, so that nothing else that walks a document needs a bound of its own."""
    if levels > MAX_LEVELS:
        raise ShadowError(400, f"JSON contains too many levels of nesting; maximum is {MAX_LEVELS}")
    if isinstance(value, dict):
        for part in value.values():
            _check_section(part, levels + 1, within_array)
    elif isinstance(value, list):
        for part in value:
            # An array by itself is no level, an array in an array is.
            _check_section(part, levels + isinstance(part, list), within_array=True)
    elif value is None and within_array:
        raise ShadowError(400, "State contains an invalid node: arrays may not contain null")


def _check_version(version: object, document: Document | None) -> None:
    if isinstance(version, bool) or not isinstance(version, int) or version < 0:
        raise ShadowError(400, "Invalid version")
    if document is None or version != document.version:
        raise ShadowError(409, "Version conflict")


def _merge(state: Json, stamps: Json, patch: Json, stamp: Json) -> tuple[Json, Json]:
    """The section with `patch` merged in, and its metadata. Its arguments stay as they are."""
    state, stamps = dict(state), dict(stamps)
    for key, value in patch.items():
        if value is None:
            state.pop(key, None)
            stamps.pop(key, None)
        elif isinstance(value, dict):
            before = state.get(key)
            below, its_stamps = (before, stamps[key]) if isinstance(before, dict) else ({}, {})
            state[key], stamps[key] = _merge(below, its_stamps, value, stamp)
        else:
            state[key], stamps[key] = value, _stamps(value, stamp)
    return state, stamps


def _stamps(value: object, stamp: Json) -> Any:
    """The shape of `value` with the stamp at every leaf."""
    if isinstance(value, dict):
        return {key: _stamps(part, stamp) for key, part in value.items()}
    if isinstance(value, list):
        return [_stamps(part, stamp) for part in value]
    return stamp


def _difference(desired: Json, reported: Mapping[str, Any], stamps: Json) -> tuple[Json, Json]:
    state: Json = {}
    metadata: Json = {}
    for key, wanted in desired.items():
        found = reported.get(key)
        if isinstance(wanted, dict) and isinstance(found, dict):
            inner, its_metadata = _difference(wanted, found, stamps[key])
            if inner:
                state[key], metadata[key] = inner, its_metadata
        elif not _same(wanted, found):
            state[key], metadata[key] = wanted, stamps[key]
    return state, metadata


def _same(one: object, other: object) -> bool:
    """Equal as JSON values: numbers by value, but true is not 1. No value is equal to an absent one (None)."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(part, other[key]) for key, part in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other

"""Streams, queries, alarms and routes as objects that change while Headwater runs: one by one, or as files."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Header, Query, Response

from headwater.alerts.times import iso
from headwater.api.parts import Parts
from headwater.errors import NotFoundError, RecordError
from headwater.live import API, Live, Planned, as_json
from headwater.registry import KINDS, Key, Kind, Object

_TAG: Final = re.compile(r'(?:W/)?"?(\d{1,15})"?')

Who = Annotated[
    str, Query(min_length=1, max_length=128, description="Name of who does this, for the history.")
]
IfMatch = Annotated[str | None, Header(description="The version that is changed; with another one: 412.")]
IfNoneMatch = Annotated[str | None, Header(description="`*`: only where there is no such object, else 412.")]
Sections = Annotated[
    dict[str, Any], Body(description="Sections of a file: `streams`, `queries`, `alarms`, `routes`.")
]


def router(parts: Parts) -> APIRouter:
    """Routes about what is declared."""
    routes = APIRouter(tags=["objects"])

    @routes.get("/api/v1/objects", summary="Streams, queries, alarms and routes")
    def objects(response: Response, kind: Kind | None = None) -> list[dict[str, Any]]:
        """Each with version, owner, definition, and who changed it last; deleted ones whose table is there too."""
        revision, found = _live(parts).objects(kind)
        response.headers["ETag"] = f'"{revision}"'
        return [_object(key, each) for key, each in found.items()]

    @routes.get("/api/v1/objects/changes", summary="Who changed what, newest first")
    def changes(
        kind: Kind | None = None,
        name: str | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
        before: Annotated[int | None, Query(description="Revisions older than that.")] = None,
    ) -> list[dict[str, Any]]:
        """At most `registry.max_changes` are kept."""
        rows = _live(parts).changes(kind, name, limit, before)
        return [{**row, "at": iso(row["at"])} for row in rows]

    @routes.get("/api/v1/objects/{kind}/{name}", summary="One object")
    def one(kind: str, name: str, response: Response) -> dict[str, Any]:
        """The header ETag is its version."""
        each = _live(parts).object(_kind(kind), name)
        response.headers["ETag"] = f'"{each.version}"'
        return _object((_kind(kind), name), each)

    @routes.put("/api/v1/objects/{kind}/{name}", summary="Make an object, or change it")
    def put(
        kind: str,
        name: str,
        definition: Annotated[dict[str, Any], Body()],
        if_match: IfMatch = None,
        if_none_match: IfNoneMatch = None,
        who: Who = API,
    ) -> dict[str, Any]:
        """The body is the section as in a file. In effect with the answer; 409 for what the file declares."""
        version = 0 if if_none_match is not None else _version(if_match)
        return _planned(_live(parts).put(_kind(kind), name, definition, version, who))

    @routes.delete("/api/v1/objects/{kind}/{name}", summary="Delete an object")
    def delete(kind: str, name: str, if_match: IfMatch = None, who: Who = API) -> dict[str, Any]:
        """A stream's or query's table stays, readable, until it is purged; an alarm's open instances are resolved."""
        return _planned(_live(parts).delete(_kind(kind), name, _version(if_match), who))

    @routes.post("/api/v1/objects/{kind}/{name}/pause", summary="Stop an object, and keep what it has")
    def pause(kind: str, name: str, if_match: IfMatch = None, who: Who = API) -> dict[str, Any]:
        """As a change of its setting `paused`."""
        return _planned(_live(parts).pause(_kind(kind), name, True, _version(if_match), who))

    @routes.post("/api/v1/objects/{kind}/{name}/resume", summary="Let an object go on")
    def resume(kind: str, name: str, if_match: IfMatch = None, who: Who = API) -> dict[str, Any]:
        """As a change of its setting `paused`."""
        return _planned(_live(parts).pause(_kind(kind), name, False, _version(if_match), who))

    @routes.post(
        "/api/v1/objects/{kind}/{name}/purge", summary="Remove the table of a deleted stream or query"
    )
    def purge(kind: str, name: str, who: Who = API) -> dict[str, Any]:
        """For good; then the name is free for another one with other columns."""
        return _planned(_live(parts).purge(_kind(kind), name, who))

    @routes.post("/api/v1/plan", summary="What applying a file would do")
    def plan(sections: Sections, response: Response) -> dict[str, Any]:
        """What it does not name is deleted, except what the configuration file declares."""
        planned = _live(parts).plan(sections)
        response.headers["ETag"] = f'"{planned.revision}"'
        return _planned(planned)

    @routes.post("/api/v1/apply", summary="Apply a file, all or nothing")
    def apply(sections: Sections, if_match: IfMatch = None, who: Who = API) -> dict[str, Any]:
        """`If-Match` is the revision of the plan that was looked at: 412 when something has changed since."""
        return _planned(_live(parts).apply(sections, _version(if_match), who))

    @routes.get("/api/v1/export", summary="Everything that is declared, as sections of a file")
    def export() -> dict[str, Any]:
        """A plan of it has no changes."""
        return _live(parts).export()

    return routes


def _live(parts: Parts) -> Live:
    if parts.live is None:
        raise NotFoundError("objects: pipeline.enabled is false, so nothing can change while Headwater runs")
    return parts.live


def _kind(text: str) -> Kind:
    for kind in KINDS:
        if text == kind:
            return kind
    raise NotFoundError(f"objects of kind {text!r}: there are {', '.join(KINDS)}")


def _version(tag: str | None) -> int | None:
    if tag is None or tag.strip() == "*":
        return None
    found = _TAG.fullmatch(tag.strip())
    if found is None:
        raise RecordError(f'If-Match: {tag}: write the version as ETag gives it, such as "3"')
    return int(found[1])


def _object(key: Key, each: Object) -> dict[str, Any]:
    return {
        "kind": key[0],
        "name": key[1],
        "version": each.version,
        "owner": each.owner,
        "state": "deleted" if each.deleted else "paused" if each.definition.get("paused") else "running",
        "definition": each.definition,
        "changed_at": iso(each.at_us),
        "changed_by": each.who,
    }


def _planned(planned: Planned) -> dict[str, Any]:
    return {
        "revision": planned.revision,
        "changes": [as_json(change) for change in planned.changes],
        "in_effect": planned.in_effect,
    }

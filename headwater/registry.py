"""The registry: streams, queries, alarms and routes as they are declared now, their versions, and who changed what.

Two owners: what the configuration file names is the file's, is applied at each start, and changes only there; all else
came through the API. What is declared is the sum of both. One transaction is one revision.

Definitions are sections as a TOML file has them (`Section.written`), so equal ones are equal as values.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

import sqlalchemy as sa

from headwater.config import RegistrySettings, Settings
from headwater.database import OBJECT_CHANGES, OBJECTS
from headwater.errors import ConfigError, ConflictError
from headwater.notify_settings import named

Kind = Literal["streams", "queries", "alarms", "routes"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
Owner = Literal["file", "api"]
Action = Literal["create", "change", "replace", "pause", "resume", "delete", "purge"]

#: Kind and name.
Key = tuple[Kind, str]
Definition = Mapping[str, Any]

#: Those that leave a table behind.
WITH_TABLE: Final = ("streams", "queries")


@dataclass(frozen=True, slots=True)
class Object:
    """One object as it is now. at_us: of its last change, microseconds UTC

    deleted:   it left a table behind, which is readable until it is purged
    latest_by: of a query's table
    """

    version: int
    owner: Owner
    deleted: bool
    definition: Definition
    latest_by: tuple[str, ...]
    at_us: int
    who: str


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one object. effect: what happens to its state, a sentence

    from_version: None where there was none
    """

    key: Key
    action: Action
    definition: Definition | None
    from_version: int | None
    to_version: int
    owner: Owner
    effect: str = ""


def objects(connection: sa.Connection) -> dict[Key, Object]:
    """All objects, deleted ones with a table too."""
    rows = connection.execute(sa.select(OBJECTS).order_by(OBJECTS.c.name)).all()
    found: dict[Key, Object] = {
        (row.kind, row.name): Object(
            row.version,
            row.owner,
            row.deleted,
            json.loads(row.definition),
            tuple(json.loads(row.latest_by or "[]")),
            row.changed_at,
            row.changed_by,
        )
        for row in rows
    }
    return dict(sorted(found.items(), key=lambda each: KINDS.index(each[0][0])))


def revision(connection: sa.Connection) -> int:
    """Number of the last change; 0 before the first."""
    return connection.scalar(sa.select(sa.func.max(OBJECT_CHANGES.c.revision))) or 0


def declared(settings: Settings) -> dict[Key, Definition]:
    """What settings declare."""
    found: dict[Key, Definition] = {}
    for kind, sections in (
        ("streams", settings.streams),
        ("queries", settings.queries),
        ("alarms", settings.alarms),
        ("routes", named(settings.routes)),
    ):
        for name, section in sections.items():
            written = section.written()
            written.pop("name", None)
            found[kind, name] = written  # type: ignore[index]
    return found


def settings_with(file: Settings, found: Mapping[Key, Object]) -> Settings:
    """The file's settings and what came through the API. raises: ConfigError"""
    own: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    for (kind, name), each in found.items():
        if each.owner == "api" and not each.deleted:
            own[kind][name] = each.definition
    routes = [{**definition, "name": name} for name, definition in own["routes"].items()]
    made = file.with_objects(
        {**own["streams"], **file.streams},
        {**own["queries"], **file.queries},
        {**own["alarms"], **file.alarms},
        [*named(file.routes).values(), *routes],
    )
    budget = file.memory_budget
    if budget is not None and made.memory_bound > budget:
        raise ConfigError(
            f"{len(made.queries)} queries take engine.state_bytes = {made.engine.state_bytes} each, and all buffers "
            f"{made.memory_bound} bytes, more than memory_budget = {budget}; set either, and start again"
        )
    return made


def difference(
    connection: sa.Connection,
    now: Mapping[Key, Object],
    wanted: Mapping[Key, Definition],
    owner: Owner,
    source: str,
) -> list[Change]:
    """What leads from `now` to exactly `wanted`, as far as `owner` owns it.

    source: the configuration file, for messages
    raises: ConflictError: an object of the file is to be another one
    """
    changes: list[Change] = []
    for key, definition in wanted.items():
        was = now.get(key)
        if was is not None and not was.deleted:
            if was.owner == "file" and owner == "api":
                if was.definition != definition:
                    raise owned(key, source)
                continue
            if was.definition == definition and was.owner == owner:
                continue
        changes.append(_change(connection, key, was, definition, owner))
    for key, was in now.items():
        if not was.deleted and was.owner == owner and key not in wanted:
            changes.append(deletion(key, was))
    return sorted(changes, key=lambda change: (KINDS.index(change.key[0]), change.key[1]))


def deletion(key: Key, was: Object) -> Change:
    """It is no more; of a stream or query its table stays."""
    return Change(key, "delete", was.definition, was.version, was.version + 1, was.owner)


def purge(key: Key, was: Object) -> Change:
    """Nothing is left of a deleted stream or query."""
    return Change(key, "purge", was.definition, was.version, was.version + 1, was.owner)


def owned(key: Key, source: str) -> ConflictError:
    """The refusal to change what the file declares."""
    return ConflictError(
        f"{key[0]}.{key[1]} is declared in {source}: change it there and start again, or take it out there to manage "
        "it by the API"
    )


def _change(
    connection: sa.Connection, key: Key, was: Object | None, definition: Definition, owner: Owner
) -> Change:
    if was is None:
        mine = (OBJECT_CHANGES.c.kind == key[0], OBJECT_CHANGES.c.name == key[1])
        last = connection.scalar(sa.select(sa.func.max(OBJECT_CHANGES.c.to_version)).where(*mine)) or 0
        return Change(key, "create", definition, None, last + 1, owner)
    version = was.version + 1
    if was.deleted:
        return Change(key, "create", definition, None, version, owner)
    action: Action = "change"
    if {**was.definition, "paused": None} == {**definition, "paused": None}:
        paused = [bool(each.get("paused")) for each in (was.definition, definition)]
        if paused[0] != paused[1]:
            action = "pause" if paused[1] else "resume"
    return Change(key, action, definition, was.version, version, owner)


def after(
    now: Mapping[Key, Object],
    changes: Iterable[Change],
    who: str,
    at_us: int,
    latest_by: Mapping[str, tuple[str, ...]],
) -> dict[Key, Object]:
    """The objects when the changes are made. latest_by: of the tables of queries, by name"""
    found = dict(now)
    for change in changes:
        if change.action == "purge" or (change.action == "delete" and change.key[0] not in WITH_TABLE):
            del found[change.key]
            continue
        assert change.definition is not None
        kind, name = change.key
        keys = latest_by.get(name, now[change.key].latest_by if change.key in now else ())
        deleted = change.action == "delete"
        found[change.key] = Object(
            change.to_version,
            change.owner,
            deleted,
            change.definition,
            keys if kind == "queries" else (),
            at_us,
            who,
        )
    return found


def check_bounds(found: Mapping[Key, Object], settings: RegistrySettings) -> None:
    """raises: ConflictError: there would be too many objects, or a definition is too long"""
    for kind in KINDS:
        count, most = sum(key[0] == kind for key in found), getattr(settings, f"max_{kind}")
        if count > most:
            raise ConflictError(
                f"{count} {kind} are more than registry.max_{kind} = {most}; delete some, purge those that are "
                "deleted, or raise it and start again"
            )
    for (kind, name), each in found.items():
        length = len(json.dumps(each.definition).encode())
        if length > settings.max_definition_bytes:
            raise ConflictError(
                f"{kind}.{name}: the definition has {length} bytes, more than registry.max_definition_bytes = "
                f"{settings.max_definition_bytes}"
            )


def write(
    connection: sa.Connection,
    changes: Sequence[Change],
    found: Mapping[Key, Object],
    who: str,
    now_us: int,
    keep: int,
) -> int:
    """Writes the changes, in the caller's transaction, as one revision, whose number is given.

    found: the objects `after` them; keep: changes that stay in the history
    """
    number = revision(connection) + 1
    for change in changes:
        kind, name = change.key
        connection.execute(sa.delete(OBJECTS).where(OBJECTS.c.kind == kind, OBJECTS.c.name == name))
        each = found.get(change.key)
        if each is not None:
            connection.execute(
                sa.insert(OBJECTS).values(
                    kind=kind,
                    name=name,
                    version=each.version,
                    owner=each.owner,
                    deleted=each.deleted,
                    definition=json.dumps(each.definition),
                    latest_by=json.dumps(each.latest_by),
                    changed_at=now_us,
                    changed_by=who,
                )
            )
        connection.execute(
            sa.insert(OBJECT_CHANGES).values(
                revision=number,
                kind=kind,
                name=name,
                at=now_us,
                who=who,
                action=change.action,
                from_version=change.from_version,
                to_version=change.to_version,
                definition=json.dumps(change.definition),
                effect=change.effect,
            )
        )
    first = sa.select(OBJECT_CHANGES.c.revision).order_by(OBJECT_CHANGES.c.revision.desc())
    oldest = connection.scalar(first.offset(keep - 1).limit(1))
    if oldest is not None:
        connection.execute(sa.delete(OBJECT_CHANGES).where(OBJECT_CHANGES.c.revision < oldest))
    return number


def changes(
    connection: sa.Connection, kind: str | None, name: str | None, limit: int, before: int | None
) -> list[dict[str, Any]]:
    """The history, newest first: rows of `OBJECT_CHANGES`. before: revisions older than that"""
    query = sa.select(OBJECT_CHANGES).order_by(
        OBJECT_CHANGES.c.revision.desc(), OBJECT_CHANGES.c.kind, OBJECT_CHANGES.c.name
    )
    for column, value in ((OBJECT_CHANGES.c.kind, kind), (OBJECT_CHANGES.c.name, name)):
        query = query if value is None else query.where(column == value)
    if before is not None:
        query = query.where(OBJECT_CHANGES.c.revision < before)
    rows = connection.execute(query.limit(limit)).mappings().all()
    return [{**row, "definition": json.loads(row["definition"])} for row in rows]


def with_effects(changes: Sequence[Change], effects: Mapping[Key, tuple[Action | None, str]]) -> list[Change]:
    """The changes with what happens to the state of each, and `replace` where it is another object's."""
    return [
        replace(change, action=effects[change.key][0] or change.action, effect=effects[change.key][1])
        for change in changes
    ]

"""Changes of streams, queries, alarms and routes while Headwater runs: planned, checked whole, written, then in effect.

A change is checked as a start would check it, against everything that is declared then. Its commit in the registry is
the moment from which it counts; the running parts follow at once (`settle`). A process that is killed in between comes
back with what was committed, by the same way that any start goes, so both end alike.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog
from pydantic import ValidationError

from headwater import registry, schemas
from headwater.alarm_settings import AlarmSettings
from headwater.alerts.conditions import compile_alarm
from headwater.alerts.routing import Router
from headwater.config import Settings, explain
from headwater.database import Database
from headwater.declarations import QuerySection, Section, StreamSettings
from headwater.declared import check, own
from headwater.effects import Running, with_effects
from headwater.errors import ConfigError, ConflictError, NotFoundError, OutdatedError
from headwater.log.embedded import EmbeddedLog
from headwater.notify_settings import RouteSettings, named
from headwater.records import Schema
from headwater.registry import KINDS, Change, Definition, Key, Kind, Object

#: Who asks where nobody says.
API: Final = "api"
#: `order` of a route that is made by itself: behind those of files, which have their place.
_LAST: Final = 1000

_SECTIONS: Final[Mapping[Kind, type[Section]]] = {
    "streams": StreamSettings,
    "queries": QuerySection,
    "alarms": AlarmSettings,
    "routes": RouteSettings,
}

_logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Planned:
    """Changes that are good to be made as long as the registry has this revision; once made, its revision after them.

    in_effect: false where they are committed and a part could not follow yet
    """

    revision: int
    changes: list[Change]
    objects: dict[Key, Object]
    settings: Settings
    in_effect: bool = True


class Live:
    """All changes of one running pipeline, one at a time. Its methods may be called from any thread.

    file:    settings without what came through the API
    running: what runs now
    settle:  brings the running parts to these settings; whatever it raises, it is called again and goes on
    drop:    removes the table of a deleted stream or query, for good
    clock:   microseconds UTC
    """

    def __init__(
        self,
        database: Database,
        log: EmbeddedLog,
        file: Settings,
        running: Callable[[], Running],
        settle: Callable[[Settings], None],
        drop: Callable[[Kind, str], None],
        clock: Callable[[], int],
    ) -> None:
        self._database, self._log, self._file = database, log, file
        self._running, self._settle, self._drop, self._clock = running, settle, drop, clock
        self._lock = threading.Lock()
        self._unsettled: Settings | None = None

    def step(self) -> bool:
        """Goes on with a change that is committed and could not be brought into effect. raises: as `settle`"""
        with self._lock:
            if self._unsettled is not None:
                self._settle(self._unsettled)
                self._unsettled = None
        return False

    def close(self) -> None:
        """Nothing is held open."""

    # ---- what there is

    def objects(self, kind: Kind | None = None) -> tuple[int, dict[Key, Object]]:
        """The registry's revision, and its objects."""
        with self._database.read() as connection:
            found = registry.objects(connection)
            revision = registry.revision(connection)
        return revision, {key: each for key, each in found.items() if kind in (None, key[0])}

    def object(self, kind: Kind, name: str) -> Object:
        """raises: NotFoundError"""
        found = self.objects(kind)[1].get((kind, name))
        if found is None:
            raise NotFoundError(f"{kind}.{name}: there is no such object")
        return found

    def changes(
        self, kind: str | None, name: str | None, limit: int, before: int | None
    ) -> list[dict[str, Any]]:
        """Who changed what, newest first."""
        with self._database.read() as connection:
            return registry.changes(connection, kind, name, limit, before)

    # ---- files

    def plan(self, values: Mapping[str, Any]) -> Planned:
        """What would lead to exactly these streams, queries, alarms and routes; those of the configuration file stay.

        values: sections as in a file
        raises: ConfigError, ConflictError
        """
        return self._plan(lambda _: parsed(values))

    def apply(self, values: Mapping[str, Any], revision: int | None, who: str = API) -> Planned:
        """Does what `plan` says, all or nothing.

        revision: of the plan that was looked at; None: whatever it is now
        raises:   OutdatedError when something has changed since; ConfigError, ConflictError
        """

        def checked(planned: Planned) -> None:
            if revision not in (None, planned.revision):
                raise OutdatedError(
                    f"applying a plan of revision {revision}: the registry has revision {planned.revision} by now; "
                    "plan again"
                )

        return self._make(lambda _: parsed(values), who, checked)

    def export(self) -> dict[str, Any]:
        """Everything that is declared, as sections of a file: a plan of it is empty."""
        found = self.objects()[1]
        sections: dict[str, Any] = {kind: {} for kind in KINDS}
        for (kind, name), each in found.items():
            if not each.deleted:
                sections[kind][name] = each.definition
        routes = [{"name": name, **definition} for name, definition in sections["routes"].items()]
        sections["routes"] = sorted(routes, key=lambda route: route["order"])
        return {kind: section for kind, section in sections.items() if section}

    # ---- one object

    def put(self, kind: Kind, name: str, values: Definition, version: int | None, who: str = API) -> Planned:
        """Makes the object, or changes it to this.

        version: that it must have, 0 for none; None: any
        raises:  OutdatedError, ConfigError, ConflictError
        """
        definition = section_of(kind, name, values)

        def wanted(now: Mapping[Key, Object]) -> Mapping[Key, Definition]:
            self._expect((kind, name), now, version)
            if kind == "routes" and "order" not in definition:
                before = now.get((kind, name))
                definition["order"] = before.definition["order"] if before is not None else _LAST
            return {**own(now), (kind, name): definition}

        return self._make(wanted, who)

    def pause(self, kind: Kind, name: str, paused: bool, version: int | None, who: str = API) -> Planned:
        """Stops it, or lets it go on. raises: NotFoundError, OutdatedError, ConflictError"""
        each = self._alive(kind, name)
        if version not in (None, each.version):
            raise OutdatedError(
                f"changing version {version} of {kind}.{name}: it has version {each.version} by now"
            )
        definition = {key: value for key, value in each.definition.items() if key != "paused"}
        changed = {**definition, "paused": True} if paused else definition
        return self.put(kind, name, changed, each.version, who)

    def delete(self, kind: Kind, name: str, version: int | None, who: str = API) -> Planned:
        """Ends it; of a stream or query the table stays, readable, until `purge`.

        raises: NotFoundError, OutdatedError, ConflictError: others read it; ConfigError
        """
        if self._alive(kind, name).owner == "file":
            raise registry.owned((kind, name), self._file.source)

        def wanted(now: Mapping[Key, Object]) -> Mapping[Key, Definition]:
            self._expect((kind, name), now, version)
            return {key: each for key, each in own(now).items() if key != (kind, name)}

        return self._make(wanted, who)

    def purge(self, kind: Kind, name: str, who: str = API) -> Planned:
        """Removes the table of a deleted stream or query, for good. raises: NotFoundError, ConflictError"""
        with self._lock:
            each = self.object(kind, name)
            if not each.deleted:
                raise ConflictError(f"purging {kind}.{name}: it is not deleted; delete it first")
            # Rows first: what is deleted twice is no harm, what is forgotten and still there would be.
            self._drop(kind, name)
            revision, now = self.objects()
            change = registry.purge((kind, name), now[kind, name])
            change = registry.with_effects([change], {change.key: (None, "its table is removed for good")})[0]
            found = registry.after(now, [change], who, self._clock(), {})
            return self._write(Planned(revision, [change], found, self._running().settings), who)

    # ---- how

    def _make(
        self,
        wanted: Callable[[Mapping[Key, Object]], Mapping[Key, Definition]],
        who: str,
        checked: Callable[[Planned], None] = lambda _: None,
    ) -> Planned:
        with self._lock:
            planned = self._plan(wanted, who)
            checked(planned)
            if not planned.changes:
                return planned
            planned = self._write(planned, who)
            self._unsettled = planned.settings
            try:
                self._settle(planned.settings)
            except Exception:
                # It counts from its commit on: the thread of this service goes on with it and tells while it fails.
                _logger.exception("a change is committed and not in effect yet", revision=planned.revision)
                return replace(planned, in_effect=False)
            self._unsettled = None
            return planned

    def _write(self, planned: Planned, who: str) -> Planned:
        with self._database.begin() as connection:
            if registry.revision(connection) != planned.revision:
                raise OutdatedError("the registry was changed by another process meanwhile; try again")
            keep = self._file.registry.max_changes
            revision = registry.write(connection, planned.changes, planned.objects, who, self._clock(), keep)
        for change in planned.changes:
            _logger.info(
                "registry", who=who, action=change.action, object=".".join(change.key), effect=change.effect
            )
        return replace(planned, revision=revision)

    def _plan(
        self, wanted: Callable[[Mapping[Key, Object]], Mapping[Key, Definition]], who: str = API
    ) -> Planned:
        with self._database.read() as connection:
            revision, now = registry.revision(connection), registry.objects(connection)
            changes = registry.difference(connection, now, wanted(now), "api", self._file.source)
        found = registry.after(now, changes, who, self._clock(), {})
        check(found, self._file)
        settings = registry.settings_with(self._file, found)
        tables, plans = schemas.preview(self._database, self._log, settings)
        self._check_dedupe(settings)
        keys = self._check_alarms(settings, tables, {change.key for change in changes})
        Router(list(named(settings.routes).values()))
        new = Running(settings, tables, plans)
        with self._database.read() as connection:
            changes = with_effects(connection, changes, now, self._running(), new, keys)
        latest_by = {name: plan.latest_by for name, plan in plans.items()}
        return Planned(
            revision, changes, registry.after(now, changes, who, self._clock(), latest_by), settings
        )

    def _alive(self, kind: Kind, name: str) -> Object:
        found = self.object(kind, name)
        if found.deleted:
            raise NotFoundError(f"{kind}.{name}: it is deleted; only its table is there")
        return found

    def _expect(self, key: Key, now: Mapping[Key, Object], version: int | None) -> None:
        there = now.get(key)
        found = 0 if there is None or there.deleted else there.version
        if version not in (None, found):
            raise OutdatedError(
                f"changing version {version} of {key[0]}.{key[1]}: "
                + (f"it has version {found} by now" if found else "there is none")
            )

    def _check_dedupe(self, settings: Settings) -> None:
        """What was seen is remembered from the first row on: with rows on their way nobody could tell."""
        for name, stream in self._running().settings.streams.items():
            new = settings.streams.get(name, stream)
            terms = [(each.dedupe, each.dedupe_window, each.dedupe_max_keys) for each in (stream, new)]
            if not stream.paused and (stream.dedupe or new.dedupe) and terms[0] != terms[1]:
                raise ConflictError(f"streams.{name}: pause it before dedupe changes, then resume it")

    def _check_alarms(
        self, settings: Settings, tables: Mapping[str, Schema], changed: set[Key]
    ) -> dict[str, tuple[str, ...]]:
        """Key columns of alarms that change, or whose stream or query does. raises: ConfigError"""
        return {
            name: compile_alarm(name, alarm, tables).key
            for name, alarm in settings.alarms.items()
            if not changed.isdisjoint([("alarms", name), ("streams", alarm.on), ("queries", alarm.on)])
        }


def parsed(values: Mapping[str, Any]) -> dict[Key, Definition]:
    """Objects of a file's sections. raises: ConfigError"""
    for section in values:
        if section not in KINDS:
            raise ConfigError(
                f"{section}: the file has streams, queries, alarms and routes; all else is set at the start"
            )
    found: dict[Key, Definition] = {}
    for kind in KINDS[:3]:
        sections = values.get(kind, {})
        if not isinstance(sections, dict):
            raise ConfigError(f"{kind}: write [{kind}.NAME] for each")
        for name, section in sections.items():
            found[kind, name] = section_of(kind, name, section)
    routes = values.get("routes", [])
    if not isinstance(routes, list):
        raise ConfigError("routes: write [[routes]] for each")
    try:
        # Not by the names of the configuration file's, which are others.
        models = named([_route(str(at), each) for at, each in enumerate(routes)], "route")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    for name, route in models.items():
        found["routes", name] = {key: value for key, value in route.written().items() if key != "name"}
    return found


def section_of(kind: Kind, name: str, values: object) -> dict[str, Any]:
    """A definition as the registry keeps it. raises: ConfigError"""
    written = _section(kind, name, values).written()
    if kind == "routes" and written.pop("name", name) != name:
        raise ConfigError(f"routes.{name}: name is another one")
    return written


def _route(at: str, values: object) -> RouteSettings:
    section = _section("routes", at, values)
    assert isinstance(section, RouteSettings)
    return section


def _section(kind: Kind, name: str, values: object) -> Section:
    try:
        return _SECTIONS[kind].model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, within=(kind, name))) from None


def as_json(change: Change) -> dict[str, Any]:
    """A change for the API."""
    kind, name = change.key
    return {
        "kind": kind,
        "name": name,
        "action": change.action,
        "from_version": change.from_version,
        "to_version": change.to_version,
        "effect": change.effect,
        "definition": json.loads(json.dumps(change.definition)),
    }

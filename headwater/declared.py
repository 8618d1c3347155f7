"""What is declared at a start: by the configuration file, which is applied, and by the API before."""

from __future__ import annotations

from collections.abc import Mapping

from headwater import registry, schemas
from headwater.config import Settings
from headwater.database import Database
from headwater.errors import ConfigError, ConflictError
from headwater.records import NAME
from headwater.registry import Definition, Key, Kind, Object


def started(database: Database, file: Settings, now_us: int) -> Settings:
    """Records what the configuration file declares, as an apply of what is the file's; gives all that is declared.

    raises: ConfigError, ConflictError: then the registry is as it was
    """
    with database.begin() as connection:
        now = registry.objects(connection)
        changes = registry.difference(connection, now, registry.declared(file), "file", file.source)
        found = registry.after(now, changes, file.source, now_us, {})
        check(found, file)
        try:
            settings = registry.settings_with(file, found)
            plans = schemas.planned(settings)[1]
        except ConfigError as error:
            if not own(found):
                raise
            raise ConfigError(
                f"together with what the API has declared: {error}; put back into {file.source} what that needs, "
                "start, and delete it by the API first"
            ) from error
        latest_by = {name: plan.latest_by for name, plan in plans.items()}
        found = registry.after(now, changes, file.source, now_us, latest_by)
        if changes:
            registry.write(connection, changes, found, file.source, now_us, file.registry.max_changes)
    return settings


def check(found: Mapping[Key, Object], settings: Settings) -> None:
    """Bounds and names. raises: ConfigError, ConflictError"""
    registry.check_bounds(found, settings.registry)
    for kind, name in found:
        if not NAME.fullmatch(name):
            raise ConfigError(f"{kind}.{name}: a name is lower-case letters, digits and _, at most 63")
        other: Kind = "queries" if kind == "streams" else "streams"
        there = found.get((other, name))
        if (
            kind in registry.WITH_TABLE
            and not found[kind, name].deleted
            and there is not None
            and there.deleted
        ):
            raise ConflictError(
                f"{kind}.{name}: the table {name!r} belongs to {other}.{name}, which is deleted; purge it, or choose "
                "another name"
            )


def own(now: Mapping[Key, Object]) -> dict[Key, Definition]:
    """What came through the API."""
    return {key: each.definition for key, each in now.items() if each.owner == "api" and not each.deleted}

"""What a change does to state, said before it is made: windows that stay or begin anew, open instances, tables."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from headwater import registry
from headwater.alerts.conditions import compile_alarm
from headwater.config import Settings
from headwater.database import ALARM_STATES
from headwater.records import Schema
from headwater.registry import Action, Change, Key
from headwater.streams.plan import Plan


@dataclass(frozen=True, slots=True)
class Running:
    """What runs: settings with everything that is declared, schemas of all tables, plans of all queries."""

    settings: Settings
    tables: Mapping[str, Schema]
    plans: Mapping[str, Plan]

    def signature(self, query: str) -> str:
        """Names the meaning of a query's state."""
        plan = self.plans[query]
        return plan.signature(self.tables[plan.source])


def with_effects(
    connection: sa.Connection,
    changes: list[Change],
    known: Collection[Key],
    old: Running,
    new: Running,
    keys: Mapping[str, tuple[str, ...]],
) -> list[Change]:
    """The changes with their effects, and `replace` where what there is does not fit.

    known: objects that there are, deleted ones too
    keys:  key columns of the alarms that change, as they will be
    """
    anew = {name for name in old.plans if name in new.plans and old.signature(name) != new.signature(name)}
    changed = {change.key for change in changes}
    also = sorted(name for name in anew if ("queries", name) not in changed)
    effects: dict[Key, tuple[Action | None, str]] = {}
    for change in changes:
        kind, name = change.key
        if kind == "streams":
            readers = [each for each in also if new.plans[each].source == name]
            effects[change.key] = (None, _of_stream(change, change.key in known, readers))
        elif kind == "queries":
            replaced = name in anew and change.action == "change"
            effect = _of_query(change, replaced, change.key in known)
            effects[change.key] = ("replace" if replaced else None, effect)
        elif kind == "alarms":
            effects[change.key] = _of_alarm(connection, change, old, keys.get(name))
        else:
            effects[change.key] = (None, "holds for alarms that fire or rise from now on")
    return registry.with_effects(changes, effects)


def _of_stream(change: Change, known: bool, readers: Iterable[str]) -> str:
    if change.action == "create":
        return "its table goes on with the rows it has" if known else "its table begins empty"
    if change.action == "delete":
        return "takes no more messages; its table stays, readable, until it is purged"
    if change.action == "pause":
        return "takes no messages meanwhile: they are delivered, not stored"
    if change.action == "resume":
        return "takes messages again"
    anew = "".join(f"; queries.{each} begins its windows anew" for each in readers)
    return f"rows are kept; messages go by the new declaration{anew}"


def _of_query(change: Change, replaced: bool, known: bool) -> str:
    if change.action == "create":
        return "its table goes on" if known else "begins with the oldest row of the log"
    if change.action == "delete":
        return "open windows are dropped; its table stays, readable, until it is purged"
    if change.action == "pause":
        return "windows are kept; rows of the meantime are read afterwards, as far as the log still has them"
    if change.action == "resume":
        return "windows are kept; goes on where it stood, as far as the log still has the rows"
    if replaced:
        return "windows do not fit: begins anew at its current offset, open windows are not finished"
    return "windows are kept"


def _of_alarm(
    connection: sa.Connection, change: Change, old: Running, key: tuple[str, ...] | None
) -> tuple[Action | None, str]:
    name = change.key[1]
    mine = (ALARM_STATES.c.alarm == name, ALARM_STATES.c.state.in_(("firing", "flapping")))
    number = connection.scalar(sa.select(sa.func.count()).where(*mine)) or 0
    count = f"{number} open instance{'s' if number != 1 else ''}"
    if change.action == "create":
        return None, "begins with the next row"
    if change.action == "delete":
        return None, f"{count} resolved"
    if change.action == "pause":
        return None, f"{count} kept as they are; rows of the meantime are not judged"
    if change.action == "resume":
        return None, f"{count} kept; begins with the next row"
    was = compile_alarm(name, old.settings.alarms[name], old.tables).key
    if key is not None and sorted(was) != sorted(key):
        return "replace", f"{count} of the key {', '.join(was)} resolved; begins with the next row"
    return None, f"{count} kept; judged by the new definition from the next row on"

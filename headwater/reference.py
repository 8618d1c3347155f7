"""Texts made from the settings' own descriptions: the commented configuration and the reference page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from headwater import alarm_settings, notify_settings
from headwater.alarm_settings import AlarmSettings
from headwater.config import Settings
from headwater.declarations import (
    FieldSettings,
    QuerySection,
    StreamSettings,
    TimeSettings,
    format_duration,
    is_duration,
)
from headwater.listeners import ListenerSettings
from headwater.notify_settings import NotifySettings
from headwater.security import PolicySettings

EXAMPLE = """\
# Readings arrive as JSON on topics such as dt/paris/d1/telemetry; {site} and {device} become columns.
[streams.telemetry]
topic    = "dt/{site}/{device}/telemetry"
time     = "ts"                            # payload field with the event time; s, ms, us or ISO 8601
fields   = { temperature = "double", humidity = "double", battery = "double" }
lateness = "10s"                           # windows wait so long for late readings

# Every five minutes one row per device, as a stream and as a table.
[queries.temp_5m]
sql = \"\"\"SELECT device, window_start, window_end, AVG(temperature) AS avg_temperature, COUNT(*) AS n
         FROM TABLE(TUMBLE(TABLE telemetry, DESCRIPTOR(ts), INTERVAL '5' MINUTES))
         GROUP BY device, window_start, window_end\"\"\"

# Raised after 10 s above 80, resolved below 75.
[alarms.overheat]
on       = "telemetry"
where    = "temperature > 80"
clear    = "temperature < 75"
for      = "10s"
severity = "critical"
# notify = ["ops"]

# [notify.ops]
# url = "json://localhost:9000/hook"       # any Apprise URL, http(s)://..., or mqtt:alarms/{alarm}/{device}
"""


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """Name and model of every plain section of the configuration."""
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield name, field.annotation


def sections_within() -> Iterator[tuple[str, type[BaseModel]]]:
    """Name and model of every section within a plain one that may be absent: `auth.password`."""
    for section, model in sections():
        for name, field in model.model_fields.items():
            inner = _optional_section(field)
            if inner is not None:
                yield f"{section}.{name}", inner


def _optional_section(field: FieldInfo) -> type[BaseModel] | None:
    parts = getattr(field.annotation, "__args__", ())
    for part in parts:
        if type(None) in parts and isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def commented_config() -> str:
    """A configuration that works as it is: an example, then every setting commented out with its default."""
    lines = ["# Headwater configuration. Every setting below is shown with its default.", "", EXAMPLE]
    for name, model in sections():
        lines.append(f"[{name}]")
        for key, field in model.model_fields.items():
            if _optional_section(field) is not None:
                continue
            # Commented twice where there is no value to write.
            absent = "# " if default(field) == "none" else ""
            lines.append(f"# {absent}{key} = {default(field)}  # {field.description}")
        lines.append("")
    return "\n".join(lines)


def settings_page() -> str:
    """`docs/settings.md`."""
    lines = [
        "# Settings",
        "",
        "Made by `headwater config reference` from the settings' own descriptions. A setting is given in the",
        "TOML file, by an environment variable (`log.durability` is `HEADWATER_LOG__DURABILITY`) or by",
        "`--set log.durability=async`; the later wins. Durations are written `250ms`, `10s`, `5m`, `1h` or `7d`.",
        "",
    ]
    top = [
        (name, field)
        for name, field in Settings.model_fields.items()
        if name in ("data_dir", "admin_token", "database_url")
    ]
    lines += ["## Top level", "", *_table(top), ""]
    for name, model in sections():
        lines += [
            f"## `[{name}]`",
            "",
            (model.__doc__ or "").strip(),
            "",
            *_table(
                (key, field) for key, field in model.model_fields.items() if not _optional_section(field)
            ),
            "",
        ]
    named: list[tuple[str, type[BaseModel]]] = [
        ("[[mqtt.listeners]]", ListenerSettings),
        ("[streams.NAME]", StreamSettings),
        ("fields.FIELD", FieldSettings),
        ("time", TimeSettings),
        ("[queries.NAME]", QuerySection),
        ("[alarms.NAME]", AlarmSettings),
        *alarm_settings.sections(),
        ("[notify.NAME]", NotifySettings),
        *notify_settings.sections(),
        ("[policies.NAME]", PolicySettings),
        *((f"[{name}]", model) for name, model in sections_within()),
    ]
    for title, model in named:
        lines += [
            f"## `{title}`",
            "",
            (model.__doc__ or "").strip(),
            "",
            *_table(model.model_fields.items()),
            "",
        ]
    return "\n".join(lines)


def _table(fields: Any) -> list[str]:
    rows = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for name, field in fields:
        rows.append(f"| `{field.alias or name}` | {_cell(field)} | {field.description or ''} |")
    return rows


def _cell(field: FieldInfo) -> str:
    return "required" if field.is_required() else f"`{default(field)}`"


def default(field: FieldInfo) -> str:
    """A field's default as TOML: durations with their unit, sizes as plain numbers."""
    value = field.get_default(call_default_factory=True, validated_data={})
    if is_duration(field) and isinstance(value, int):
        return f'"{format_duration(value)}"'
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if not isinstance(value, (int, float, list)) else str(value)

"""Typed settings: one section per stage, read once at the edge.

Sources, the later wins: defaults, the TOML file, environment `HEADWATER_SECTION__KEY`, `--set section.key=value`.
Unknown keys are refused with the nearest known one.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, Field, PrivateAttr, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from headwater import budget, exposure
from headwater.alarm_settings import AlarmSettings
from headwater.declarations import (
    DurationUs,
    QuerySection,
    Section,
    StreamSettings,
)
from headwater.errors import ConfigError
from headwater.listeners import (
    SECTIONS,
    ListenerSection,
    ListenerSettings,
    MqttsSettings,
    WsSettings,
    WssSettings,
    listeners,
)
from headwater.mqtt_settings import MqttSettings
from headwater.notify_settings import NotifySettings, RouteSettings, named
from headwater.records import NAME, OWN_TABLES
from headwater.security import POLICY_NAME, AuthSettings, PolicySettings

#: Memory of the program itself, its libraries and the buffers of its threads.
_PROGRAM_BYTES: Final = 320 << 20


class HttpSettings(ListenerSection):
    """The HTTP listener: API, health and metrics."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="TCP port; 0 picks a free one.")
    insecure: bool = Field(False, description="Allows a non-loopback listener without TLS.")
    max_body_bytes: int = Field(16 << 20, gt=0, description="Largest request body.")


class LogSettings(Section):
    """The durable log."""

    kind: Literal["embedded"] = Field("embedded", description="Implementation of the log.")
    durability: Literal["sync", "async"] = Field(
        "sync", description="`sync`: acknowledge after fdatasync. `async`: before; a power cut may lose data."
    )
    partitions: int = Field(
        4, ge=1, le=256, description="Partitions; fixed when the data directory is created."
    )
    commit_bytes: int = Field(1 << 20, ge=4096, le=16 << 20, description="A commit closes at this size.")
    commit_interval_ms: float = Field(0.3, ge=0, le=1000, description="Least time between two commits.")
    segment_bytes: int = Field(64 << 20, ge=1 << 20, description="Size of a segment file.")
    queue_bytes: int = Field(
        64 << 20, ge=1 << 20, description="Bytes waiting for a commit; then back-pressure."
    )
    retention_bytes: int = Field(256 << 20, ge=0, description="Kept behind the slowest reader, bytes.")
    disk_max_bytes: int = Field(
        64 << 30,
        ge=1 << 26,
        description="Most the log takes while readers lag; then nothing is acknowledged.",
    )
    max_keys: int = Field(16_000_000, ge=1, description="Distinct keys per partition; more are dead letters.")


class SessionsSettings(Section):
    """MQTT sessions that outlive the process."""

    kind: Literal["embedded"] = Field("embedded", description="Implementation of their store.")


class PipelineSettings(Section):
    """What runs behind the log."""

    enabled: bool = Field(True, description="false: gateway, log, health and metrics alone.")


class StoreSettings(Section):
    """The table store."""

    kind: Literal["embedded"] = Field("embedded", description="Implementation of the store.")
    flush_rows: int = Field(
        4_000_000, ge=1, description="Rows of one stream in memory before they become a file."
    )
    flush_bytes: int = Field(512 << 20, ge=1 << 20, description="The same in bytes, over all streams.")
    flush_interval: DurationUs = Field(60_000_000, description="Longest time before rows become a file.")


class QuerySettings(Section):
    """Limits of one SQL query over the API."""

    timeout: DurationUs = Field(30_000_000, description="A query is cancelled after this.")
    max_rows: int = Field(1_000_000, ge=1, description="A result with more rows is refused.")
    memory_bytes: int = Field(1 << 30, ge=1 << 26, description="Memory of one query.")
    concurrent: int = Field(4, ge=1, description="Queries at a time; others wait.")


class EngineSettings(Section):
    """The stream engine that runs `[queries.*]`."""

    kind: Literal["embedded"] = Field("embedded", description="Implementation of the engine.")
    idle_timeout: DurationUs = Field(
        5_000_000, description="A partition without rows for so long does not hold windows open."
    )
    checkpoint_interval: DurationUs = Field(10_000_000, description="Time between two checkpoints of state.")
    state_bytes: int = Field(
        1 << 30,
        ge=1 << 20,
        description="Memory of one query's windows; what changes while a checkpoint is written is held twice.",
    )
    amend_windows: int = Field(12, ge=0, description="Closed windows kept so that late rows can amend them.")
    max_keys: int = Field(10_000_000, ge=1, description="Distinct group keys of one query.")


class ShadowSettings(Section):
    """Device shadows."""

    max_document_bytes: int = Field(8 << 10, gt=0, description="Largest state document; AWS has 8 KB.")


class RegistrySettings(Section):
    """Streams, queries, alarms and routes that change while Headwater runs; bounds count those of the file, too."""

    max_streams: int = Field(
        4_096, ge=0, le=60_000, description="Streams, deleted ones with a table included."
    )
    max_queries: int = Field(1_024, ge=0, description="Queries, deleted ones with a table included.")
    max_alarms: int = Field(10_000, ge=0, le=30_000, description="Alarms.")
    max_routes: int = Field(1_000, ge=0, description="Routes of notifications.")
    max_definition_bytes: int = Field(64 << 10, gt=0, description="Length of one definition as JSON.")
    max_changes: int = Field(
        100_000, gt=0, description="Changes kept in the history; older ones are dropped."
    )


class SystemSettings(Section):
    """What concerns Headwater itself."""

    notify: list[str] = Field(
        default_factory=list,
        description="Names of `[notify.*]` targets that are told of Headwater's own alarms.",
    )


class Settings(BaseSettings):
    """The whole configuration."""

    model_config = SettingsConfigDict(
        env_prefix="HEADWATER_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    data_dir: Path = Field(Path("headwater-data"), description="Directory that holds everything durable.")
    admin_token: SecretStr | None = Field(None, description="API token; set it by HEADWATER_ADMIN_TOKEN.")
    database_url: str | None = Field(None, description="SQLAlchemy URL; default a SQLite file in data_dir.")
    memory_budget: int | None = Field(
        None,
        gt=0,
        description="Bytes that all buffers and the program take together; buffers not set by themselves shrink to "
        "fit. Connections, devices and distinct keys come on top.",
    )
    mqtt: MqttSettings = MqttSettings()
    mqtts: MqttsSettings = MqttsSettings()
    ws: WsSettings = WsSettings()
    wss: WssSettings = WssSettings()
    http: HttpSettings = HttpSettings()
    auth: AuthSettings = AuthSettings()
    log: LogSettings = LogSettings()
    sessions: SessionsSettings = SessionsSettings()
    pipeline: PipelineSettings = PipelineSettings()
    store: StoreSettings = StoreSettings()
    query: QuerySettings = QuerySettings()
    engine: EngineSettings = EngineSettings()
    shadow: ShadowSettings = ShadowSettings()
    system: SystemSettings = SystemSettings()
    registry: RegistrySettings = RegistrySettings()
    streams: dict[str, StreamSettings] = Field(default_factory=dict)
    queries: dict[str, QuerySection] = Field(default_factory=dict)
    alarms: dict[str, AlarmSettings] = Field(default_factory=dict)
    notify: dict[str, NotifySettings] = Field(default_factory=dict)
    routes: list[RouteSettings] = Field(default_factory=list)
    policies: dict[str, PolicySettings] = Field(default_factory=dict)
    _source: str = PrivateAttr("the configuration")

    @property
    def source(self) -> str:
        """Where the settings come from, for messages: the file's path."""
        return self._source

    def __eq__(self, other: object) -> bool:
        """Where they come from makes no difference."""
        return isinstance(other, Settings) and dict(self) == dict(other)

    def __hash__(self) -> int:
        return hash(self.data_dir)

    def with_objects(
        self,
        streams: Mapping[str, Any],
        queries: Mapping[str, Any],
        alarms: Mapping[str, Any],
        routes: Sequence[Any],
    ) -> Self:
        """These settings with other streams, queries, alarms and routes: sections, or values as in a file.

        raises: ConfigError with one line per mistake
        """
        sections = {"streams": streams, "queries": queries, "alarms": alarms, "routes": routes}
        try:
            made = type(self)(**dict(self) | sections)
        except ValidationError as error:
            raise ConfigError(explain(error)) from None
        made._source = self._source
        return made

    @property
    def listeners(self) -> list[ListenerSettings]:
        """Listeners of devices beside `mqtt.port`."""
        return listeners(self.mqtts, self.ws, self.wss, self.mqtt.listeners)

    def buffers(self) -> list[budget.Buffer]:
        """Every buffer of a settable size, with how many there are of it."""
        sections = {
            "log.queue_bytes": 1,
            # Rows that wait, and while they become a file their sorted copy.
            "store.flush_bytes": 2,
            "mqtt.max_inflight_bytes": 1,
            "mqtt.max_retained_bytes": 1,
            "mqtt.max_total_queued_bytes": 1,
            "auth.max_waiting_bytes": int(self.auth.configured),
            "query.memory_bytes": self.query.concurrent,
            # What changes while a checkpoint is written is held as it was, too.
            "engine.state_bytes": 2 * len(self.queries),
        }
        found = []
        for name, count in sections.items():
            section, _, key = name.partition(".")
            values = getattr(self, section)
            floor = next(
                (each.ge for each in type(values).model_fields[key].metadata if hasattr(each, "ge")), 1
            )
            found.append(
                budget.Buffer(name, getattr(values, key), count, floor, key in values.model_fields_set)
            )
        return found

    @property
    def memory_bound(self) -> int:
        """Bytes that the program and its buffers may take together; connections, devices and keys come on top."""
        return _PROGRAM_BYTES + sum(each.bytes * each.count for each in self.buffers())

    def within_budget(self) -> Self:
        """These settings with buffers that fit `memory_budget`, where one is set.

        raises: ConfigError when those that were set by themselves do not fit
        """
        if self.memory_budget is None:
            return self
        fitted = budget.fit(self.memory_budget, _PROGRAM_BYTES, self.buffers())
        sections: dict[str, dict[str, int]] = {}
        for name, size in fitted.items():
            section, _, key = name.partition(".")
            sections.setdefault(section, {})[key] = size
        return self.model_copy(
            update={name: getattr(self, name).model_copy(update=keys) for name, keys in sections.items()}
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Everything is merged by `load` and arrives as init settings, so that the order is in one place."""
        return (init_settings,)

    @model_validator(mode="after")
    def _names(self) -> Self:
        tables = [*self.streams, *self.queries]
        for name in [*tables, *self.alarms, *self.notify]:
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r}: a name is lower-case letters, digits and _, at most 63")
        for name in tables:
            if tables.count(name) > 1:
                raise ValueError(f"{name!r} is both a stream and a query; a table has one owner")
            if name in OWN_TABLES:
                raise ValueError(f"{name!r} is a table of the product; choose another name")
        for name in named(self.routes):
            if not NAME.fullmatch(name):
                raise ValueError(f"routes: {name!r}: a name is lower-case letters, digits and _, at most 63")
        for name, alarm in self.alarms.items():
            if alarm.on not in tables:
                raise ValueError(
                    f"alarms.{name}.on: {alarm.on!r} is no stream or query{_nearest(alarm.on, tables)}"
                )
        told = {f"alarms.{name}": alarm.notify for name, alarm in self.alarms.items()}
        told = {
            f"{section}.notify": targets
            for section, targets in {**told, "system": self.system.notify}.items()
        }
        for at, route in enumerate(self.routes):
            told |= {f"routes[{at}].steps[{n}].to": step.to for n, step in enumerate(route.steps)}
        for setting, targets in told.items():
            for target in targets:
                if target not in self.notify:
                    raise ValueError(
                        f"{setting}: {target!r} is no [notify.*] target{_nearest(target, list(self.notify))}"
                    )
        return self

    @model_validator(mode="after")
    def _listener_names(self) -> Self:
        names = [each.name for each in self.listeners]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"mqtt.listeners: two listeners have the name {name!r}")
        return self

    @model_validator(mode="after")
    def _policies(self) -> Self:
        for name in self.policies:
            if not POLICY_NAME.fullmatch(name):
                raise ValueError(f"policies.{name}: a name is letters, digits, _ and -, at most 128")
        for name in self.auth.policies:
            if name not in self.policies:
                raise ValueError(
                    f"auth.policies: {name!r} is no [policies.*] section{_nearest(name, list(self.policies))}"
                )
        if self.policies and not self.auth.configured:
            raise ValueError(
                f"policies.{min(self.policies)}: nobody has it, since without a source of identities everybody is "
                "anonymous and may do everything; add [auth.password], [auth.jwt], [auth.certificates] or "
                "[auth.webhook]"
            )
        return self

    @model_validator(mode="after")
    def _secure_by_default(self) -> Self:
        mqtt = self.mqtt
        exposure.check("mqtt", mqtt.host, mqtt.insecure, tls=False, known=self.auth.configured)
        for each in self.listeners:
            section = each.name if each.name in SECTIONS else f"mqtt.listeners.{each.name}"
            known = self.auth.configured or each.clients == "required"
            exposure.check(section, each.host, each.insecure, each.has_tls, known)
        exposure.check_http(self.http.host, self.http.insecure, token=self.admin_token is not None)
        return self


def load(
    path: Path | None = None, overrides: Sequence[str] = (), environ: dict[str, str] | None = None
) -> Settings:
    """The settings of a TOML file, the environment and `section.key=value` overrides.

    path:   None: defaults only
    raises: ConfigError with one line per mistake: key, value found, remedy
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(
                f"reading configuration {path}: no such file; `headwater init` writes one"
            ) from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"reading configuration {path}: {error}") from error
    for name, value in (os.environ if environ is None else environ).items():
        if name == "HEADWATER_ADMIN_TOKEN":
            values["admin_token"] = value
        elif name.startswith("HEADWATER_") and ("__" in name or name == "HEADWATER_DATA_DIR"):
            _put(values, name.removeprefix("HEADWATER_").lower().split("__"), _scalar(value), name)
    values = overridden(values, overrides)
    try:
        settings = Settings(**values).within_budget()
    except ValidationError as error:
        raise ConfigError(explain(error, f"{path if path else 'configuration'}: ")) from None
    if path is not None:
        settings._source = str(path)
    return settings


def overridden(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The values with others in their place, written `section.key=value`. raises: ConfigError"""
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override!r}: write section.key=value")
        _put(values, key.strip().split("."), _scalar(value.strip()), f"--set {key}")
    return values


def _put(values: dict[str, Any], path: list[str], value: object, source: str) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{source}: {part!r} is a value, not a section")
    values[path[-1]] = value


def _scalar(text: str) -> object:
    """A TOML value where the text is one (numbers, booleans, lists), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _nearest(wrong: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(wrong, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are {sorted(known)}" if known else ""


def explain(error: ValidationError, source: str = "", within: tuple[int | str, ...] = ()) -> str:
    """One line per mistake: key, value found, remedy. within: the section that was validated"""
    lines = []
    for problem in error.errors():
        place = within + problem["loc"]
        path = ".".join(str(part) for part in place) or ("configuration" if source else "")
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = _known_keys(place[:-1])
            message = f"unknown key{_nearest(str(place[-1]), known)}"
        elif problem["type"] == "missing":
            message = "is required"
        elif problem["loc"] and not isinstance(problem["input"], (dict, SecretStr)):
            message = f"{message} (found {problem['input']!r})"
        lines.append(f"{source}{path}: {message}" if path else message)
    return "\n".join(lines)


def _known_keys(path: tuple[int | str, ...]) -> list[str]:
    model: Any = Settings
    for part in path:
        field = (
            model.model_fields.get(str(part))
            if isinstance(model, type) and issubclass(model, BaseModel)
            else None
        )
        annotation = field.annotation if field is not None else model
        inner = [a for a in _flatten(annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not inner:
            return []
        model = inner[0]
    fields: dict[str, Any] = model.model_fields
    return [field.alias or name for name, field in fields.items()]


def _flatten(annotation: Any) -> list[Any]:
    arguments = getattr(annotation, "__args__", None)
    return [annotation] if not arguments else [part for a in arguments for part in _flatten(a)]

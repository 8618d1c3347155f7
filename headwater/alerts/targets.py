"""The kinds of notification targets: a topic of our own broker, a webhook, and whatever Apprise knows.

A target delivers notifications in order and says how many it delivered; it neither retries nor keeps anything. A URL
may hold a secret: no URL, and no text of a library that might quote one, leaves this file.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, Protocol

import orjson
import pyarrow as pa

from headwater.alerts.templates import Template, json_escape
from headwater.errors import ConfigError, HeadwaterError
from headwater.log.base import Log
from headwater.notify_settings import NotifySettings
from headwater.records import DOWNLINK_SCHEMA

TIMEOUT_S: Final = 10.0

#: Answers by which a receiver says that this body will never do; another try would get the same (RFC 9110, 15.5).
_NEVER: Final = frozenset({400, 413, 415, 422})

_MAX_RETRY_AFTER_S: Final = 86_400.0
_MAX_VALUE_LENGTH: Final = 128
_PLACEHOLDER: Final = re.compile(r"\{([a-z][a-z0-9_]*)\}")
#: What would end a topic level, act as a wildcard, or is not allowed in a topic (MQTT 5, 1.5.4 and 4.7).
_UNSAFE: Final = re.compile(r"[/+#\x00-\x1f\x7f-\x9f\ud800-\udfff]")

# They write URLs into their logs below this level; so does Apprise, which is silenced where it is used.
logging.getLogger("httpx").setLevel(logging.WARNING)
logging.getLogger("httpcore").setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class Notification:
    """One message to one target. id: its idempotency key; alarm: as the API shows it."""

    id: str
    alarm: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of a run of notifications: the first `delivered` arrived, and the next met `error`.

    refused:       the receiver will never take the one that failed
    retry_after_s: when the receiver wants to be asked again, None where it did not say
    """

    delivered: int
    error: str | None = None
    refused: bool = False
    retry_after_s: float | None = None


class Target(Protocol):
    """Where notifications go. `deliver` is called on a thread of its own and may take some seconds."""

    #: Most notifications in one call of `deliver`.
    run: int

    def deliver(self, notifications: Sequence[Notification]) -> Delivery: ...


def target_of(name: str, settings: NotifySettings, log: Log | None, clock: Callable[[], int]) -> Target:
    """The target `[notify.<name>]`.

    settings: the URL is `mqtt:topic/{alarm}/{device}` (our own broker), `http(s)://` (webhook), or an Apprise URL
    log:      None only checks
    raises:   ConfigError; it does not quote the URL
    """
    url = settings.url.get_secret_value()
    if url.startswith("mqtt:") and not url.startswith("mqtt://"):
        _refuse(name, settings, "MQTT", ("secret", "title", "text"))
        return MqttTarget(name, url.removeprefix("mqtt:"), Body(name, settings), log, clock)
    if url.startswith(("http://", "https://")):
        _refuse(name, settings, "a webhook", ("title", "text"))
        secret = None if settings.secret is None else settings.secret.get_secret_value()
        return WebhookTarget(name, url, Body(name, settings), secret, clock)
    _refuse(name, settings, "Apprise", ("secret", "body"))
    return AppriseTarget(name, url, settings.title, settings.text)


def _refuse(name: str, settings: NotifySettings, kind: str, keys: Sequence[str]) -> None:
    for key in keys:
        if getattr(settings, key) is not None:
            raise ConfigError(
                f"notify.{name}.{key}: {kind} has no use for it (the URL says what the target is); leave it out"
            )


class Body:
    """The body of a message: the alarm as JSON, or what the template makes of it."""

    def __init__(self, name: str, settings: NotifySettings) -> None:
        self.content_type = settings.content_type
        self._template = None if settings.body is None else Template(f"notify.{name}.body", settings.body)
        self._escape = json_escape if "json" in settings.content_type else str

    def of(self, one: Notification) -> bytes:
        if self._template is None:
            return orjson.dumps(one.alarm | {"notification": one.id})
        return self._template.render(_values(one), self._escape).encode("utf-8", "replace")


class MqttTarget:
    """A topic of our own broker: a record on the downlink stream. Payload: the alarm as JSON.

    `{alarm}`, `{state}`, `{severity}` and key columns are replaced; in a value, what could add a level or a wildcard
    becomes `_`, as does a value that is missing or empty, and it is cut at 128 characters.
    """

    run = 1000

    def __init__(self, name: str, topic: str, body: Body, log: Log | None, clock: Callable[[], int]) -> None:
        plain = _PLACEHOLDER.sub("x", topic)
        if not plain or plain.startswith("$") or re.search(r"[+#{}\x00]", plain) or len(topic) > 1024:
            raise ConfigError(
                f"notify.{name}.url: after mqtt: stands a topic such as alarms/{{alarm}}/{{device}}, "
                f"without wildcards and not beginning with $"
            )
        self._topic, self._body, self._log, self._clock = topic, body, log, clock

    def topic(self, alarm: dict[str, Any]) -> str:
        """The topic of one alarm's message."""
        values = alarm["key"] | {name: alarm[name] for name in ("alarm", "state", "severity")}
        topic = _PLACEHOLDER.sub(lambda found: _level(values.get(found[1])), self._topic)
        return f"_{topic[1:]}" if topic.startswith("$") else topic

    def deliver(self, notifications: Sequence[Notification]) -> Delivery:
        assert self._log is not None  # only a checked URL has none
        columns = {
            "ts": pa.array([self._clock()] * len(notifications), pa.int64()).cast(
                pa.timestamp("us", tz="UTC")
            ),
            "topic": [self.topic(one.alarm) for one in notifications],
            "payload": [self._body.of(one) for one in notifications],
            "qos": [1] * len(notifications),
            "retain": [False] * len(notifications),
        }
        try:
            self._log.append(
                [(DOWNLINK_SCHEMA, pa.RecordBatch.from_pydict(columns, schema=DOWNLINK_SCHEMA.arrow))]
            )
        except HeadwaterError as error:
            return Delivery(0, f"appending to the downlink: {type(error).__name__}")
        return Delivery(len(notifications))


class WebhookTarget:
    """A POST of the alarm as JSON, with the idempotency key in the header `Idempotency-Key`. 2xx is success.

    secret: signs each try: see `signature`
    """

    run = 20

    def __init__(self, name: str, url: str, body: Body, secret: str | None, clock: Callable[[], int]) -> None:
        import httpx  # only who notifies waits for it

        self._body, self._secret, self._clock = body, secret, clock
        try:
            self._url = httpx.URL(url)
        except (httpx.InvalidURL, ValueError):
            self._url = httpx.URL("")
        if not self._url.host:
            raise ConfigError(f"notify.{name}.url: no valid http URL (not shown: it may hold a secret)")

    def deliver(self, notifications: Sequence[Notification]) -> Delivery:
        import httpx

        with httpx.Client(timeout=TIMEOUT_S) as client:
            for number, one in enumerate(notifications):
                body = self._body.of(one)
                headers = {"content-type": self._body.content_type, "idempotency-key": one.id}
                if self._secret is not None:
                    headers["headwater-signature"] = signature(self._secret, self._clock() // 1_000_000, body)
                try:
                    answer = client.post(self._url, content=body, headers=headers)
                except Exception as error:  # whatever the transport meets; its text may quote the URL
                    return Delivery(number, f"POST failed: {type(error).__name__}")
                if not answer.is_success:
                    return Delivery(
                        number,
                        f"POST was answered with {answer.status_code}",
                        refused=answer.status_code in _NEVER,
                        retry_after_s=_retry_after(answer.headers.get("retry-after")),
                    )
        return Delivery(len(notifications))


def signature(secret: str, at_s: int, body: bytes) -> str:
    """The header `Headwater-Signature`: a time, and the HMAC-SHA256 (RFC 2104) of that time, a point, and the body.

    A receiver computes it anew, compares in constant time, and refuses what is older than some minutes.

    >>> signature("key", 1700000000, b"{}")
    't=1700000000,v1=9d713ed406bb7076d4123f0dc2c39d2df5c654ed4b0cd56b52c8b4c940bd63ae'
    """
    signed = hmac.new(secret.encode(), f"{at_s}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at_s},v1={signed}"


class AppriseTarget:
    """Mail, chat and the like by Apprise: title and text from templates, or a text that ends with the key."""

    run = 20

    def __init__(self, name: str, url: str, title: str | None, text: str | None) -> None:
        self._title = None if title is None else Template(f"notify.{name}.title", title)
        self._text = None if text is None else Template(f"notify.{name}.text", text)
        import apprise  # and with it a hundred plugins: only where one is used

        logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
        self._kinds = apprise.NotifyType
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about libraries of plugins that nobody asked for
                self._plugin = apprise.Apprise.instantiate(url, suppress_exceptions=True)
        except Exception:  # a plugin that cannot read its URL; its text may quote it
            self._plugin = None
        if self._plugin is None:
            scheme = url.partition(":")[0]
            known = scheme if re.fullmatch(r"[a-z][a-z0-9+.-]{0,30}", scheme) and "://" in url else "no"
            raise ConfigError(
                f"notify.{name}.url: Apprise cannot use this {known}:// URL (the rest is not shown: it may hold a "
                f"secret); write an Apprise URL, http(s)://... or mqtt:topic/{{alarm}}"
            )

    def deliver(self, notifications: Sequence[Notification]) -> Delivery:
        for number, one in enumerate(notifications):
            kind = self._kinds.SUCCESS if one.alarm["state"] == "resolved" else self._kinds.WARNING
            try:
                title = _title(one.alarm) if self._title is None else self._title.render(_values(one))
                text = _text(one) if self._text is None else self._text.render(_values(one))
                arrived = self._plugin.notify(title=title, body=text, notify_type=kind)
            except Exception as error:  # plugins raise what their libraries raise
                return Delivery(number, f"Apprise failed: {type(error).__name__}")
            if not arrived:
                return Delivery(number, "Apprise could not deliver")
        return Delivery(len(notifications))


def _level(value: object) -> str:
    text = _UNSAFE.sub("_", "" if value is None else str(value))[:_MAX_VALUE_LENGTH]
    return text or "_"


def _values(one: Notification) -> dict[str, Any]:
    """What templates name."""
    return {"count": 1, **one.alarm, "notification": one.id, "title": _title(one.alarm)}


def _title(alarm: dict[str, Any]) -> str:
    if alarm["state"] == "digest":
        return f"{alarm['severity']}: {alarm['count']} notifications"
    key = ", ".join(f"{name} {value}" for name, value in alarm["key"].items())
    return f"{alarm['severity']}: {alarm['alarm']} {alarm['state']}{' for ' + key if key else ''}"


def _text(notification: Notification) -> str:
    alarm = notification.alarm
    if alarm["state"] == "digest":
        return "\n".join([*map(_title, alarm["alarms"]), "", f"notification: {notification.id}"])
    times = [
        f"{name.replace('_', ' ')}: {alarm[name]}"
        for name in ("since", "fired_at", "resolved_at")
        if alarm[name]
    ]
    reading = [f"{name} = {value}" for name, value in (alarm["reading"] or {}).items() if value is not None]
    return "\n".join([*times, "", *reading, "", f"notification: {notification.id}"])


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3), at most a day; None where it is absent or unreadable."""
    if value is None:
        return None
    try:
        wait_s = float(value) if value.strip().isdigit() else None
        if wait_s is None:
            at = parsedate_to_datetime(value)
            wait_s = (at - datetime.now(at.tzinfo or UTC)).total_seconds() if at.tzinfo else None
    except (ValueError, TypeError, OverflowError):
        return None
    return None if wait_s is None else min(max(wait_s, 0.0), _MAX_RETRY_AFTER_S)

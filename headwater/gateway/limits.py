"""Rates that a listener holds its clients to: what is set, else defaults, and on loopback none."""

from __future__ import annotations

from typing import Final

from headwater.mqtt_settings import MqttSettings
from headwater.security import is_loopback

#: Of listeners beyond loopback where nothing is set, as the settings' descriptions say.
_DEFAULTS: Final = {
    "connect_rate": 1000,
    "message_rate": 10_000,
    "byte_rate": 16 << 20,
    "flapping_connects": 60,
    "max_takeovers": 10,
}


def limits(settings: MqttSettings, host: str, connect_rate: int | None) -> dict[str, int]:
    """Limits of the listener at `host`, 0 where there is none.

    connect_rate: its `max_connect_rate`
    """
    given = {
        "connect_rate": connect_rate,
        "message_rate": settings.max_message_rate,
        "byte_rate": settings.max_byte_rate,
        "flapping_connects": settings.flapping_connects,
        "max_takeovers": settings.max_takeovers,
    }
    absent = dict.fromkeys(_DEFAULTS, 0) if is_loopback(host) else _DEFAULTS
    return {name: absent[name] if value is None else value for name, value in given.items()}

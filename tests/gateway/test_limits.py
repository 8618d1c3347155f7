"""Which limits a listener gets: what is set, else defaults beyond loopback, else none."""

from __future__ import annotations

import pytest

from headwater.gateway.limits import limits
from headwater.mqtt_settings import MqttSettings

OFF = {"connect_rate": 0, "message_rate": 0, "byte_rate": 0, "flapping_connects": 0, "max_takeovers": 0}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_on_loopback_there_are_none_unless_they_are_set(host: str) -> None:
    assert limits(MqttSettings(), host, None) == OFF
    given = MqttSettings(max_message_rate=5, flapping_connects=7)
    assert limits(given, host, 3) == {
        **OFF,
        "connect_rate": 3,
        "message_rate": 5,
        "flapping_connects": 7,
    }


def test_beyond_loopback_the_descriptions_tell_the_defaults() -> None:
    found = limits(MqttSettings(), "0.0.0.0", None)
    fields = MqttSettings.model_fields
    for setting, value in {
        "max_connect_rate": found["connect_rate"],
        "max_message_rate": found["message_rate"],
        "max_byte_rate": found["byte_rate"],
        "flapping_connects": found["flapping_connects"],
        "max_takeovers": found["max_takeovers"],
    }.items():
        assert f"absent: {value}, on loopback" in str(fields[setting].description)


def test_zero_is_no_bound_anywhere() -> None:
    none = MqttSettings(max_message_rate=0, max_byte_rate=0, flapping_connects=0, max_takeovers=0)
    assert limits(none, "0.0.0.0", 0) == OFF

"""Headwater: device data over MQTT, durable before it is acknowledged, queried, windowed and alarmed."""

__version__ = "0.1.0"

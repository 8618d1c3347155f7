"""MQTT listener and decoders: from a device to the log."""

"""Devices: their shadows."""

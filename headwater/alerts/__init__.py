"""Alarms: conditions with memory, and who is told."""

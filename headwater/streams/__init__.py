"""Continuous queries: windows over streams."""

"""The HTTP API; each route calls one function of a service."""

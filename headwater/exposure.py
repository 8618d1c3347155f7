"""Secure by default: what a listener must have before others than this machine may reach it."""

from __future__ import annotations

from headwater.security import is_loopback


def check(section: str, host: str, insecure: bool, tls: bool, known: bool) -> None:
    """A listener of devices.

    section:  its name in the configuration
    insecure: somebody has written that it is meant so
    known:    its clients are, by certificates that it requires or by a source of identities
    raises:   ValueError: what it lacks
    """
    if is_loopback(host) or insecure or (tls and known):
        return
    missing = " and ".join(
        ["TLS"] * (not tls) + ["authentication (client certificates, or a source in [auth])"] * (not known)
    )
    raise ValueError(
        f"{section}.host = {host!r} is reachable from outside without {missing}; add what is missing, use "
        f"127.0.0.1, or write {section}.insecure = true to accept it"
    )


def check_http(host: str, insecure: bool, token: bool) -> None:
    """The listener of the API. token: requests must show the administrator's. raises: ValueError"""
    if is_loopback(host) or insecure or token:
        return
    raise ValueError(
        f"http.host = {host!r} is reachable from outside without TLS and authentication; use 127.0.0.1, or write "
        "http.insecure = true to accept it"
    )

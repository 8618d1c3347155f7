"""One HTTP request whose whole answer has a time-out and a bound."""

from __future__ import annotations

import time
from typing import Any

import httpx


def read_bounded(
    client: httpx.Client, method: str, url: str, timeout_s: float, max_bytes: int, **request: Any
) -> tuple[int, bytes]:
    """Status and body of an answer.

    raises: httpx.HTTPError; ValueError: the body is larger than `max_bytes`
    """
    end = time.monotonic() + timeout_s
    content = bytearray()
    with client.stream(method, url, timeout=timeout_s, **request) as response:
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > max_bytes:
                raise ValueError(f"an answer of more than {max_bytes} bytes")
            # The client's own time-out is for each chunk: a server that drips must not hold us.
            if time.monotonic() > end:
                raise httpx.ReadTimeout(f"no whole answer within {timeout_s:g} s")
        return response.status_code, bytes(content)

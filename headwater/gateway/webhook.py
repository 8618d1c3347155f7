"""An HTTP service that knows who may connect. It is asked once for each login, with a time-out, and fails closed.

Request, `POST`: `{"client_id", "user_name", "password", "peer", "listener", "certificate"}`; absent things are null,
a password that is no UTF-8 comes as `password_base64`, `certificate` is `{"fingerprint", "common_name"}`.
Answer, status 200: `{"allow": true, "user", "tenant", "policies", "attributes", "until"}`, or
`{"allow": false, "reason"}`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import httpx
import orjson

from headwater.gateway.identity import Login, Reason, Refusal, Verdict, identity_of
from headwater.gateway.remote import read_bounded
from headwater.security import WebhookSettings

#: Largest answer, bytes; ours.
_MAX_ANSWER: Final = 64 << 10
#: How long a refusal is kept at most, seconds: a client that was let in meanwhile must not wait long. Ours.
_REFUSED_S: Final = 5.0


class Webhook:
    """The source `webhook`."""

    name = "webhook"

    def __init__(
        self,
        settings: WebhookSettings,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._wall_clock = wall_clock
        self._key = os.urandom(32)
        self._lock = threading.Lock()
        #: Answer and its end by a keyed hash of the login, so that no password stays in memory.
        self._cache: OrderedDict[bytes, tuple[float, Verdict]] = OrderedDict()
        headers = {"User-Agent": "headwater"}
        if settings.token is not None:
            headers["Authorization"] = f"Bearer {settings.token.get_secret_value()}"
        limits = httpx.Limits(max_connections=settings.workers, max_keepalive_connections=settings.workers)
        self._client = httpx.Client(headers=headers, limits=limits, follow_redirects=False)

    def identify(self, login: Login) -> Verdict:
        """What the service says, now or within `cache`."""
        mark = self._mark(login)
        with self._lock:
            found = self._cache.get(mark)
            if found is not None and found[0] > self._clock():
                self._cache.move_to_end(mark)
                return found[1]
        verdict = self._ask(login)
        unavailable = isinstance(verdict, Refusal) and verdict.reason == Reason.SERVER_UNAVAILABLE
        keep_s = self._settings.cache / 1e6
        if keep_s > 0 and not unavailable:
            if isinstance(verdict, Refusal):
                keep_s = min(keep_s, _REFUSED_S)
            elif verdict.until is not None:
                keep_s = min(keep_s, verdict.until - self._wall_clock())
            with self._lock:
                self._cache[mark] = (self._clock() + keep_s, verdict)
                self._cache.move_to_end(mark)
                while len(self._cache) > self._settings.max_cached:
                    self._cache.popitem(last=False)
        return verdict

    def changed(self) -> None:
        """Nobody says so."""

    def close(self) -> None:
        """Closes its connections."""
        self._client.close()

    def _ask(self, login: Login) -> Verdict:
        url, timeout_s = self._settings.url, self._settings.timeout / 1e6
        try:
            headers = {"Content-Type": "application/json"}
            body = orjson.dumps(_question(login))
            status, answer = read_bounded(
                self._client, "POST", url, timeout_s, _MAX_ANSWER, content=body, headers=headers
            )
        except (httpx.HTTPError, ValueError) as error:
            return Refusal(
                Reason.SERVER_UNAVAILABLE, f"asking the webhook {url}: {error or type(error).__name__}"
            )
        if status != 200:
            return Refusal(
                Reason.SERVER_UNAVAILABLE, f"asking the webhook {url}: HTTP status {status}, not 200"
            )
        try:
            return _verdict(login, orjson.loads(answer), self._wall_clock())
        except ValueError as error:
            return Refusal(Reason.SERVER_UNAVAILABLE, f"the answer of the webhook {url}: {error}")

    def _mark(self, login: Login) -> bytes:
        fields = (
            login.client_id,
            login.user_name,
            login.fingerprint,
            login.listener,
            login.peer.rpartition(":")[0],
        )
        message = orjson.dumps(fields) + b"\0" + (login.password or b"") + bytes([login.password is not None])
        return hmac.digest(self._key, message, hashlib.sha256)


def _question(login: Login) -> dict[str, Any]:
    question: dict[str, Any] = {
        "client_id": login.client_id,
        "user_name": login.user_name,
        "password": None,
        "peer": login.peer,
        "listener": login.listener,
        "certificate": None,
    }
    if login.password is not None:
        try:
            question["password"] = login.password.decode()
        except UnicodeDecodeError:
            question["password_base64"] = base64.b64encode(login.password).decode()
    if login.fingerprint is not None:
        question["certificate"] = {"fingerprint": login.fingerprint, "common_name": login.common_name}
    return question


def _verdict(login: Login, answer: object, now: float) -> Verdict:
    """now: seconds since the Unix epoch; raises: ValueError"""
    if not isinstance(answer, dict) or not isinstance(answer.get("allow"), bool):
        raise ValueError('it has no "allow" that is true or false')
    if not answer["allow"]:
        return Refusal(Reason.NOT_AUTHORIZED, f"the webhook refuses: {str(answer.get('reason', ''))[:200]}")
    user = answer.get("user") or login.user_name or login.client_id
    if not isinstance(user, str):
        raise ValueError(f"user is {user!r}, it must be a text")
    found = identity_of(answer, user, "webhook")
    until = answer.get("until")
    if until is not None and (isinstance(until, bool) or not isinstance(until, int | float)):
        raise ValueError(f"until is {until!r}, it must be seconds since the Unix epoch")
    if until is not None and until <= now:
        return Refusal(Reason.NOT_AUTHORIZED, f"the webhook lets the client in until {until}, which is over")
    # The service was told the client id and agreed.
    return replace(found, thing=login.client_id, until=until)

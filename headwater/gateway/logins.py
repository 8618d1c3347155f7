"""Answers CONNECT packets: takes waiting logins from the gateway, asks the sources of identities, says yes or no.

Certificates, tokens and passwords are checked by `auth.workers` threads; what none of them decides goes to the
webhook's own threads, so that a slow service holds up nobody who needs none of it. All run at low priority: a storm of
passwords must not take the processor from messages. One of them also looks whether files of identities or policies have
changed, and has the gateway hold its connections against them.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from headwater import _native
from headwater.errors import ConfigError
from headwater.gateway.identity import Login, Reason, Refusal, Source, Verdict
from headwater.gateway.policyfiles import PolicyFiles
from headwater.gateway.recordfile import LOOK_S
from headwater.security import AuthSettings, PolicySettings
from headwater.worker import name_thread

logger = structlog.get_logger(__name__)

#: Logins taken at a time, and longest wait for one, seconds.
_BATCH: Final = 32
_IDLE_S: Final = 0.25
#: Added to the threads' niceness.
_NICER: Final = 10


def sources_of(settings: AuthSettings, data_dir: Path) -> tuple[list[Source], Source | None]:
    """The sources that decide here, in their order, and the one that is asked over the network.

    The libraries of a source are loaded where it is configured.

    raises: IdentityError: a file that cannot be read
    """
    local: list[Source] = []
    if settings.certificates is not None:
        from headwater.gateway.fingerprints import Certificates

        local.append(Certificates(settings.certificates, data_dir / "ca" / "certificates.json"))
    if settings.jwt is not None:
        from headwater.gateway.tokens import Tokens

        local.append(Tokens(settings.jwt))
    if settings.password is not None:
        from headwater.gateway.password import PasswordFile

        local.append(PasswordFile(settings.password))
    if settings.webhook is None:
        return local, None
    from headwater.gateway.webhook import Webhook

    return local, Webhook(settings.webhook)


def waiting_logins(settings: AuthSettings, policies: Mapping[str, PolicySettings]) -> _native.Logins | None:
    """Where CONNECT packets wait for an answer; None: nobody needs to say who it is.

    raises: ConfigError: what is wrong with a policy, by statement and field
    """
    if not settings.configured:
        return None
    return _native.Logins(
        PolicyFiles(policies).documents(), settings.timeout, settings.max_waiting, settings.max_waiting_bytes
    )


def login_service(
    settings: AuthSettings, policies: Mapping[str, PolicySettings], data_dir: Path
) -> LoginService | None:
    """Everything that answers CONNECT packets; None: nobody needs to say who it is.

    raises: ConfigError: what is wrong with a policy; IdentityError: a file that cannot be read
    """
    waiting = waiting_logins(settings, policies)
    if waiting is None:
        return None
    return LoginService(waiting, settings, PolicyFiles(policies), *sources_of(settings, data_dir))


class LoginService:
    """Threads between the gateway and the sources, from construction to `stop`.

    native: where the gateway's CONNECT packets wait
    """

    def __init__(
        self,
        native: _native.Logins,
        settings: AuthSettings,
        policies: PolicyFiles,
        local: Sequence[Source],
        webhook: Source | None,
    ) -> None:
        self.native = native
        self._settings = settings
        self._policies = policies
        self._looked = time.monotonic()
        self._local = local
        self._webhook = webhook
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._results: Counter[tuple[str, str]] = Counter()
        hook = settings.webhook
        self._remote: queue.Queue[tuple[Login, float]] = queue.Queue(hook.max_waiting if hook else 1)
        self._threads = [
            threading.Thread(target=self._check, args=(n == 0,), name=f"logins-{n}", daemon=True)
            for n in range(settings.workers)
        ]
        if webhook is not None and hook is not None:
            self._threads += [
                threading.Thread(target=self._ask, name=f"webhook-{n}", daemon=True)
                for n in range(hook.workers)
            ]
        for thread in self._threads:
            thread.start()

    def results(self) -> dict[tuple[str, str], int]:
        """Logins by source (`none`: no one decided) and result: `allowed`, `refused`, `unavailable`, `busy`."""
        with self._lock:
            return dict(self._results)

    def waiting(self) -> int:
        """CONNECT packets that wait now."""
        return self.native.waiting()

    def stop(self) -> None:
        """Ends the threads after the login that each is at."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(10)
        for source in (*self._local, *([self._webhook] if self._webhook else [])):
            source.close()

    def _check(self, looks: bool) -> None:
        self._step_back()
        while not self._stopping.is_set():
            if looks:
                self._look()
            for each in self.native.take(_BATCH, _IDLE_S):
                self._decide(Login(*each))
                if looks:
                    self._look()

    def _look(self) -> None:
        """Holds connections against files that have changed, at most once a second."""
        if time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        for source in self._local:
            changed = source.changed()
            if changed is not None:
                logger.info("identities read again", source=source.name, lines=len(changed[1]))
                self.native.set_lines(source.name, *changed)
        documents = self._policies.changed()
        if documents is not None:
            try:
                self.native.set_policies(documents)
            except ConfigError as error:
                logger.warning("policies not read again, the former ones hold", detail=str(error))
            else:
                logger.info("policies read again", policies=len(documents))

    def _decide(self, login: Login) -> None:
        for source in self._local:
            verdict = self._opinion(source, login)
            if verdict is not None:
                self._answer(login, source.name, verdict)
                return
        if self._webhook is None:
            text = (
                "no source knows this client: "
                + ", ".join(source.name for source in self._local)
                + (" were asked" if len(self._local) > 1 else " was asked")
            )
            self._answer(login, "none", Refusal(Reason.BAD_USER_NAME_OR_PASSWORD, text))
            return
        try:
            self._remote.put_nowait((login, time.monotonic()))
        except queue.Full:
            text = f"auth.webhook.max_waiting = {self._remote.maxsize} logins wait for the webhook"
            self._answer(login, "webhook", Refusal(Reason.SERVER_BUSY, text))

    def _ask(self) -> None:
        self._step_back()
        assert self._webhook is not None
        while not self._stopping.is_set():
            try:
                login, since = self._remote.get(timeout=_IDLE_S)
            except queue.Empty:
                continue
            # The gateway has refused it by now.
            if (time.monotonic() - since) * 1e6 >= self._settings.timeout:
                self._count("webhook", "unavailable")
                continue
            verdict = self._opinion(self._webhook, login)
            nothing = Refusal(Reason.BAD_USER_NAME_OR_PASSWORD, "the webhook does not know this client")
            self._answer(login, "webhook", verdict or nothing)

    def _opinion(self, source: Source, login: Login) -> Verdict | None:
        try:
            return source.identify(login)
        except Exception as error:
            # A defect of ours must refuse one client, not end the thread that serves all.
            logger.exception("source of identities failed", source=source.name, client=login.client_id)
            return Refusal(
                Reason.SERVER_UNAVAILABLE, f"source {source.name}: {type(error).__name__}: {error}"
            )

    def _answer(self, login: Login, source: str, verdict: Verdict) -> None:
        if isinstance(verdict, Refusal):
            self.native.deny(login.id, int(verdict.reason), verdict.text)
            result = {Reason.SERVER_UNAVAILABLE: "unavailable", Reason.SERVER_BUSY: "busy"}.get(
                verdict.reason, "refused"
            )
        else:
            line, until = verdict.line, verdict.until
            identity = {
                "user": verdict.user,
                "tenant": verdict.tenant,
                "policies": list(verdict.policies or self._settings.policies),
                "thing": verdict.thing,
                "attributes": dict(verdict.attributes),
                "until_ms": None if until is None else int(max(until, 0) * 1000),
                "line": None if line is None else (source, line.name, line.version, line.mark),
            }
            allowed = self.native.allow(login.id, identity)
            result = "allowed" if allowed else "refused"
        self._count(source, result)

    def _count(self, source: str, result: str) -> None:
        with self._lock:
            self._results[source, result] += 1

    @staticmethod
    def _step_back() -> None:
        name_thread(threading.current_thread().name)
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICER)

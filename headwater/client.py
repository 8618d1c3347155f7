"""Typed Python client of the HTTP API.

>>> with Client("http://127.0.0.1:8080") as client:           # doctest: +SKIP
...     client.query("SELECT device, max(temperature) FROM telemetry GROUP BY device").to_pylist()
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
import pyarrow as pa

from headwater.errors import (
    AlarmStateError,
    ConfigError,
    ConflictError,
    HeadwaterError,
    LogFullError,
    NotFoundError,
    OutdatedError,
    QueryLimitError,
    RecordError,
    ShadowError,
    SqlError,
    TraceError,
)

_ARROW = "application/vnd.apache.arrow.stream"
#: Characters of an alarm's id.
_ID_LENGTH = 24
_RAISES = {
    "AlarmStateError": AlarmStateError,
    "ConfigError": ConfigError,
    "ConflictError": ConflictError,
    "OutdatedError": OutdatedError,
    "SqlError": SqlError,
    "RecordError": RecordError,
    "NotFoundError": NotFoundError,
    "QueryLimitError": QueryLimitError,
    "LogFullError": LogFullError,
}


class Client:
    """The API of one running Headwater.

    url:   such as http://127.0.0.1:8080
    token: the administrator's token, where one is set
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 60.0) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)

    @classmethod
    def of_directory(cls, directory: Path, token: str | None = None) -> Client:
        """The client of the Headwater that runs on this data directory.

        raises: HeadwaterError when none runs there
        """
        try:
            running = json.loads((directory / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise HeadwaterError(
                f"looking for a running Headwater in {directory}: no run.json there; start one with `headwater up` "
                f"or name its address with --url"
            ) from error
        return cls(f"http://{running['http']}", token)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def query(self, sql: str, params: Sequence[object] = ()) -> pa.Table:
        """Rows of one read-only SELECT. raises: SqlError, QueryLimitError"""
        body = {"sql": sql, "params": list(params)}
        response = self._request("POST", "/api/v1/query", json=body, headers={"Accept": _ARROW})
        with pa.ipc.open_stream(response.content) as reader:
            return reader.read_all()

    def ingest(self, stream: str, readings: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> int:
        """Appends readings and returns their number once they are durable. raises: RecordError, NotFoundError"""
        rows: int = self._request("POST", f"/api/v1/ingest/{stream}", json=readings).json()["rows"]
        return rows

    def books(self) -> dict[str, Any]:
        """What came in and what became of it."""
        return self._json("/api/v1/books")

    def alarms(self, **filters: str) -> list[dict[str, Any]]:
        """Alarm instances, newest first; filters: state, alarm, limit."""
        return self._list("/api/v1/alarms", filters)

    def alarm(self, id_: str) -> dict[str, Any]:
        """One alarm with its labels and history. raises: NotFoundError"""
        return self._json(f"/api/v1/alarms/{quote(id_, safe='')}")

    def alarm_id(self, beginning: str) -> str:
        """The one id of an alarm that begins so, among the latest 1,000; a whole id is taken as it is.

        raises: NotFoundError when there is none, or more than one
        """
        if len(beginning) >= _ID_LENGTH:
            return beginning
        found = [each["id"] for each in self.alarms() if each["id"].startswith(beginning)]
        if len(found) != 1:
            raise NotFoundError(
                f"alarm {beginning!r}: {len(found)} of the latest alarms have an id that begins so"
            )
        return str(found[0])

    def act(self, id_: str, action: str, **body: str) -> dict[str, Any]:
        """What an operator does with an alarm; gives it as `alarm` does.

        action: acknowledge (who, comment), assign (who, to), comment (who, text), shelve (who, until, reason), unshelve
                (who)
        raises: NotFoundError, AlarmStateError, RecordError
        """
        path = f"/api/v1/alarms/{quote(id_, safe='')}/{action}"
        answer: dict[str, Any] = self._request("POST", path, json=body).json()
        return answer

    def silences(self, **filters: str) -> list[dict[str, Any]]:
        """Silences, the next to end first; filters: over."""
        return self._list("/api/v1/silences", filters)

    def silence(self, **body: Any) -> dict[str, Any]:
        """A new silence: matchers, ends_at, starts_at, who, comment. raises: RecordError"""
        answer: dict[str, Any] = self._request("POST", "/api/v1/silences", json=body).json()
        return answer

    def end_silence(self, id_: str, who: str) -> dict[str, Any]:
        """Ends a silence now. raises: NotFoundError"""
        path = f"/api/v1/silences/{quote(id_, safe='')}"
        answer: dict[str, Any] = self._request("DELETE", path, params={"who": who}).json()
        return answer

    def notifications(self, **filters: str) -> list[dict[str, Any]]:
        """Notifications, newest first; filters: state, target, limit."""
        return self._list("/api/v1/notifications", filters)

    def replay_notifications(self, **filters: str) -> int:
        """Lets dead notifications wait again and gives their number; filters: target, notification."""
        answer: dict[str, int] = self._request("POST", "/api/v1/notifications/replay", params=filters).json()
        return answer["replayed"]

    def test_target(self, target: str) -> dict[str, Any]:
        """Sends one message to a target now: `delivered`, `error`. raises: NotFoundError"""
        path = f"/api/v1/notify/{quote(target, safe='')}/test"
        answer: dict[str, Any] = self._request("POST", path).json()
        return answer

    def objects(self, **filters: str) -> list[dict[str, Any]]:
        """Streams, queries, alarms and routes with version, owner, state and definition; filters: kind."""
        return self._list("/api/v1/objects", filters)

    def object(self, kind: str, name: str) -> dict[str, Any]:
        """One of them. raises: NotFoundError"""
        return self._json(_object(kind, name))

    def put_object(
        self, kind: str, name: str, definition: Mapping[str, Any], who: str, version: int | None = None
    ) -> dict[str, Any]:
        """Makes it, or changes it to this definition: `changes`, `in_effect`.

        version: that it must have, 0 for none; None: any
        raises:  ConfigError, ConflictError, OutdatedError
        """
        match = {} if version is None else {"If-Match": f'"{version}"'}
        if version == 0:
            match = {"If-None-Match": "*"}
        return self._change("PUT", _object(kind, name), who, match, json=definition)

    def change_object(
        self, kind: str, name: str, action: str, who: str, version: int | None = None
    ) -> dict[str, Any]:
        """action: delete, pause, resume or purge. raises: NotFoundError, ConfigError, ConflictError, OutdatedError"""
        match = {} if version is None else {"If-Match": f'"{version}"'}
        if action == "delete":
            return self._change("DELETE", _object(kind, name), who, match)
        return self._change("POST", f"{_object(kind, name)}/{action}", who, match, json={})

    def object_changes(self, **filters: str) -> list[dict[str, Any]]:
        """Who changed what, newest first; filters: kind, name, limit, before."""
        return self._list("/api/v1/objects/changes", filters)

    def plan(self, sections: Mapping[str, Any]) -> dict[str, Any]:
        """What applying these sections of a file would do: `revision`, `changes`. raises: ConfigError, ConflictError"""
        answer: dict[str, Any] = self._request("POST", "/api/v1/plan", json=sections).json()
        return answer

    def apply(self, sections: Mapping[str, Any], who: str, revision: int | None = None) -> dict[str, Any]:
        """Does it, all or nothing. revision: of the plan. raises: OutdatedError, ConfigError, ConflictError"""
        match = {} if revision is None else {"If-Match": f'"{revision}"'}
        return self._change("POST", "/api/v1/apply", who, match, json=sections)

    def export(self) -> dict[str, Any]:
        """Everything that is declared, as sections of a file."""
        return self._json("/api/v1/export")

    def streams(self) -> list[dict[str, Any]]:
        """Streams and query results with their columns."""
        return self._list("/api/v1/streams", {})

    def unmatched(self) -> list[dict[str, Any]]:
        """Topics that no stream matches."""
        return self._list("/api/v1/streams/unmatched", {})

    def deadletters(self, **filters: str) -> list[dict[str, Any]]:
        """Payloads that could not be decoded, newest first; filters: stream, client, reason, topic (an MQTT filter),
        since, until (ISO 8601), replayed, limit, skip."""
        return self._list("/api/v1/deadletters", filters)

    def deadletter_counts(self, **filters: str) -> list[dict[str, Any]]:
        """How many, by stream and reason; filters as for `deadletters`."""
        return self._list("/api/v1/deadletters/count", filters)

    def replay(self, **filters: str) -> dict[str, Any]:
        """Decodes dead letters again and stores what is good now, each once; filters as for `deadletters`.

        returns: {"replayed": letters, "readings": rows, "refused": [{"stream", "reason", "n", "example"}]}
        raises:  LogFullError: call it again
        """
        answer: dict[str, Any] = self._request("POST", "/api/v1/deadletters/replay", params=filters).json()
        return answer

    def why(self, client_id: str) -> dict[str, Any]:
        """Why messages of a client are not where they are expected: `answer` says it in sentences."""
        return self._json(f"/api/v1/clients/{quote(client_id, safe='/')}/why")

    def clients(self, search: str = "", connected: bool | None = None) -> Iterator[dict[str, Any]]:
        """Clients that are connected or have a session, in no particular order.

        search: the beginning of the client id, or a pattern with `*` and `?`
        """
        params = {"search": search, "limit": "1000"}
        if connected is not None:
            params["connected"] = str(connected).lower()
        while True:
            page = self._json("/api/v1/clients", params)
            yield from page["clients"]
            if page["next"] is None:
                return
            params["after"] = str(page["next"])

    def client(self, client_id: str) -> dict[str, Any]:
        """What a client has, what waits for it and what went wrong with it. raises: NotFoundError"""
        return self._json(f"/api/v1/clients/{quote(client_id, safe='/')}")

    def kick(self, client_id: str, session: bool = False) -> str:
        """Ends a client's connection, and its session if asked for: `connection` or `session`. raises: NotFoundError"""
        params = {"session": str(session).lower()}
        path = f"/api/v1/clients/{quote(client_id, safe='/')}"
        return str(self._request("DELETE", path, params=params).json()["ended"])

    def trace(self, **which: str) -> Iterator[dict[str, Any]]:
        """Packets as they come, without end; which: `client` (id) or `topic` (filter). raises: TraceError"""
        try:
            with self._http.stream("GET", "/api/v1/trace", params=which, timeout=None) as response:
                if not response.is_success:
                    response.read()
                    raise TraceError(response.json().get("detail", response.text))
                for line in response.iter_lines():
                    if line:
                        yield json.loads(line)
        except httpx.TransportError as error:
            raise HeadwaterError(f"tracing at {self._http.base_url}: {error}") from error

    def listeners(self) -> list[dict[str, Any]]:
        """Listeners of devices: name, transport, address and counts."""
        return self._list("/api/v1/listeners", {})

    def reload_listeners(self) -> list[dict[str, Any]]:
        """Reads certificates anew; each TLS listener with what was wrong with its files (`error`), if anything."""
        answer: list[dict[str, Any]] = self._request("POST", "/api/v1/listeners/reload", json={}).json()
        return answer

    def shadow(self, thing: str, name: str = "") -> dict[str, Any]:
        """A shadow document. raises: ShadowError(404) where there is none"""
        return self._json(f"/things/{thing}/shadow", {"name": name} if name else {})

    def update_shadow(self, thing: str, state: Mapping[str, Any], name: str = "") -> dict[str, Any]:
        """Merges `{"desired": ..., "reported": ...}` into a shadow and returns what was accepted."""
        params = {"name": name} if name else {}
        answer: dict[str, Any] = self._request(
            "POST", f"/things/{thing}/shadow", params=params, json={"state": state}
        ).json()
        return answer

    def _change(
        self, method: str, path: str, who: str, headers: Mapping[str, str], **body: Any
    ) -> dict[str, Any]:
        response = self._request(method, path, params={"who": who}, headers=headers, **body)
        answer: dict[str, Any] = response.json()
        return answer

    def _json(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        answer: dict[str, Any] = self._request("GET", path, params=params).json()
        return answer

    def _list(self, path: str, params: Mapping[str, str]) -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = self._request("GET", path, params=params).json()
        return answer

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise HeadwaterError(
                f"{method} {self._http.base_url}{path}: {error}; is Headwater running there?"
            ) from error
        if response.is_success:
            return response
        try:
            body = response.json()
        except ValueError:
            body = {}
        if path.startswith("/things/") and "message" in body:
            raise ShadowError(response.status_code, body["message"])
        detail = body.get("detail", response.text)
        if body.get("title") == "SqlError":
            raise SqlError(detail, body.get("position"))
        raise _RAISES.get(body.get("title", ""), HeadwaterError)(detail)


def _object(kind: str, name: str) -> str:
    return f"/api/v1/objects/{quote(kind, safe='')}/{quote(name, safe='')}"

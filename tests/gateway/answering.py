"""A small HTTP server whose answers a test chooses, on a free port of this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

#: Status and body; the request's body is given.
Answer = Callable[[Any], tuple[int, bytes]]


class Answering:
    """Runs from construction to `close`. requests: the bodies that came, as JSON, with their Authorization."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[tuple[Any, str | None]] = []
        #: Answers wait until it is set.
        self.open = threading.Event()
        self.open.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(length) or b"null")
                outer.requests.append((body, self.headers.get("Authorization")))
                outer.open.wait(60)
                status, content = outer.answer(body)
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:
                    pass  # The client has given up, which the test wants to see.

            do_GET = do_POST

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """No connection is accepted any more."""
        self.open.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

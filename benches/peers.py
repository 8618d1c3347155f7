"""Programs beside Headwater: the yardstick's load generator and its `discard` server, and mosquitto."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil


class Yardstick:
    """The yardstick's programs, compiled into `scratch`.

    raises: SystemExit without a C compiler
    """

    def __init__(self, source: Path, scratch: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            raise SystemExit(
                "bench: no C compiler (cc) to build the yardstick with; Debian: apt-get install gcc libc6-dev"
            )
        self.loadgen, self.discard = scratch / "loadgen", scratch / "discard"
        for program in (self.loadgen, self.discard):
            command: list[str | Path] = [
                compiler,
                "-std=gnu11",
                "-O2",
                source / f"{program.name}.c",
                "-o",
                program,
            ]
            subprocess.run(command, check=True)

    def load(self, port: int, pids: Sequence[int], **options: Any) -> dict[str, Any]:
        """One run of the load generator against `port`; its figures, with the CPU of `pids`.

        options: those of `loadgen --help`, such as conns=50, qos=1, secs=4; idle="" for one without a value
        raises:  SystemExit when the server did not answer for every message
        """
        with self.start(port, pids, **options) as process:
            out, error = process.communicate()
        return answer(out, error)

    def start(self, port: int, pids: Sequence[int], **options: Any) -> subprocess.Popen[str]:
        """The same, running; its output is what `answer` reads."""
        words = [str(self.loadgen), "--port", str(port), "--pids", ",".join(map(str, pids))]
        for name, value in options.items():
            words += [f"--{name.replace('_', '-')}", *([str(value)] if value != "" else [])]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(out: str, error: str) -> dict[str, Any]:
    """The figures of a run of the load generator. raises: SystemExit when messages were left unanswered"""
    try:
        result: dict[str, Any] = json.loads(out)
    except json.JSONDecodeError:
        raise SystemExit(f"bench: the load generator failed: {out}{error}") from None
    unanswered = "ack_ms" in result and result["sent"] != result["acked"]
    if not result["drained"] or result["died"] or result["refused"] or unanswered:
        raise SystemExit(f"bench: the load was not answered in full: {out}{error}")
    return result


@contextmanager
def discard(yardstick: Yardstick) -> Iterator[tuple[int, list[int]]]:
    """A server that only acknowledges; its port and process ids."""
    port = free_port()
    with running([yardstick.discard, "-p", str(port)]) as process:
        await_port(port, process)
        yield port, pids(process)


@contextmanager
def mosquitto(program: str, scratch: Path) -> Iterator[tuple[int, list[int]]]:
    """mosquitto without persistence; its port and process ids."""
    port, config = free_port(), scratch / "mosquitto.conf"
    # Without limits on what is in flight, which would hold its rate down.
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nlog_type none\n"
        "max_inflight_messages 0\nmax_queued_messages 0\n",
        encoding="utf-8",
    )
    with running([program, "-c", config]) as process:
        await_port(port, process)
        yield port, pids(process)


@contextmanager
def running(command: list[str | Path]) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that is ended again."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Waits until the process accepts on the port."""
    end = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise SystemExit(f"bench: {process.args!r} does not accept on port {port}")


def pids(process: subprocess.Popen[bytes]) -> list[int]:
    """The process and its children: discard works in one."""
    top = psutil.Process(process.pid)
    return [process.pid, *(child.pid for child in top.children(recursive=True))]

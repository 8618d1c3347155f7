"""The system calls of a running process in the order in which they happened, by strace.

strace stops a thread at the entry and at the exit of each call and writes a line then, so what one thread does
because of another's finished call stands behind that call's end. That
makes the order of lines proof of what was before what.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.integration.server import await_that

#: A test that needs it is skipped with this reason where there is none.
STRACE = shutil.which("strace")

#: Calls by which a log is written and synced, and by which anything leaves through a socket.
WRITES = ("pwrite64", "pwritev", "pwritev2")
SYNCS = ("fdatasync", "fsync")
SENDS = ("write", "writev", "sendto", "sendmsg")
#: The call by which many sends leave at once. It does not show what they send; its result is how many they are.
BATCHES = ("io_uring_enter",)
#: Bytes of each argument that are shown: a commit in a test is shorter, the zeros behind it are not needed.
_SHOWN = 1 << 18

_BEGUN = re.compile(r"^(\d+) +(\w+)\((\d+)(?:<[^>]*>)?(.*)$", re.DOTALL)
_RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>.* = (-?\d+)")
_ENDED = re.compile(r" = (-?\d+)(?: .*)?$")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass(slots=True)
class Call:
    """One system call on a file descriptor.

    begun, ended: places in the order of all entries and exits; ended is None while it has not come back
    """

    name: str
    descriptor: int
    data: bytes
    begun: int
    ended: int | None = None
    result: int | None = None


def parse(text: str) -> list[Call]:
    """The calls of `strace -f -xx` output, in the order of their entries."""
    calls: list[Call] = []
    unfinished: dict[str, Call] = {}
    for at, line in enumerate(text.splitlines()):
        if resumed := _RESUMED.match(line):
            thread, name, result = resumed.groups()
            call = unfinished.pop(thread, None)
            if call is not None and call.name == name:
                call.ended, call.result = at, int(result)
        elif begun := _BEGUN.match(line):
            thread, name, descriptor, rest = begun.groups()
            data = b"".join(bytes.fromhex(part.replace("\\x", "")) for part in _TEXT.findall(rest))
            call = Call(name, int(descriptor), data, at)
            calls.append(call)
            if rest.endswith("<unfinished ...>"):
                unfinished[thread] = call
            elif ended := _ENDED.search(rest):
                call.ended, call.result = at, int(ended.group(1))
    return calls


class Trace:
    """Attached to a process and all its threads while it is entered; `calls` gives what they did."""

    def __init__(self, pid: int, output: Path) -> None:
        assert STRACE is not None
        self._output = output
        traced = ",".join((*WRITES, *SYNCS, *SENDS, *BATCHES))
        options = ["-f", "-xx", "-s", str(_SHOWN), "-e", f"trace={traced}", "-e", "signal=none"]
        self._messages = output.with_suffix(".messages")
        with self._messages.open("w") as messages:
            self._process = subprocess.Popen(
                [STRACE, *options, "-o", str(output), "-p", str(pid)], stderr=messages
            )

    def __enter__(self) -> Self:
        def attached() -> bool:
            said = self._messages.read_text()
            assert self._process.poll() is None, f"strace ended: {said}"
            return "attached" in said

        await_that("strace attached", attached)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()

    def calls(self) -> list[Call]:
        """After it was left."""
        return parse(self._output.read_text(encoding="ascii", errors="replace"))

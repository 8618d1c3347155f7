"""Where the time goes, as a picture: CPU samples of a running server, folded by stack and drawn as SVG.

    YARDSTICK=DIR .venv/bin/python -m benches.flamegraph [--secs 8] [--out docs/flamegraph.svg]

Samples come from `perf record` (Linux perf must be installed and allowed: `sysctl kernel.perf_event_paranoid` at most
1, or root). Width is CPU time; the lowest boxes are threads by name, above each stands what it called. The
whole pipeline runs as in row 2 of the bench.
"""

from __future__ import annotations

import argparse
import html
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benches import peers
from benches.peers import Yardstick
from benches.rows.whole_pipeline import LOAD, config
from benches.server import Server

ROOT = Path(__file__).parents[1]
WIDTH, ROW, FONT = 1200, 16, 11
#: Boxes narrower than this are left out, pixels.
NARROWEST = 0.7
#: How a thread begins and what only wraps a call; nothing is spent in them.
_WRAPPERS = re.compile(
    r"\{closure|catch_unwind|call_once|do_call|__rust_begin|^clone3|^start_thread|thread_start|^thread_run"
    r"|^_start|__libc_start|^Py_RunMain|^Py_BytesMain|^pymain_"
)
_HASH = re.compile(r"::h[0-9a-f]{16}$")
_OFFSET = re.compile(r"\+0x[0-9a-f]+$")


@dataclass
class Box:
    """A function in its place in the stack: samples in it and what it calls."""

    name: str
    samples: int = 0
    inner: dict[str, Box] = field(default_factory=dict)

    def add(self, stack: Iterable[str], samples: int = 1) -> None:
        """Counts samples of one stack, outermost first."""
        box = self
        box.samples += samples
        for name in stack:
            box = box.inner.setdefault(name, Box(name))
            box.samples += samples


def stacks(script: Iterable[str]) -> Iterator[list[str]]:
    """Stacks, outermost first and headed by the thread's name, of the output of `perf script -F comm,ip,sym`."""
    thread: str = ""
    frames: list[str] = []
    for line in script:
        if not line.strip():
            if thread:
                yield [thread, *reversed(frames)]
            thread, frames = "", []
        elif line[0].isspace():
            symbol = line.strip().partition(" ")[2]
            name = function(symbol)
            if not _WRAPPERS.search(name) and (not frames or frames[-1] != name):
                frames.append(name)
        else:
            thread = re.sub(r"[-_]?\d+$", "", line.strip())
    if thread:
        yield [thread, *reversed(frames)]


def function(symbol: str) -> str:
    """A symbol without its hash, offset and generic arguments."""
    name = _OFFSET.sub("", symbol.strip().removesuffix(" (inlined)"))
    name = _HASH.sub("", name).replace("headwater_core::", "") or "[unknown]"
    name = re.sub(r"^<(?:impl )?([\w:]+)[^>]*>", r"\1", name)
    while (shorter := re.sub(r"<[^<>]*>", "", name)) != name:
        name = shorter
    return name.replace("::::", "::").strip(":") or "[unknown]"


def draw(root: Box, title: str) -> str:
    """The SVG text."""
    depth = _depth(root, root.samples)
    height = (depth + 3) * ROW
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="monospace" font-size="{FONT}">'
    )
    lines = [
        opening,
        f'<rect width="{WIDTH}" height="{height}" fill="#fdfdfb"/>',
        f'<text x="{WIDTH / 2}" y="{ROW}" text-anchor="middle" font-size="13">{html.escape(title)}</text>',
    ]
    x = 0.0
    for box in _by_weight(root):
        lines += _boxes(box, x, height - ROW * 1.5, root.samples)
        x += WIDTH * box.samples / root.samples
    return "\n".join([*lines, "</svg>", ""])


def _by_weight(box: Box) -> list[Box]:
    return sorted(box.inner.values(), key=lambda inner: (-inner.samples, inner.name))


def _depth(box: Box, total: int) -> int:
    shown = [inner for inner in box.inner.values() if WIDTH * inner.samples / total >= NARROWEST]
    return 1 + max((_depth(inner, total) for inner in shown), default=0)


def _boxes(box: Box, x: float, y: float, total: int) -> Iterator[str]:
    width = WIDTH * box.samples / total
    if width < NARROWEST:
        return
    share = f"{box.samples / total:.1%}"
    name = html.escape(box.name)
    yield f"<g><title>{name}: {share}</title>"
    yield (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{ROW - 1}" fill="{_colour(box.name)}" rx="1"/>'
    )
    letters = int((width - 4) / (FONT * 0.6))
    if letters >= 4:
        shown = html.escape(box.name if len(box.name) <= letters else box.name[: letters - 1] + "…")
        yield f'<text x="{x + 2:.1f}" y="{y + ROW - 5:.1f}">{shown}</text>'
    yield "</g>"
    for inner in _by_weight(box):
        yield from _boxes(inner, x, y - ROW, total)
        x += WIDTH * inner.samples / total


def _colour(name: str) -> str:
    """Warm for ours, cool for the kernel, grey for the interpreter; the shade follows from the name."""
    shade = sum(name.encode()) % 40
    if re.match(r"(net|log|decode|mqtt|window|rows|schema|gateway|acceptor)\b", name):
        return f"hsl({20 + shade // 2}, 85%, {62 + shade // 4}%)"
    if re.match(r"(_?Py|py|gc_|dict|unicode|object|list|tuple|long|type)", name):
        return f"hsl(60, 8%, {72 + shade // 4}%)"
    if re.match(
        r"(__?x64_|do_|sys|tcp|ip_|sk|ep_|vfs|ext4|blk|schedule|entry_|asm_|page|_?_?copy|sock|inet)", name
    ):
        return f"hsl(205, 45%, {68 + shade // 4}%)"
    return f"hsl({45 + shade // 3}, 60%, {74 + shade // 5}%)"


def record(yardstick: Yardstick, scratch: Path, secs: float) -> Box:
    """Samples of the whole pipeline under load, and of its threads only."""
    perf = shutil.which("perf")
    if perf is None:
        raise SystemExit("flamegraph: perf is not installed; Debian: apt-get install linux-perf")
    data = scratch / "perf.data"
    with Server(scratch, config()) as server:
        load = yardstick.start(server.port, server.pids, **LOAD, secs=secs + 3)
        command = [perf, "record", "--freq", "499", "--call-graph", "dwarf,16384", "--output", str(data)]
        command += ["--pid", str(server.pids[0]), "--", "sleep", str(secs)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        peers.answer(*load.communicate())
    root = Box("all")
    script = [perf, "script", "--input", str(data), "-F", "comm,ip,sym"]
    with subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for stack in stacks(process.stdout):
            root.add(stack)
    if root.samples == 0:
        raise SystemExit("flamegraph: perf gave no samples; is kernel.perf_event_paranoid at most 1?")
    return root


def main() -> int:
    """Records and draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--secs", type=float, default=8)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "flamegraph.svg")
    parser.add_argument("--data-dir", type=Path, default=ROOT, help="where Headwater's data lies meanwhile")
    given = parser.parse_args()
    source = os.environ.get("YARDSTICK")
    if source is None:
        raise SystemExit("flamegraph: YARDSTICK is not set; it names the folder with the load generator")
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=given.data_dir) as folder:
        scratch = Path(folder)
        root = record(Yardstick(Path(source), scratch), scratch, given.secs)
    title = f"CPU of the whole pipeline, flat out: {root.samples} samples"
    given.out.write_text(draw(root, title), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The tutorial, block by block, as a user would type it, against a running Headwater."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.integration.server import Server, await_that

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of every block."""
    return re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)


def test_the_tutorial_does_what_it_says(server: Callable[..., Server], tmp_path: Path) -> None:
    (kind, config), (_, up), *rest = blocks(TUTORIAL.read_text(encoding="utf-8"))
    assert kind == "toml"
    assert up == "headwater up --config plant.toml --data-dir plant\n"
    running = server(config)
    # The names of the page.
    running.directory, running.file = tmp_path / "plant", tmp_path / "plant.toml"
    running.file.write_text(config, encoding="utf-8")
    running.start()

    def run(script: str) -> str:
        verb = f'headwater() {{ {shlex.quote(sys.executable)} -m headwater "$@"; }}\n'
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", verb + script],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{script}{done.stdout}{done.stderr}"
        return done.stdout

    said = ""
    before = ""
    for kind, block in rest:
        if kind == "sh":
            before, said = block, run(block)
            continue
        assert kind == "text"
        words = block.split()
        # What only reads is asked until it shows; what changes something shows at once.
        reads = all(
            re.match(r"headwater (query|alarms list|notify list|objects history)", line)
            for line in before.splitlines()
        )
        if reads:
            await_that(
                f"{before} shows {words}",
                lambda words=words, before=before: set(words) <= set(run(before).split()),
            )
        else:
            assert [word for word in words if word not in said] == [], said
    told = running.get("/api/v1/notifications", limit="100")
    assert [each for each in told if each["alarm"]["key"] == {"device": "pump2"}] == []
    assert len([word for word, _ in rest if word == "sh"]) > 10
    assert running.get("/api/v1/books")["balanced"]

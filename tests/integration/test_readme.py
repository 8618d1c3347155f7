"""The README's first device in five minutes, line by line, as a user would type it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from headwater.reference import commented_config
from tests.integration.server import Server, await_that

README = Path(__file__).parents[2] / "README.md"


def commands(text: str) -> list[str]:
    """Command lines of the `sh` blocks under the heading, in their order."""
    section = text.split("## A first device in five minutes")[1].split("\n## ", maxsplit=1)[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


def test_a_first_device_in_five_minutes(server: Callable[..., Server], tmp_path: Path) -> None:
    lines = commands(README.read_text(encoding="utf-8"))
    build, init, up, *rest = lines
    assert build == "make build"
    headwater = f"{sys.executable} -m headwater"

    def run(line: str) -> str:
        done = subprocess.run(
            line.replace(".venv/bin/headwater", headwater),
            shell=True,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
        return done.stdout

    run(init)
    assert (tmp_path / "headwater.toml").read_text(encoding="utf-8") == commented_config()
    assert up == ".venv/bin/headwater up --config headwater.toml --data-dir headwater-data"
    running = server((tmp_path / "headwater.toml").read_text(encoding="utf-8")).start()
    # The lines name the default ports; here others are free.
    rest = [line.replace("127.0.0.1:8080", running.running["http"]) for line in rest]
    rest = [
        line.replace("headwater pub ", f"headwater pub --mqtt {running.running['mqtt']} ") for line in rest
    ]
    said = {}
    for line in rest:
        if line.startswith("curl -s"):
            url = line.split()[-1]
            said[line] = await_that(f"{line} answers", lambda url=url: running.http.get(url).text)
        else:
            said[line] = run(line)
    queried = next(text for line, text in said.items() if "headwater query" in line)
    assert "81.5" in queried
    assert "82.5" in queried
    firing = await_that(
        "the alarm fires", lambda: running.http.get(f"http://{running.running['http']}/api/v1/alarms").json()
    )
    assert [alarm["alarm"] for alarm in firing] == ["overheat"]
    books = json.loads(next(text for line, text in said.items() if "books" in line))
    assert books["balanced"]
    assert "[streams." in next(text for line, text in said.items() if "unmatched" in line)

"""The documents name everything a user can set, read, call or run, and nothing that is not there."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

from headwater import reference
from headwater.alarm_settings import AlarmSettings
from headwater.api.metrics import GATEWAY_COUNTERS
from headwater.cli import app
from headwater.declarations import QuerySection, StreamSettings
from headwater.notify_settings import NotifySettings, RouteSettings
from headwater.security import PolicySettings

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)

#: Suffixes by which a quoted word is taken for a path of the repository.
_FILES = (".py", ".rs", ".md", ".toml", ".c", ".pyi", ".sh", ".txt")
#: What documents name as paths but users or the product make.
_MADE = {"headwater.toml", "headwater.db", "run.json", "plant.toml", "pumps.toml"}


def names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def test_the_page_of_settings_is_the_one_that_the_settings_make() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page.strip() == reference.settings_page().strip(), "renew it: headwater config reference"


@pytest.mark.parametrize(
    ("section", "model"),
    [
        *reference.sections(),
        *reference.sections_within(),
        ("streams", StreamSettings),
        ("queries", QuerySection),
        ("alarms", AlarmSettings),
        ("notify", NotifySettings),
        ("routes", RouteSettings),
        ("policies", PolicySettings),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_setting_is_documented(section: str, model: type[BaseModel]) -> None:
    missing = [name for name in names(model) if f"`{name}`" not in TEXT and f"`{section}.{name}`" not in TEXT]
    assert not missing


def test_every_metric_in_the_source_is_documented() -> None:
    """test_books compares a running server's metrics with the page, in both directions."""
    source = (ROOT / "headwater" / "api" / "metrics.py").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    made = set(re.findall(r'"(headwater_[a-z_]+)"', source))
    made |= {f"headwater_gateway_{name.removesuffix('_total')}" for name in GATEWAY_COUNTERS}
    assert len(made) > 10
    assert {name for name in made if f"`{name}" not in page} == set()


def test_every_route_is_documented_and_the_reverse() -> None:
    page = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
    routes = set()
    for file in (ROOT / "headwater" / "api").glob("*.py"):
        found = re.findall(r'routes\.\w+\(\s*"(/[^"]*)"', file.read_text(encoding="utf-8"))
        routes |= {route.replace(":path}", "}") for route in found}
    assert len(routes) > 8
    documented = set(re.findall(r"`(?:(?:GET|POST|PUT|DELETE) )?(/[a-z][^`?]*)`", page))
    assert routes <= documented
    assert documented <= routes | {"/openapi.json"}


def verbs() -> list[str]:
    """Every verb of the command line, groups with their verbs."""
    command = typer.main.get_command(app)
    found = []
    for name, verb in sorted(command.commands.items()):  # type: ignore[attr-defined]
        inner = getattr(verb, "commands", None)
        found += [f"{name} {each}" for each in sorted(inner)] if inner else [name]
    return found


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_is_documented(verb: str) -> None:
    assert re.search(rf"headwater {verb}\b|`{verb}`", TEXT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    wrong = []
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose):
        if "://" not in target and not (page.parent / target).exists():
            wrong.append(target)
    for word in re.findall(r"`([\w./-]+)`", prose):
        path = word.rstrip("/")
        is_path = path.endswith(_FILES) or word.startswith(
            ("crates/", "headwater/", "tests/", "benches/", "docs/")
        )
        if is_path and Path(path).name not in _MADE and not _exists(page, path):
            wrong.append(word)
    assert not wrong


def _exists(page: Path, path: str) -> bool:
    """From the root, the page's folder or the package; `crates/core/src/x` may be a file or a folder of a module."""
    roots = (ROOT, page.parent, ROOT / "headwater", ROOT / "crates" / "core" / "src")
    return any((root / path).exists() or (root / f"{path}.rs").exists() for root in roots)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_are_well_formed(page: Path) -> None:
    for language, block in re.findall(r"```(\w+)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S):
        if language == "toml":
            tomllib.loads(block)
        if language in ("sh", "bash"):
            done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr


def test_commands_of_the_readme_are_targets_and_verbs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z-]+)", readme):
        assert re.search(rf"^{target}:", makefile, flags=re.M), f"make {target}"
    known = verbs()
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", readme, flags=re.S))
    for words in re.findall(r"bin/headwater ([a-z ]+)", blocks):
        assert any(words.strip().startswith(verb) for verb in known), f"headwater {words}"

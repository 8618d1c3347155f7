"""The page of MQTT's normative statements: each is there once, and each test that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CASES = ROOT / "crates" / "core" / "src" / "net" / "tests" / "conformance"
PAGE = (ROOT / "docs" / "mqtt-statements.md").read_text(encoding="utf-8")

#: Statements of the standards' appendices B: of each section how many, or from where to where.
_STATEMENTS = {
    "MQTT 3.1.1": """1.5.3:3 2.2.2:2 2.3.1:7 3.1.0:2 3.1.2:24 3.1.3:11 3.1.4:5 3.2.0:1 3.2.2:6 3.3.1:12 3.3.2:3
        3.3.4:1 3.3.5:2 3.6.1:1 3.8.1:1 3.8.3:4 3.8.4:6 3.9.3:2 3.10.1:1 3.10.3:2 3.10.4:6 3.12.4:1 3.14.1:1
        3.14.4:3 4.1.0:2 4.3.1:1 4.3.2:2 4.3.3:2 4.4.0:1 4.5.0:2 4.6.0:6 4.7.1:3 4.7.2:1 4.7.3:4 4.8.0:2 6.0.0:4
        7.0.0:2 7.1.1:1 7.1.2:1""",
    "MQTT 5.0": """1.5.4:3 1.5.5:1 1.5.7:1 2.1.3:1 2.2.1:2-6 2.2.2:1 3.1.0:2 3.1.2:30 3.1.3:12 3.1.4:6 3.2.0:2
        3.2.2:22 3.3.1:13 3.3.2:20 3.3.4:10 3.4.2:3 3.5.2:3 3.6.1:1 3.6.2:3 3.7.2:3 3.8.1:1 3.8.3:5 3.8.4:8 3.9.2:2
        3.9.3:2 3.10.1:1 3.10.3:2 3.10.4:6 3.11.2:2 3.11.3:2 3.12.4:1 3.14.0:1 3.14.1:1 3.14.2:4 3.14.4:3 3.15.1:1
        3.15.2:3 4.1.0:2 4.2:1 4.3.1:1 4.3.2:5 4.3.3:13 4.4.0:2 4.5.0:2 4.6.0:6 4.7.0:1 4.7.1:2 4.7.2:1 4.7.3:4
        4.8.2:6 4.9.0:3 4.12.0:7 4.12.1:2 4.13.1:1 4.13.2:1 6.0.0:4""",
}

#: What stands in place of a test.
_NO_TEST = {"client", "not offered", "this one connects to none"}


def rows(version: str) -> list[tuple[str, str]]:
    """Statement and tests of each row below the heading."""
    section = PAGE.split(f"## {version}\n")[1].split("\n## ")[0]
    lines = [line.split(" | ") for line in section.splitlines() if line.startswith("| MQTT")]
    assert all(len(cells) == 3 for cells in lines)
    return [(cells[0].removeprefix("| "), cells[2].removesuffix(" |")) for cells in lines]


def case_names() -> list[str]:
    found = []
    for file in sorted(CASES.glob("*.txt")):
        text = file.read_text(encoding="utf-8")
        found += re.findall(r"^(?:case|ends|refused|answers) ([a-z0-9_]+)", text, re.MULTILINE)
    return found


def test_cases_have_names_of_their_own() -> None:
    found = case_names()
    assert len(found) > 300
    assert sorted(found) == sorted(set(found))


@pytest.mark.parametrize("version", _STATEMENTS)
def test_every_statement_is_there_once(version: str) -> None:
    wanted = []
    for section in _STATEMENTS[version].split():
        number, _, count = section.partition(":")
        first, _, last = count.rpartition("-")
        wanted += [f"MQTT-{number}-{at}" for at in range(int(first or 1), int(last) + 1)]
    assert [statement for statement, _ in rows(version)] == wanted


def test_every_test_that_is_named_exists() -> None:
    known = set(case_names())
    for folder, pattern, function in (("crates", "*.rs", r"fn (\w+)\("), ("tests", "*.py", r"def (\w+)\(")):
        for file in (ROOT / folder).rglob(pattern):
            known |= set(re.findall(function, file.read_text(encoding="utf-8")))
    for version in _STATEMENTS:
        for statement, tests in rows(version):
            named = re.findall(r"`([^`]+)`", tests)
            assert named or tests in _NO_TEST, f"{statement} has no test: {tests!r}"
            assert set(named) <= known, f"{statement} names {set(named) - known}"
    open_points = PAGE.split("## MQTT 3.1.1")[0]
    named = {name for name in re.findall(r"`([a-z0-9_]+)`", open_points) if "_" in name}
    assert named <= known

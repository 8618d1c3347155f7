"""Labels and what matches them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.alerts.labels import MAX_MATCHERS, Matcher, labels_of, match, parsed
from headwater.errors import RecordError

LABELS = labels_of("hot", "major", {"device": "pump-7", "zone": None, "n": 3}, {"team": "a"})


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("device=pump-7", True),
        ("device=pump-*", True),
        ("device=pump-?", True),
        ("device=pump", False),
        ("device=PUMP-7", False),
        ("device!=pump-*", False),
        ("zone=", True),
        ("nothing=", True),
        ("nothing=*", True),
        ("nothing!=", False),
        ("n=3", True),
        ("severity != critical", True),
        ("team=[ab]", False),
    ],
)
def test_examples(text: str, matches: bool) -> None:
    assert Matcher.parse(text).matches(LABELS) is matches
    assert Matcher.parse(str(Matcher.parse(text))) == Matcher.parse(text)


def test_all_must_match() -> None:
    assert match(parsed(["device=pump-*", "team=a"]), LABELS)
    assert not match(parsed(["device=pump-*", "team=b"]), LABELS)


@pytest.mark.parametrize(
    "texts", [[], ["x"], ["=x"], ["Device=x"], ["a=b"] * (MAX_MATCHERS + 1), ["a=" + "x" * 300]]
)
def test_what_is_no_matcher_is_refused(texts: list[str]) -> None:
    with pytest.raises(RecordError, match="matcher"):
        parsed(texts)


@given(st.text(alphabet="ab*?[]", max_size=6), st.text(alphabet="ab[]", max_size=6))
def test_stars_and_question_marks_alone_are_special(pattern: str, value: str) -> None:
    plain = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    assert Matcher("x", True, pattern).matches({"x": value}) is bool(re.fullmatch(plain, value, re.S))

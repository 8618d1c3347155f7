"""Templates: names are put in, wrong names are refused when they are read, and nothing of a value is ever run."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.alerts.templates import MAX_LENGTH, Template, json_escape
from headwater.errors import ConfigError

VALUES = {
    "alarm": "hot",
    "severity": "major",
    "key": {"device": "d1", "on": True},
    "reading": {"temperature": 81.5, "note": None},
    "resolved_at": None,
    "labels": {"team": "${alarm}"},
}


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("plain {braces} and 100 %", "plain {braces} and 100 %"),
        ("${severity}: ${alarm}", "major: hot"),
        ("${key.device} ${key.on} ${key.other}", "d1 true "),
        ("${reading.temperature} ${reading.note} ${resolved_at}", "81.5  "),
        ("$$5 $${alarm}", "$5 ${alarm}"),
        ("${labels.team}", "${alarm}"),
    ],
)
def test_examples(text: str, rendered: str) -> None:
    assert Template("t", text).render(VALUES) == rendered


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a ${alram}", "notify.ops.text: at character 2: no value 'alram'; did you mean 'alarm'"),
        ("${key}", "'key': write key.NAME"),
        ("${alarm.name}", "'alarm' has no parts"),
        ("${alarm.__class__}", "'alarm' has no parts"),
        ("${__class__}", "no value '__class__'"),
        ("${key.a.b}", "no value 'key.a.b'"),
        ("${}", "no value ''"),
        ("5 $", r"at character 2: write \$\{name\}, or \$\$"),
        ("${alarm", r"at character 0: write \$\{name\}"),
        ("x" * (MAX_LENGTH + 1), "at most 10000"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Template("notify.ops.text", text)


@given(st.text(max_size=50))
def test_any_value_keeps_json_valid(value: str) -> None:
    body = Template("t", '{"text": "${key.device}"}').render({"key": {"device": value}}, json_escape)
    assert json.loads(body)["text"] == value.encode("utf-8", "replace").decode()

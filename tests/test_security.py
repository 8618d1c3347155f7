"""Settings of who may connect: what is refused, and how the refusal reads."""

from pathlib import Path

import pytest

from headwater import config
from headwater.errors import ConfigError
from headwater.security import is_loopback

DOCUMENT = """document = '{"Version": "2012-10-17", "Statement": []}'"""


def load(tmp_path: Path, text: str) -> config.Settings:
    path = tmp_path / "headwater.toml"
    path.write_text(text, encoding="utf-8")
    return config.load(path, (), {})


def test_without_a_source_nobody_is_asked(tmp_path: Path) -> None:
    assert not load(tmp_path, "").auth.configured
    assert load(tmp_path, '[auth.password]\nfile = "u"\n').auth.configured
    assert load(tmp_path, "[auth.certificates]\n").auth.configured


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[auth]\npolicies = ["p"]\n', "policies: nobody has them"),
        (f"[policies.p]\n{DOCUMENT}\n", "policies.p: nobody has it"),
        ('[auth]\npolicies = ["q"]\n[auth.certificates]\n', "'q' is no [policies.*] section"),
        ("[auth.certificates]\n[policies.p]\n", "policies.p: write either file"),
        (
            f'[auth.certificates]\n[policies.p]\nfile = "x"\n{DOCUMENT}\n',
            "policies.p: write either file",
        ),
        ('[auth.certificates]\n[policies.p]\nfile = "absent.json"\n', "reading policy absent.json"),
        (f'[auth.certificates]\n[policies."a b"]\n{DOCUMENT}\n', "a name is letters, digits, _ and -"),
        ('[auth.jwt]\nkeys = "k"\nalgorithms = ["none"]\n', "auth.jwt.algorithms.0"),
        ('[auth.jwt]\nkeys = "k"\nalgorithms = ["HS256"]\n', "auth.jwt.algorithms.0"),
        ('[auth.jwt]\nkeys = "k"\nalgorithms = []\n', "auth.jwt.algorithms"),
        ('[auth.jwt]\nkeys = "http://keys.example/"\n', "auth.jwt.keys"),
        ('[auth.webhook]\nurl = "http://hook.example/"\n', "write https://..."),
        ('[auth.passwort]\nfile = "u"\n', "auth.passwort: unknown key; did you mean 'password'?"),
        ('[auth.password]\nfle = "u"\n', "auth.password.fle: unknown key; did you mean 'file'?"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert expected in str(caught.value)


def test_a_policy_may_be_text_a_table_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"Version": 1}', encoding="utf-8")
    text = f"""
[auth.certificates]
[policies.text]
document = '{{"Version": 1}}'
[policies.table.document]
Version = 1
[policies.file]
file = "{tmp_path}/p.json"
"""
    assert {policy.text for policy in load(tmp_path, text).policies.values()} == {'{"Version": 1}'}


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("127.evil.example", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected

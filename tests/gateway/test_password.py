"""Users of a password file: who is let in, who is refused, and what a broken file does."""

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import IdentityError
from headwater.gateway import password
from headwater.gateway.identity import Identity, Login, Reason, Refusal
from headwater.gateway.password import PasswordFile
from headwater.gateway.recordfile import LOOK_S, RecordFile
from headwater.security import PasswordSettings


def login(user: str | None, secret: bytes | None, client_id: str = "d1") -> Login:
    return Login(1, client_id, user, secret)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "users.json"
    assert password.set_user(path, "ann", "right", tenant="acme", policies=["device"])
    return path


def test_the_right_password_gives_the_identity_of_the_file(file: Path) -> None:
    source = PasswordFile(PasswordSettings(file=file))
    expected = Identity("ann", "acme", ("device",), {}, "")
    # The second time without argon2.
    assert [source.identify(login("ann", b"right")) for _ in range(2)] == [expected, expected]
    named = source.identify(login("ann", b"right", client_id="ann"))
    assert isinstance(named, Identity)
    assert named.thing == "ann"


def test_a_wrong_password_is_refused_and_an_unknown_user_left_to_others(file: Path) -> None:
    source = PasswordFile(PasswordSettings(file=file))
    for wrong in (b"wrong", b"", b"right\0", b"\xff", b"r" * 2000):
        refused = source.identify(login("ann", wrong))
        assert isinstance(refused, Refusal)
        assert refused.reason is Reason.BAD_USER_NAME_OR_PASSWORD
        assert "right" not in refused.text
    assert source.identify(login("bob", b"right")) is None
    assert source.identify(login(None, None)) is None
    assert source.identify(login("ann", None)) is None


def test_a_changed_password_counts_and_the_old_one_does_not(file: Path) -> None:
    seconds = iter(range(0, 1000, 10))
    source = PasswordFile(PasswordSettings(file=file))
    source._file._clock = lambda: float(next(seconds)) + source._file._looked + LOOK_S
    assert isinstance(source.identify(login("ann", b"right")), Identity)
    assert not password.set_user(file, "ann", "other")
    assert isinstance(source.identify(login("ann", b"right")), Refusal)
    assert source.identify(login("ann", b"other")) == Identity("ann", "acme", ("device",), {}, "")
    assert password.remove_user(file, "ann")
    assert not password.remove_user(file, "ann")
    assert source.identify(login("ann", b"other")) is None


def test_marks_tell_who_has_changed(file: Path) -> None:
    seconds = iter(range(0, 1000, 10))
    password.set_user(file, "bob", "b")
    source = PasswordFile(PasswordSettings(file=file))
    source._file._clock = lambda: float(next(seconds)) + source._file._looked + LOOK_S
    found = [source.identify(login(user, secret)) for user, secret in (("ann", b"right"), ("bob", b"b"))]
    lines = [identity.line for identity in found if isinstance(identity, Identity) and identity.line]
    assert [(line.name, line.version) for line in lines] == [("ann", 1), ("bob", 1)]
    assert source.changed() is None
    password.set_user(file, "ann", "other")
    version, marks = source.changed() or (0, {})
    assert version == 2
    assert [marks[line.name] == line.mark for line in lines] == [False, True]
    assert source.changed() is None
    password.remove_user(file, "bob")
    version, marks = source.changed() or (0, {})
    assert (version, set(marks)) == (3, {"ann"})
    again = source.identify(login("ann", b"other"))
    assert isinstance(again, Identity)
    assert again.line is not None
    assert (again.line.version, again.line.mark) == (3, marks["ann"])


def test_the_file_is_its_owners_alone_and_holds_no_password(file: Path) -> None:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "right" not in file.read_text(encoding="utf-8")
    assert json.loads(file.read_text(encoding="utf-8"))["users"]["ann"]["hash"].startswith("$argon2id$")


def test_remembered_passwords_are_bounded(file: Path) -> None:
    password.set_user(file, "bob", "b")
    source = PasswordFile(PasswordSettings(file=file, max_remembered=1))
    for user, secret in (("ann", b"right"), ("bob", b"b"), ("ann", b"right")):
        assert isinstance(source.identify(login(user, secret)), Identity)
        assert len(source._remembered) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "no such file"),
        ("{", "reading"),
        ("[]", "found version 'list', this Headwater reads version 1"),
        ('{"version": 2, "users": {}}', "found version 2"),
        ('{"version": 1, "users": []}', "'users' must be an object"),
        ('{"version": 1, "users": {"a": {"hash": "x"}}}', "user 'a': hash must be an argon2id hash"),
        (
            '{"version": 1, "users": {"a": {"hash": "$argon2id$x", "policies": "p"}}}',
            "must be a list of names",
        ),
        ('{"version": 1, "users": {"a": {"hash": "$argon2id$x", "tenant": 1}}}', "tenant is 1"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_at_the_start(
    tmp_path: Path, text: str | None, expected: str
) -> None:
    path = tmp_path / "users.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(IdentityError, match=str(path)) as caught:
        PasswordFile(PasswordSettings(file=path))
    assert expected in str(caught.value)


def test_a_file_that_breaks_later_leaves_the_former_records(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text('{"version": 1, "users": {"a": {}}}', encoding="utf-8")
    now = [0.0]
    file = RecordFile(path, "users", lambda _records: None, lambda: now[0])
    path.write_text("{", encoding="utf-8")
    assert list(file.records()) == ["a"]
    now[0] = LOOK_S
    assert list(file.records()) == ["a"]
    assert file.error is not None
    assert str(path) in file.error
    path.write_text('{"version": 1, "users": {"b": {}}}', encoding="utf-8")
    now[0] = 2 * LOOK_S
    assert list(file.records()) == ["b"]
    assert file.error is None


@settings(max_examples=20, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_any_user_and_password_round_trip(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("users") / "users.json"
    password.set_user(path, text, text)
    source = PasswordFile(PasswordSettings(file=path))
    assert isinstance(source.identify(login(text, text.encode())), Identity)
    assert isinstance(source.identify(login(text, text.encode() + b"x")), Refusal)


@pytest.mark.parametrize("secret", ["", "x" * 1025])
def test_a_password_that_would_never_be_accepted_is_not_set(tmp_path: Path, secret: str) -> None:
    with pytest.raises(ValueError, match="1 to 1024 bytes"):
        password.set_user(tmp_path / "u", "ann", secret)

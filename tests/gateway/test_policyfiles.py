"""Policies in files are given anew when one of them changes."""

import json
from pathlib import Path

from headwater.gateway.policyfiles import PolicyFiles
from headwater.security import PolicySettings

DOCUMENT = json.dumps({"Version": "2012-10-17", "Statement": []})


def test_a_file_that_changes_is_read_again_once(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(DOCUMENT, encoding="utf-8")
    policies = PolicyFiles({"a": PolicySettings(file=path), "b": PolicySettings(document=DOCUMENT)})
    assert policies.documents() == [("a", DOCUMENT), ("b", DOCUMENT)]
    assert policies.changed() is None
    path.write_text("other and longer " + DOCUMENT, encoding="utf-8")
    assert policies.changed() == [("a", "other and longer " + DOCUMENT), ("b", DOCUMENT)]
    assert policies.changed() is None


def test_a_file_that_cannot_be_read_leaves_what_was(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(DOCUMENT, encoding="utf-8")
    policies = PolicyFiles({"a": PolicySettings(file=path)})
    path.unlink()
    assert policies.changed() is None
    path.write_bytes(b"\xff")
    assert policies.changed() is None
    path.write_text(DOCUMENT, encoding="utf-8")
    assert policies.changed() == [("a", DOCUMENT)]

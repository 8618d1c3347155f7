"""`headwater passwd` and `headwater ca` as a user has them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.test_cli import good, headwater, refused


def test_users_are_added_changed_and_removed(tmp_path: Path) -> None:
    file = tmp_path / "users.json"

    def users() -> dict[str, dict[str, object]]:
        found: dict[str, dict[str, object]] = json.loads(file.read_text(encoding="utf-8"))["users"]
        return found

    assert "added ann" in good("passwd", file, "ann", "--tenant", "acme", "--policy", "p", stdin="one\n")
    first = users()["ann"]
    assert (first["tenant"], first["policies"]) == ("acme", ["p"])
    assert "changed ann" in good("passwd", file, "ann", stdin="two")
    second = users()["ann"]
    assert second["hash"] != first["hash"]
    assert second["tenant"] == "acme"
    assert "removed ann" in good("passwd", file, "ann", "--delete")
    assert users() == {}
    assert "there is no such user" in refused("passwd", file, "ann", "--delete")
    # Without a password on standard input.
    assert "a password has 1 to 1024 bytes" in refused("passwd", file, "ann")
    file.write_text("{", encoding="utf-8")
    done = headwater("passwd", file, "ann", stdin="x\n")
    assert done.returncode == 1
    assert f"reading {file}" in done.stderr


def test_an_authority_from_its_beginning_to_a_revoked_device(tmp_path: Path) -> None:
    data = ("--data-dir", tmp_path / "data")
    assert "`headwater ca init` makes one" in refused("ca", "issue", "d1", *data)
    good("ca", "init", *data)
    assert "exists already" in refused("ca", "init", *data)
    out = tmp_path / "keys"
    issued = good("ca", "issue", "d1", *data, "--out", out, "--tenant", "acme", "--policy", "device")
    [fingerprint] = [line.split()[1] for line in issued.splitlines() if line.startswith("fingerprint ")]
    table = tmp_path / "data" / "ca" / "certificates.json"
    record = json.loads(table.read_text(encoding="utf-8"))["certificates"][fingerprint]
    assert (record["name"], record["tenant"], record["policies"]) == ("d1", "acme", ["device"])
    assert {path.name for path in out.iterdir()} == {"d1.pem", "d1.key"}
    assert "a common name has" in refused("ca", "issue", "a/b", *data)
    assert f"revoked {fingerprint}" in good("ca", "revoke", "d1", *data)
    assert "d1 was revoked before" in good("ca", "revoke", "d1", *data)
    assert "has no certificate" in refused("ca", "revoke", "d2", *data)
    good("ca", "crl", *data)

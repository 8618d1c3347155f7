"""Who may import the native module. The order of the layers is a contract of import-linter in pyproject.toml, which
cannot hold this one: it does not see a compiled module."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "headwater"

#: Files and folders that face the native module; everything else goes through them.
SEAM = ("gateway", "log", "streams", "store", "protobuf.py", "simulate.py")
#: What of them is vocabulary, protocol or pure, and so must work without it.
PURE = ("log/base.py", "streams/base.py", "streams/sql.py", "store/base.py", "store/guard.py")


def imports_native(file: Path) -> bool:
    """Whether the file names the native module in an import, in whatever form."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        if any(name.startswith("headwater._native") for name in names):
            return True
    return False


def test_only_the_owners_of_the_seam_import_the_native_module() -> None:
    importing = {str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if imports_native(file)}
    assert "log/embedded.py" in importing, "the check sees nothing"
    outside = {name for name in importing if name.split("/")[0] not in SEAM}
    assert outside == set()
    assert importing & set(PURE) == set()

"""What the tests hold among themselves: each stands alone, and mirrors a package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

TESTS = ROOT / "tests"
FILES = sorted(TESTS.rglob("*.py"))
FOLDERS = sorted({path.parent for path in TESTS.rglob("test_*.py")} - {TESTS})
OF_NO_PACKAGE = {"docs"}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_helpers_come_from_support_alone(path: Path) -> None:
    others = [name for name in imported(path) if name.split(".")[0] == "tests"]
    assert [name for name in others if not name.startswith("tests.support")] == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(TESTS)))
def test_folders_mirror_the_packages(folder: Path) -> None:
    name = folder.relative_to(TESTS)
    inside = "eval/ropex_eval" if name.parts[0] == "eval" else "ropex"
    last = Path(*name.parts[1:]) if name.parts[0] == "eval" else name
    assert (ROOT / inside / last).is_dir() or str(name) in OF_NO_PACKAGE

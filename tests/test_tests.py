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
def test_folders_mirror_what_they_test(folder: Path) -> None:
    first, *rest = folder.relative_to(TESTS).parts
    roots = (
        (ROOT / "eval" / "ropex_eval",)
        if first == "eval"
        else (ROOT / "ropex" / first, ROOT / first)
    )
    assert any(root.joinpath(*rest).is_dir() for root in roots)

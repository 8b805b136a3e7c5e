"""A folder in which a recipe trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.training import furnish


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, texts and a recipe."""
    monkeypatch.chdir(tmp_path)
    furnish(tmp_path)
    return tmp_path

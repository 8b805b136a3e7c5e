"""A checkpoint to be patched."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.models import tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of a tiny Llama, as transformers saves it."""
    tiny_model("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"

"""The model of most tests of attention."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.models import tiny_model


@pytest.fixture
def llama() -> Any:
    """In float64, where two ways to a logit can be told from two logits."""
    return tiny_model("llama").double()

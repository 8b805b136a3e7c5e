"""A model whose tokens are scored."""

from __future__ import annotations

from typing import Any

import pytest

from ropex_eval.measure.losses import Scorer


@pytest.fixture(scope="module")
def scorer(causal: Any) -> Scorer:
    return Scorer(causal)

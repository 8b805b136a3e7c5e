"""What all tests share: no network, and one thread a worker."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from ropex_eval.nll import Scorer

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded, and that stays true
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def llama() -> Any:
    from cases import tiny_model

    return tiny_model("llama")


@pytest.fixture(scope="module")
def causal() -> Any:
    from tiny_eval import tiny_causal

    return tiny_causal()


@pytest.fixture(scope="module")
def scorer(causal: Any) -> Scorer:
    from ropex_eval.nll import Scorer

    return Scorer(causal)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts of the strategies that are measured from now on, one entry a measurement."""
    from tiny_eval import watch_measuring

    return watch_measuring(monkeypatch)

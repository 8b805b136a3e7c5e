"""Studies of one loaded model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ropex_eval.scores.protocol import Protocol
from ropex_eval.study.study import Study
from tests.support.tiny_eval import study_of

SMALL = Protocol.of((8, 48))


@pytest.fixture
def make(tmp_path: Path, checkpoint: Path, causal: Any) -> Callable[..., Study]:
    """A study on the same texts, by its protocol and its number of excerpts."""

    def study(protocol: Protocol = SMALL, **settings: Any) -> Study:
        return study_of(tmp_path, checkpoint, causal, protocol, **settings)

    return study


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"

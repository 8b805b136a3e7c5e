"""Studies of one loaded model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ropex_eval.study.protocol import Protocol
from ropex_eval.study.study import Study
from tests.support.tiny_eval import study_of


@pytest.fixture
def make(tmp_path: Path, checkpoint: Path, causal: Any) -> Callable[..., Study]:
    def study(protocol: Protocol, **settings: Any) -> Study:
        return study_of(tmp_path, checkpoint, causal, protocol, **settings)

    return study


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"

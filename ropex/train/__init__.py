"""Fine-tune patched models with any trainer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ropex.attention.shifted import shift_attention as shift_attention
    from ropex.train.chunked_loss import chunk_loss as chunk_loss
    from ropex.train.collators import PackedCollator as PackedCollator
    from ropex.train.collators import PlainCollator as PlainCollator
    from ropex.train.collators import PositionCollator as PositionCollator
    from ropex.train.collators import isolates as isolates
    from ropex.train.guard import RopeChanged as RopeChanged
    from ropex.train.guard import RopeGuard as RopeGuard
    from ropex.train.positions import CREAM as CREAM
    from ropex.train.positions import PoSE as PoSE
    from ropex.train.positions import RandomPositions as RandomPositions

_HOMES = {
    "chunk_loss": "train.chunked_loss",
    "PackedCollator": "train.collators",
    "PlainCollator": "train.collators",
    "PositionCollator": "train.collators",
    "isolates": "train.collators",
    "RopeChanged": "train.guard",
    "RopeGuard": "train.guard",
    "CREAM": "train.positions",
    "PoSE": "train.positions",
    "RandomPositions": "train.positions",
    "shift_attention": "attention.shifted",
}
__all__ = sorted(_HOMES)


def __dir__() -> list[str]:
    """The public names, for completion."""
    return list(__all__)


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that listing recipes is fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ropex.train' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ropex.{_HOMES[name]}"), name)

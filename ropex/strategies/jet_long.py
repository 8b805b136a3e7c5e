"""Jet-Long: far keys in groups whose size follows the length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ropex.positions import At, PositionMap, Region
from ropex.rope import Rope
from ropex.strategies.mapped import Mapped, Window, require_window, tokens

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class JetLong(Mapped):
    """Keys beyond the window `w` are seen at the distance `floor(m / G) - floor(n / G)`.

    Jet-Long (arXiv:2607.07740): Self-Extend without its shift, and with `G = ceil(length / L)` in a
    model trained at `L`. The published code takes the length of the whole call, so the same text
    read in two calls gives different keys; here each query has the `G` of its own position.

    Args:
        near: `w`, as a share of the trained length or in tokens; published for Qwen3, trained at
            32k, with 2k.
    """

    name: ClassVar[str] = "jet_long"
    paper: ClassVar[str] = "https://arxiv.org/abs/2607.07740"

    near: Window = 0.0625

    def __post_init__(self) -> None:
        require_window(self, "near")

    def map(self, rope: Rope) -> PositionMap:
        """Two regions: near ones as they are, far ones in groups."""
        return _ByLength(tokens(self, "near", rope), rope.trained_length)


@dataclass(frozen=True)
class _ByLength(PositionMap):
    near: int
    trained: int

    def level(self, positions: Tensor) -> Tensor:
        group = positions.div(self.trained, rounding_mode="floor") + 1
        return group.where(group > 1, 0)

    def regions(self, level: int) -> tuple[Region, ...]:
        grouped = At(group=level)
        return Region(far=self.near), Region(grouped, grouped, near=self.near)

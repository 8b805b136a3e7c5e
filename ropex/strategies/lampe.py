"""LaMPE: far keys share a budget of positions that grows with the length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ropex.positions import At, PositionMap, Region
from ropex.rope import Rope
from ropex.strategies.base import require, require_positive
from ropex.strategies.mapped import Mapped, Window, require_window, tokens

_STEPS = 8  # lengths that are told apart, in a trained length

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LaMPE(Mapped):
    """Keys within the window are seen at their distance, others within a budget of `U` positions.

    LaMPE (arXiv:2508.02308): a far key at `n` of a text of `N` tokens is seen at
    `floor(U n / (N - 1))`, with a query that continues the window, and
    `U = c / (1 + exp(-(a N / L - b)))` of a model trained at `L`, a curve that is fitted to what a
    model can use. The default is their fit for Llama 3 8B, in shares of its trained length. Their
    code takes the length of the call; here each query has the length of the text up to it, rounded
    up to an eighth of `L`, so a text may be cut into calls in any way. The temperature of their
    code is `temperature:1.0693` here.

    Args:
        near: The window, as a share of the trained length or in tokens.
        slope: `a`.
        offset: `b`.
        most: `c`, the largest budget, as a share of the trained length.
    """

    name: ClassVar[str] = "lampe"
    paper: ClassVar[str] = "https://arxiv.org/abs/2508.02308"

    near: Window = 0.0625
    slope: float = 0.8596
    offset: float = 2.46664
    most: float = 0.75737

    def __post_init__(self) -> None:
        require_window(self, "near")
        require_positive(self, "slope", "offset")
        require(self, "most", 0 < self.most <= 1, "above 0 up to 1")

    def map(self, rope: Rope) -> PositionMap:
        """Two regions: near ones as they are, far ones within the budget."""
        near = tokens(self, "near", rope)
        return _Budgets(near, rope.trained_length, self.slope, self.offset, self.most)


@dataclass(frozen=True)
class _Budgets(PositionMap):
    near: int
    trained: int
    slope: float
    offset: float
    most: float

    def level(self, positions: Tensor) -> Tensor:
        length = (positions + 1) * _STEPS
        found = (length + self.trained - 1).div(self.trained, rounding_mode="floor")
        return found.where(positions >= self.trained, 0)

    def regions(self, level: int) -> tuple[Region, ...]:
        length = level * self.trained // _STEPS
        share = self.most / (1 + math.exp(self.offset - self.slope * level / _STEPS))
        rate = share * self.trained / (length - 1)
        shift = self.near - math.floor(rate * self.near)
        return Region(far=self.near), Region(
            At(rate, shift, whole=True), At(rate, whole=True), near=self.near
        )

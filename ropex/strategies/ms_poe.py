"""Ms-PoE: each head reads at a scale of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ropex.positions import PositionMap, Region
from ropex.rope import Rope
from ropex.strategies.base import require
from ropex.strategies.mapped import FromFirst, Mapped

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MsPoE(Mapped):
    """Head `h` of `H` sees distances divided by a ratio from `low` to `high`, in even steps.

    Zhang et al. (arXiv:2403.04797): linear interpolation by head, against "lost in the middle".
    Their code orders the heads by outliers of the attention in the first call; here they have the
    order that they stand in. Heads that share a key share its ratio: the code gives queries
    of such heads other ratios than their key, which is no relative position any more.

    Args:
        low: Ratio of the first head.
        high: Ratio of the last head.
    """

    name: ClassVar[str] = "ms_poe"
    paper: ClassVar[str] = "https://arxiv.org/abs/2403.04797"

    low: float = 1.2
    high: float = 1.8

    def __post_init__(self) -> None:
        require(self, "high", 1 <= self.high <= 2**20, "from 1 to 2**20")
        require(self, "low", 1 <= self.low <= self.high, "from 1 to high")

    def map(self, rope: Rope) -> PositionMap:
        """One region, in which heads differ."""
        return _ByHead(self.first(rope), self.low, self.high)

    def scale(self, rope: Rope) -> float:
        """What the head with the smallest ratio reaches."""
        return self.low


@dataclass(frozen=True)
class _ByHead(FromFirst):
    low: float
    high: float

    def regions(self, level: int) -> tuple[Region, ...]:
        place = _Divided(self.low, self.high)
        return (Region(place, place),)


@dataclass(frozen=True)
class _Divided:
    low: float
    high: float

    def __call__(self, positions: Tensor, pairs: int, heads: int) -> Tensor:
        import torch

        ratios = torch.linspace(
            self.low, self.high, heads, dtype=torch.float64, device=positions.device
        )
        return positions.double()[None, :, None] / ratios[:, None, None]

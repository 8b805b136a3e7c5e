"""DPE: Self-Extend with a group size for each range of frequencies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ropex.positions import PositionMap, Region
from ropex.rope import Rope
from ropex.strategies.base import require
from ropex.strategies.mapped import FromFirst, Mapped, Window, require_window, tokens

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DPE(Mapped):
    """Self-Extend whose far pairs of dimensions have group sizes of their own, fastest first.

    Lu et al. (arXiv:2504.18857): each range of frequencies has a longest distance at which it still
    works, found by measuring a model. Their sizes for Llama 3 8B are the default (the repository's
    README and results; its config file has others); `search` your own. They move only the 48 pairs
    of each head with the largest products, of 64; here all of them move.

    Args:
        groups: A group size for each range, from the fastest pairs to the slowest.
        near: The window, as a share of the trained length or in tokens.
    """

    name: ClassVar[str] = "dpe"
    paper: ClassVar[str] = "https://arxiv.org/abs/2504.18857"

    groups: tuple[float, ...] = (4, 4, 2, 16, 32, 32, 16, 128)
    near: Window = 0.125

    def __post_init__(self) -> None:
        require_window(self, "near")
        whole = all(1 <= each <= 2**20 and each == int(each) for each in self.groups)
        require(self, "groups", bool(self.groups) and whole, "whole numbers above 0, as 2/8/4")

    def map(self, rope: Rope) -> PositionMap:
        """Two regions: near ones as they are, far ones in groups.

        Raises:
            ValueError: There are more ranges than pairs.
        """
        allowed = f"at most {rope.dim // 2} sizes, one for each pair"
        require(self, "groups", len(self.groups) <= rope.dim // 2, allowed)
        groups = tuple(int(each) for each in self.groups)
        return _Ranges(self.first(rope), tokens(self, "near", rope), groups)


@dataclass(frozen=True)
class _Ranges(FromFirst):
    near: int
    groups: tuple[int, ...]

    def regions(self, level: int) -> tuple[Region, ...]:
        shifts = tuple(self.near - self.near // group for group in self.groups)
        zeros = (0,) * len(self.groups)
        far = Region(_ByRange(self.groups, shifts), _ByRange(self.groups, zeros), near=self.near)
        return Region(far=self.near), far


@dataclass(frozen=True)
class _ByRange:
    """`floor(x / group) + shift`, with a group for each range of pairs."""

    groups: tuple[int, ...]
    shifts: tuple[int, ...]

    def __call__(self, positions: Tensor, pairs: int, heads: int) -> Tensor:
        import torch

        device = positions.device
        ranges = torch.arange(pairs, device=device) * len(self.groups) // pairs
        group = torch.tensor(self.groups, device=device)[ranges]
        shift = torch.tensor(self.shifts, device=device)[ranges]
        grouped = positions[None, :, None].div(group, rounding_mode="floor")
        return (grouped + shift).double()

"""Turn queries and keys that are rotated already, to other positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ropex.positions import Place

Layout: TypeAlias = Literal["halves", "neighbours"]
"""Whether the two of a pair are half the rotated dimensions apart, or neighbours."""


@dataclass(frozen=True, eq=False)
class Turn:
    """How the attention of a layer holds rotated states; rotations of a pair add up.

    Attributes:
        inv_freq: Radians per position of each pair, `(pairs,)`, float64.
        layout: Where the two of a pair are.
        start: The first dimension that is rotated.
        sign: -1 if the model turns the other way.
    """

    inv_freq: Tensor
    layout: Layout = "halves"
    start: int = 0
    sign: int = 1

    def tables(
        self, place: Place, positions: Tensor, heads: int, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cos and sin that turn states from where they stand to a place.

        Args:
            place: Where to.
            positions: Where they stand, `(tokens,)`, int64.
            heads: Heads of keys.
            like: Tells dtype and device.

        Returns:
            Two of `(heads or 1, tokens, pairs)`.
        """
        moved = place(positions, len(self.inv_freq), heads) - positions[None, :, None]
        angles = self.sign * moved * self.inv_freq.to(positions.device)
        return angles.cos().to(like), angles.sin().to(like)

    def __call__(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Turned states.

        Args:
            states: `(batch, heads, tokens, dim)`.
            cos: `(heads, tokens, pairs)`, or what broadcasts to it.
            sin: Likewise.
        """
        end = self.start + 2 * len(self.inv_freq)
        before, turned, after = states.tensor_split((self.start, end), dim=-1)
        if self.layout == "halves":
            one, other = turned.chunk(2, dim=-1)
        else:
            one, other = turned[..., 0::2], turned[..., 1::2]
        both = one * cos - other * sin, other * cos + one * sin
        if self.layout == "halves":
            return torch.cat([before, *both, after], -1)
        return torch.cat([before, torch.stack(both, -1).flatten(-2), after], -1)

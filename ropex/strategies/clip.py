"""CoPE: the slowest pairs fade out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from ropex.rope import Plan, Rope
from ropex.strategies.base import Length, Strategy, require


@dataclass(frozen=True)
class Clip(Strategy):
    """Fade out the slowest pairs: their frequencies fall to 0 along half a cosine.

    "CoPE: Clipped RoPE" (arXiv:2602.05258) and the authors' code. It removes the pairs that would
    see untrained angles; combine it with a scaling, as in `ntk:2+clip:20`. (Not to be confused with
    CoPE, contextual position encoding.)

    Args:
        pairs: Number of pairs, from the slowest; the authors take 20 of 64.
        hard: Set them all to 0 instead, with a step (HardClip).
    """

    name: ClassVar[str] = "clip"
    aliases: ClassVar[tuple[str, ...]] = ("cope",)
    paper: ClassVar[str] = "https://arxiv.org/abs/2602.05258"

    pairs: int = 20
    hard: bool = False

    def __post_init__(self) -> None:
        require(self, "pairs", self.pairs >= 1, "at least 1")
        require(self, "pairs", self.pairs > 1 or self.hard, "at least 2, or hard")

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Multiply the last `pairs` frequencies by `(1 + cos(pi j / (pairs - 1))) / 2`, or by 0.

        Raises:
            ValueError: The model does not rotate so many pairs.
        """
        kept = rope.dim // 2 - self.pairs
        if kept < 0:
            raise ValueError(
                f"{self}: the model rotates {rope.dim // 2} pairs, so it cannot lose {self.pairs}"
            )
        done = (rope.pairs - kept).clamp(min=0) / max(self.pairs - 1, 1)
        fading = (1 + (math.pi * done).cos()) / 2
        window = (rope.pairs < kept).double() if self.hard else fading
        return replace(plan, inv_freq=plan.inv_freq * window)

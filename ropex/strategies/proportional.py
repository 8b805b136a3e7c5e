"""p-RoPE: only the fast pairs turn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ropex.rope import Plan, Rope
from ropex.strategies.base import Length, Strategy, require


@dataclass(frozen=True)
class Proportional(Strategy):
    """Keep the first share of the pairs, and stop the others, which then carry no position.

    Barbero et al., "Round and Round We Go! What makes Rotary Positional Encodings useful?"
    (arXiv:2410.06205), p-RoPE; `proportional` in transformers (Gemma 4). Made for training: the
    slow pairs of a model that was trained with them carry information.

    Args:
        p: Share of the pairs that keep turning, above 0 and at most 1.
    """

    name: ClassVar[str] = "proportional"
    aliases: ClassVar[tuple[str, ...]] = ("p_rope",)
    paper: ClassVar[str] = "https://arxiv.org/abs/2410.06205"

    p: float = 0.25

    def __post_init__(self) -> None:
        require(self, "p", 0 < self.p <= 1, "above 0 and at most 1")

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Set the frequencies after the first `p * dim / 2` to 0."""
        kept = rope.pairs < int(self.p * rope.dim // 2)
        return replace(plan, inv_freq=plan.inv_freq * kept)

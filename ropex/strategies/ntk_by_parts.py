"""NTK-by-parts: interpolate the slow pairs, keep the fast ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ropex.rope import Plan, Rope
from ropex.strategies.base import LARGEST, Length, Scaled, require, require_positive

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class NtkByParts(Scaled):
    """Interpolate pairs that turn rarely over the trained length, keep those that turn often.

    Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models"
    (arXiv:2309.00071), definition 2: the share of the old frequency grows linearly with the
    number of turns, from none at `alpha` to all at `beta`. No temperature. (The authors' code,
    which `yarn` follows, has a ramp that is linear in the index of the pair instead.)

    Args:
        factor: Target length over trained length, at least 1.
        length: Target length in tokens, instead of `factor`.
        alpha: Pairs that make fewer turns than this are divided by the factor.
        beta: Pairs that make more turns than this keep their frequency; at `alpha`, there is a
            step instead of a ramp.
    """

    name: ClassVar[str] = "ntk_by_parts"
    aliases: ClassVar[tuple[str, ...]] = ("by_parts",)
    paper: ClassVar[str] = "https://arxiv.org/abs/2309.00071"

    alpha: float = 1.0
    beta: float = 32.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "alpha")
        require(self, "beta", self.alpha <= self.beta <= LARGEST, f"at least alpha, {self.alpha}")

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Blend each frequency with its interpolation, by turns over the trained length."""
        turns = plan.inv_freq * rope.trained_length / (2 * math.pi)
        kept = self._kept(turns)
        return replace(plan, inv_freq=plan.inv_freq * (kept + (1 - kept) / self.scale(rope)))

    def _kept(self, turns: Tensor) -> Tensor:
        """The share of the old frequency that each pair keeps."""
        if self.alpha == self.beta:
            return (turns >= self.beta).to(turns.dtype)
        return ((turns - self.alpha) / (self.beta - self.alpha)).clamp(0, 1)

    def native(self, rope: Rope) -> dict[str, Any]:
        """The `llama3` type, which is this method with its bounds as parameters."""
        return {
            "rope_type": "llama3",
            "factor": self.scale(rope),
            "low_freq_factor": float(self.alpha),
            "high_freq_factor": float(self.beta),
            "original_max_position_embeddings": rope.trained_length,
        }

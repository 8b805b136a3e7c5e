"""Linear (position) interpolation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ropex.rope import Plan, Rope
from ropex.strategies.base import Length, Scaled


@dataclass(frozen=True)
class Linear(Scaled):
    """Divide every frequency by the factor, as if positions were that much closer together.

    Chen et al., "Extending Context Window of Large Language Models via Position Interpolation"
    (arXiv:2306.15595), equation 4. Needs fine-tuning beyond a factor of about 2.

    Args:
        factor: Target length over trained length, at least 1.
        length: Target length in tokens, instead of `factor`.
    """

    name: ClassVar[str] = "linear"
    aliases: ClassVar[tuple[str, ...]] = ("pi",)
    paper: ClassVar[str] = "https://arxiv.org/abs/2306.15595"

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Divide the frequencies by the factor."""
        return replace(plan, inv_freq=plan.inv_freq / self.scale(rope))

    def native(self, rope: Rope) -> dict[str, Any]:
        """The `linear` type."""
        return {"rope_type": "linear", "factor": self.scale(rope)}

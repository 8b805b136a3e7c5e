"""Dynamic linear interpolation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ropex.rope import Plan, Rope
from ropex.strategies.base import Length, PerLength


@dataclass(frozen=True)
class DynamicLinear(PerLength):
    """Interpolate linearly by a factor that grows with the sequence: length over trained length.

    emozilla, "Dynamically Scaled RoPE further increases performance of long context LLaMA with zero
    fine-tuning" (2023). A key-value cache cannot be continued beyond the trained length; see
    `dynamic`.

    Args:
        length: Treat every sequence as one of this many tokens.
    """

    name: ClassVar[str] = "dynamic_linear"
    aliases: ClassVar[tuple[str, ...]] = ("dynamic_pi",)
    paper: ClassVar[str] = "https://www.reddit.com/r/LocalLLaMA/comments/14mrgpr/"

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Divide the frequencies by the growth."""
        return replace(plan, inv_freq=plan.inv_freq / self.growth(rope, length))

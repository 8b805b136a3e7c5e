"""Entropy-aware ABF: a larger base, and log-n attention but for the first layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ropex.rope import Plan, Rope
from ropex.strategies.base import Length, Strategy, require, require_length
from ropex.strategies.logn import LogScale, scale_queries
from ropex.strategies.theta import base_ratio, require_base


@dataclass(frozen=True)
class Eabf(Strategy):
    """Use a base of 500,000, and multiply queries by `ln(n) / ln(L)` from the third layer on.

    Zhang et al., "Extending LLMs' Context Window with 100 Samples" (arXiv:2401.07004). Made for a
    short fine-tuning. (The authors' released code scales all layers, as `skip_layers=0` does.)

    Args:
        base: The new base, above 1.
        length: `L`, the tokens up to which queries are not scaled; by default the trained length.
        skip_layers: Number of first layers whose queries are not scaled.
    """

    name: ClassVar[str] = "eabf"
    paper: ClassVar[str] = "https://arxiv.org/abs/2401.07004"

    base: float = 5e5
    length: int | None = None
    skip_layers: int = 2

    def __post_init__(self) -> None:
        require_base(self)
        require(self, "skip_layers", self.skip_layers >= 0, "at least 0")
        require_length(self)

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Change the base as `theta` does, and scale the queries as `logn` does."""
        plan = replace(plan, inv_freq=plan.inv_freq * base_ratio(rope, self.base))
        scale = LogScale(self.length or rope.trained_length, self.skip_layers)
        return scale_queries(self, plan, scale)

    def native(self, rope: Rope) -> dict[str, Any]:
        """The `default` type with this base."""
        return {"rope_type": "default", "rope_theta": float(self.base)}

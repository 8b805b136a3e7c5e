"""No scaling: the baseline that every other strategy is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ropex.rope import Plan, Rope
from ropex.strategies.base import Length, Strategy


@dataclass(frozen=True)
class Unscaled(Strategy):
    """Leave the rotary embedding as it was trained.

    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (arXiv:2104.09864).
    """

    name: ClassVar[str] = "none"
    aliases: ClassVar[tuple[str, ...]] = ("default",)
    paper: ClassVar[str] = "https://arxiv.org/abs/2104.09864"
    changes_frequencies: ClassVar[bool] = False

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Return `plan` as it is."""
        return plan

    def native(self, rope: Rope) -> dict[str, Any]:
        """Nothing to write."""
        return {}

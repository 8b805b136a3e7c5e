"""The power and the truncated basis of Giraffe."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from ropex.rope import Plan, Rope
from ropex.strategies.base import SMALLEST, Length, Strategy, require, require_length


@dataclass(frozen=True)
class GiraffePower(Strategy):
    """Multiply pair `i` by `(1 - 2 i / dim) ** power`, so that slow pairs are slowed most.

    Pal et al., "Giraffe: Adventures in Expanding Context Lengths in LLMs" (arXiv:2308.10882),
    section 3, power scaling. Made for fine-tuning.

    Args:
        power: `k`, above 0 and at most 16.
    """

    name: ClassVar[str] = "giraffe_power"
    paper: ClassVar[str] = "https://arxiv.org/abs/2308.10882"

    power: float

    def __post_init__(self) -> None:
        require(self, "power", SMALLEST <= self.power <= 16, f"above 0: from {SMALLEST:g} to 16")

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Multiply pair `i` by `(1 - 2 i / dim) ** power`."""
        left = 1 - 2 * rope.pairs / rope.dim
        return replace(plan, inv_freq=plan.inv_freq * left**self.power)


@dataclass(frozen=True)
class GiraffeTruncated(Strategy):
    """Keep the fast pairs, give the middle ones one slow frequency, and stop the slow ones.

    Pal et al., "Giraffe: Adventures in Expanding Context Lengths in LLMs" (arXiv:2308.10882),
    section 3, truncated basis, with the constants of the authors' code. Made for fine-tuning.

    Args:
        length: Wavelength in tokens up to which pairs are kept. Pairs of up to 8 times that
            wavelength get 16 times that wavelength; slower ones do not turn.
    """

    name: ClassVar[str] = "giraffe_truncated"
    paper: ClassVar[str] = "https://arxiv.org/abs/2308.10882"

    length: int

    def __post_init__(self) -> None:
        require_length(self)

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Keep, replace or stop each pair by its frequency."""
        cutoff, inv_freq = 2 * math.pi / self.length, plan.inv_freq
        slow = inv_freq.new_full(inv_freq.shape, cutoff / 16).where(inv_freq >= cutoff / 8, 0.0)
        return replace(plan, inv_freq=inv_freq.where(inv_freq >= cutoff, slow))

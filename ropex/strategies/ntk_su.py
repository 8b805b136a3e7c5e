"""Su Jianlin's two forms of NTK-aware scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from ropex.rope import Plan, Rope
from ropex.strategies.base import Length, Scaled, require_positive


@dataclass(frozen=True)
class NtkFixed(Scaled):
    """Stretch pair `i` by `factor ** ((2 i + 2) / dim)`: the slowest by the factor, others by less.

    Su Jianlin, "Transformer upgrade 11: beta-based positional encoding" (2023), where positions
    are numbers in a base. `ntk` in vLLM. Unlike bloc97's `ntk`, it stretches the fastest pair too.

    Args:
        factor: Target length over trained length, at least 1.
        length: Target length in tokens, instead of `factor`.
    """

    name: ClassVar[str] = "ntk_fixed"
    aliases: ClassVar[tuple[str, ...]] = ("su_ntk",)
    paper: ClassVar[str] = "https://kexue.fm/archives/9706"

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Divide pair `i` by `factor ** ((2 i + 2) / dim)`."""
        exponents = 2 * (rope.pairs + 1) / rope.dim
        return replace(plan, inv_freq=plan.inv_freq * self.scale(rope) ** -exponents)


@dataclass(frozen=True)
class NtkMixed(Scaled):
    """Stretch the pairs in a base whose digits grow: the fast ones less than `ntk_fixed` does.

    Su Jianlin, "Transformer upgrade 11: beta-based positional encoding" (2023): frequency times
    `exp(-a (i + 1) ** beta)` with `a = ln(factor) / (dim / 2) ** beta`. `ntk` with `mixed_b` in
    vLLM.

    Args:
        factor: Target length over trained length, at least 1.
        length: Target length in tokens, instead of `factor`.
        beta: Growth of the stretch with the pair: 0.625 in the article, 0.75 in the author's code;
            1 is `ntk_fixed`.
    """

    name: ClassVar[str] = "ntk_mixed"
    aliases: ClassVar[tuple[str, ...]] = ("su_mixed",)
    paper: ClassVar[str] = "https://kexue.fm/archives/9706"

    beta: float = 0.625

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "beta")

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Multiply pair `i` by `exp(-a (i + 1) ** beta)`."""
        places = (rope.pairs + 1) / (rope.dim // 2)
        stretch = math.log(self.scale(rope)) * places**self.beta
        return replace(plan, inv_freq=plan.inv_freq * (-stretch).exp())

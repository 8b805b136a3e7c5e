"""The dynamic NTK scaling of the first Qwen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from ropex.rope import Plan, Rope
from ropex.strategies.base import Length, PerLength
from ropex.strategies.logn import LogScale, scale_queries
from ropex.strategies.ntk import ntk_ratio

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DynamicQwen(PerLength):
    """NTK-aware scaling in steps, 3 then 7 then 15 at each doubling, with log-n for the queries.

    The code released with Qwen-7B (2023): `alpha = 2 ** ceil(log2(l / L) + 1) - 1` for `l` tokens
    on a trained length of `L`, at least 1, and queries times `ln(n) / ln(L)`. A key-value cache
    cannot be continued beyond the trained length; see `dynamic`.

    Args:
        logn: Scale the queries as well.
        length: Treat every sequence as one of this many tokens.
    """

    name: ClassVar[str] = "dynamic_qwen"
    aliases: ClassVar[tuple[str, ...]] = ("qwen_ntk",)
    paper: ClassVar[str] = "https://github.com/QwenLM/Qwen"

    logn: bool = field(default=True, kw_only=True)

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Stretch as `ntk` does, with alpha as the factor."""
        ratio = ntk_ratio(rope, self.alpha(rope, length))
        plan = replace(plan, inv_freq=plan.inv_freq * ratio)
        return scale_queries(self, plan, LogScale(rope.trained_length)) if self.logn else plan

    def alpha(self, rope: Rope, length: Length) -> Tensor:
        """Stretch of the slowest pair, 0-dimensional, float64: 1, 3, 7, 15, ..."""
        return 2 ** (self.growth(rope, length).log2() + 1).ceil() - 1

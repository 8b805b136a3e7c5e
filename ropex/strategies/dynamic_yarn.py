"""Dynamic YaRN."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ropex.rope import Plan, Rope
from ropex.strategies.attention_factors import yarn_temperature
from ropex.strategies.base import Length, PerLength
from ropex.strategies.yarn import band, linear_ramp, require_band


@dataclass(frozen=True)
class DynamicYarn(PerLength):
    """YaRN by a factor that grows with the sequence: nothing changes within the trained length.

    Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models"
    (arXiv:2309.00071), section 3.3, and the authors' code: `yarn` with the length over the trained
    length as its factor, temperature included. A key-value cache cannot be continued beyond the
    trained length; see `dynamic`.

    Args:
        beta_fast: Pairs that make more turns than this over the trained length keep their
            frequency.
        beta_slow: Pairs that make fewer turns than this are divided by the growth.
        truncate: Round the bounds of the ramp to whole pairs.
        length: Treat every sequence as one of this many tokens.
    """

    name: ClassVar[str] = "dynamic_yarn"
    paper: ClassVar[str] = "https://arxiv.org/abs/2309.00071"

    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_band(self)

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Blend as `yarn` does, with the growth as the factor."""
        bounds = band(rope, self.beta_fast, self.beta_slow, self.truncate, rope.trained_length)
        share, growth = linear_ramp(rope, *bounds), self.growth(rope, length)
        scale = plan.attention_scale * yarn_temperature(growth)
        return replace(
            plan,
            inv_freq=plan.inv_freq * (share / growth + (1 - share)),
            attention_scale=float(scale) if isinstance(length, int) or self.length else scale,
        )

"""YaRN: by-parts interpolation and a temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ropex.rope import Plan, Rope
from ropex.strategies.base import Length, Scaled, require


@dataclass(frozen=True)
class Yarn(Scaled):
    """Interpolate the slow pairs, keep the fast ones, and sharpen attention.

    Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models"
    (arXiv:2309.00071), sections 3.2 and 3.4, in the convention of the authors' code and of
    transformers: the ramp is linear in the index of the pair, between bounds that are floored and
    ceiled, and blends frequencies. (`ntk_by_parts` has the ramp that the paper defines.)

    Args:
        factor: Target length over trained length, at least 1.
        length: Target length in tokens, instead of `factor`.
        beta_fast: Pairs that make more turns than this over the trained length keep their
            frequency.
        beta_slow: Pairs that make fewer turns than this are divided by the factor.
        truncate: Round the bounds of the ramp to whole pairs; gpt-oss does not.
        attention_factor: Multiplies cos and sin; by default `0.1 ln(factor) + 1`.
    """

    name: ClassVar[str] = "yarn"
    paper: ClassVar[str] = "https://arxiv.org/abs/2309.00071"

    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "beta_slow", self.beta_slow > 0, "above 0")
        above = f"above beta_slow, {self.beta_slow}"
        require(self, "beta_fast", self.beta_slow < self.beta_fast < math.inf, above)
        if self.attention_factor is not None:
            require(self, "attention_factor", 0 < self.attention_factor < math.inf, "above 0")

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Blend each frequency with its interpolation, by index, and multiply the temperature."""
        low, high = self.bounds(rope)
        pairs = torch.arange(rope.dim // 2, dtype=torch.float64)
        interpolated = ((pairs - low) / (high - low)).clamp(0, 1)
        blend = interpolated / self.scale(rope) + (1 - interpolated)
        return replace(
            plan,
            inv_freq=plan.inv_freq * blend,
            attention_scale=plan.attention_scale * self.temperature(rope),
        )

    def bounds(self, rope: Rope) -> tuple[float, float]:
        """First and last pair of the ramp, as indices, with the authors' clamps."""
        low, high = (pair_of(rope, turns) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rope.dim - 1)
        return low, high if low != high else high + 0.001

    def temperature(self, rope: Rope) -> float:
        """Factor of cos and sin (the paper's `sqrt(1 / t)`, equation 22)."""
        if self.attention_factor is not None:
            return float(self.attention_factor)
        return 0.1 * math.log(self.scale(rope)) + 1

    def native(self, rope: Rope) -> dict[str, Any]:
        """The `yarn` type."""
        entry: dict[str, Any] = {
            "rope_type": "yarn",
            "factor": self.scale(rope),
            "original_max_position_embeddings": rope.trained_length,
            "beta_fast": float(self.beta_fast),
            "beta_slow": float(self.beta_slow),
        }
        if not self.truncate:
            entry["truncate"] = False
        if self.attention_factor is not None:
            entry["attention_factor"] = float(self.attention_factor)
        return entry


def pair_of(rope: Rope, turns: float) -> float:
    """Index, with a fraction, of the pair that makes `turns` over the trained length."""
    return (
        rope.dim * math.log(rope.trained_length / (2 * math.pi * turns)) / (2 * math.log(rope.base))
    )

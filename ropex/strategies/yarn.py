"""YaRN: by-parts interpolation and a temperature, in all conventions in use."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ropex.rope import Plan, Rope
from ropex.sizes import LONGEST
from ropex.strategies.attention_factors import yarn_quotient, yarn_temperature
from ropex.strategies.base import LARGEST, Length, Scaled, require, require_positive, require_scale

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Yarn(Scaled):
    """Interpolate the slow pairs, keep the fast ones, and sharpen attention.

    Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models"
    (arXiv:2309.00071), sections 3.2 and 3.4. The defaults are the convention of the authors' code
    and of transformers: a ramp that is linear in the index of the pair, between bounds that are
    floored and ceiled, and a blend of frequencies. The other parameters cover what other
    implementations call YaRN; their frequencies differ by up to 87 % in the middle pairs.

    Args:
        factor: Target length over trained length, at least 1.
        length: Target length in tokens, instead of `factor`.
        beta_fast: Pairs that make more turns than this over the trained length keep their
            frequency.
        beta_slow: Pairs that make fewer turns than this are divided by the factor.
        truncate: Round the bounds of the ramp to whole pairs; gpt-oss does not.
        ramp: What the share of interpolation is linear in: the `index` of the pair (code), or its
            `rotations` over the trained length (the paper's definition 2).
        blend: What is mixed: `frequency` (code), `wavelength` (the paper's footnote 4, PoSE), or
            the `log` of either (Grok, MrRoPE).
        clamp: Upper limit of the ramp's end: `dim` - 1 (code), or the last of the `pairs`.
        range_length: Tokens over which turns are counted; by default the trained length.
        attention_factor: What cos and sin are multiplied by; by default `0.1 ln(factor) + 1`.
        mscale: With `mscale_all_dim`, cos and sin are multiplied by
            `(0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1)`, as in DeepSeek.
        mscale_all_dim: See `mscale`; latent attention also multiplies its logits by the square of
            the divisor.
    """

    name: ClassVar[str] = "yarn"
    paper: ClassVar[str] = "https://arxiv.org/abs/2309.00071"

    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    ramp: Literal["index", "rotations"] = "index"
    blend: Literal["frequency", "wavelength", "log"] = "frequency"
    clamp: Literal["dim", "pairs"] = "dim"
    range_length: int | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_scale(self, "attention_factor", "mscale", "mscale_all_dim")
        fits = self.range_length is None or 1 <= self.range_length <= LONGEST
        require(self, "range_length", fits, "above 0 and at most 2**40")
        require_band(self)
        if self.ramp == "rotations" and (not self.truncate or self.clamp != "dim"):
            raise ValueError(
                f"{self.name}: a ramp in rotations has no bounds in pairs to round or clamp"
            )
        if (self.mscale is None) != (self.mscale_all_dim is None):
            raise ValueError(f"{self.name}: mscale and mscale_all_dim are given together")
        if self.mscale is not None and self.attention_factor is not None:
            raise ValueError(f"{self.name}: attention_factor would overrule mscale; give one")

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Blend each frequency with its interpolation, and multiply the temperature."""
        return replace(
            plan,
            inv_freq=plan.inv_freq * self.ratio(rope, plan),
            attention_scale=plan.attention_scale * self.temperature(rope),
            softmax_scale=plan.softmax_scale * self.latent_temperature(rope),
        )

    def ratio(self, rope: Rope, plan: Plan) -> Tensor:
        """New frequency over old one of each pair, `(dim // 2,)`, float64."""
        share, scale = self.interpolated(rope, plan), self.scale(rope)
        if self.blend == "log":
            return scale**-share
        if self.blend == "wavelength":
            return 1 / (share * scale + (1 - share))
        return share / scale + (1 - share)

    def interpolated(self, rope: Rope, plan: Plan) -> Tensor:
        """Share of interpolation of each pair: 0 keeps it, 1 divides it by the factor."""
        if self.ramp == "index":
            return linear_ramp(rope, *self.bounds(rope))
        turns = plan.inv_freq * (self.range_length or rope.trained_length) / (2 * math.pi)
        return 1 - ((turns - self.beta_slow) / (self.beta_fast - self.beta_slow)).clamp(0, 1)

    def bounds(self, rope: Rope) -> tuple[float, float]:
        """First and last pair of the ramp, as indices; see `band`."""
        length = self.range_length or rope.trained_length
        low, high = band(rope, self.beta_fast, self.beta_slow, self.truncate, length)
        return low, min(high, rope.dim // 2 - 1) if self.clamp == "pairs" else high

    def temperature(self, rope: Rope) -> float:
        """Factor of cos and sin (the paper's `sqrt(1 / t)`, equation 22)."""
        if self.attention_factor is not None:
            return float(self.attention_factor)
        scale = self.scale(rope)
        if self.mscale is not None and self.mscale_all_dim is not None:
            return yarn_quotient(scale, self.mscale, self.mscale_all_dim)
        return yarn_temperature(scale)

    def latent_temperature(self, rope: Rope) -> float:
        """Factor of the logits of latent attention, as DeepSeek's code has it."""
        if self.mscale_all_dim is None:
            return 1.0
        mscale = yarn_temperature(self.scale(rope), self.mscale_all_dim)
        return mscale * mscale

    def native(self, rope: Rope) -> dict[str, Any]:
        """The `yarn` type; it is used only where it computes the same."""
        entry: dict[str, Any] = {
            "rope_type": "yarn",
            "factor": self.scale(rope),
            "original_max_position_embeddings": rope.trained_length,
            "beta_fast": float(self.beta_fast),
            "beta_slow": float(self.beta_slow),
        }
        if not self.truncate:
            entry["truncate"] = False
        if self.attention_factor is not None or self.mscale is not None:
            entry["attention_factor"] = self.temperature(rope)
        if self.mscale is not None:  # read by latent attention only
            entry |= {"mscale": self.mscale, "mscale_all_dim": self.mscale_all_dim}
        return entry


def require_band(strategy: Any) -> None:
    """Raise a ValueError unless `beta_slow` and `beta_fast` bound a band."""
    require_positive(strategy, "beta_slow")
    above = f"above beta_slow, {strategy.beta_slow}"
    require(strategy, "beta_fast", strategy.beta_slow < strategy.beta_fast <= LARGEST, above)


def band(
    rope: Rope, beta_fast: float, beta_slow: float, truncate: bool, length: int
) -> tuple[float, float]:
    """Indices of the pairs that make `beta_fast` and `beta_slow` turns, with the authors' clamps.

    Args:
        rope: Gives base and dim.
        beta_fast: Turns at the first pair of the band.
        beta_slow: Turns at the last.
        truncate: Round outwards to whole pairs.
        length: Tokens that turns are counted over.
    """
    low, high = (pair_of(rope, turns, length) for turns in (beta_fast, beta_slow))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0), min(high, rope.dim - 1)


def linear_ramp(rope: Rope, low: float, high: float) -> Tensor:
    """From 0 at pair `low` to 1 at pair `high`, `(dim // 2,)`, float64."""
    if low == high:
        high += 0.001  # as in the authors' code: a step, and no division by 0
    return ((rope.pairs - low) / (high - low)).clamp(0, 1)


def pair_of(rope: Rope, turns: float, length: int) -> float:
    """Index, with a fraction, of the pair that makes `turns` over `length` tokens."""
    return rope.dim * math.log(length / (2 * math.pi * turns)) / (2 * math.log(rope.base))

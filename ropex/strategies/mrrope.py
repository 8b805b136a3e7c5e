"""MrRoPE: the band between kept and interpolated pairs as digits of a mixed radix."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from ropex.rope import Plan, Rope
from ropex.strategies.attention_factors import yarn_temperature
from ropex.strategies.base import Length, Scaled, require_scale
from ropex.strategies.yarn import band, require_band

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MrRope(Scaled):
    """Spread the factor over the pairs of YaRN's band, each multiplying the stretch by its radix.

    "MrRoPE: Mixed-radix Rotary Position Embedding" (arXiv:2601.22181) and the authors' code. With
    `k` of the `K` steps of the band done, the stretch is the factor to the power of a share:
    `k (k + 1) / (K (K + 1))` if the radix grows (`progressive`, their MrRoPE-Pro), `k / K` if all
    are equal (`uniform`, MrRoPE-Uni), `k (2 K + 1 - k) / (K (K + 1))` if it falls (`degressive`).

    Args:
        factor: Target length over trained length, at least 1.
        length: Target length in tokens, instead of `factor`.
        radix: How the stretch is spread over the band.
        beta_fast: Turns over the trained length at the fast end of the band.
        beta_slow: Turns at its slow end.
        attention_factor: What cos and sin are multiplied by; by default as in `yarn`.
    """

    name: ClassVar[str] = "mrrope"
    aliases: ClassVar[tuple[str, ...]] = ("mrrope_pro", "yarn_radix")
    paper: ClassVar[str] = "https://arxiv.org/abs/2601.22181"

    radix: Literal["progressive", "uniform", "degressive"] = "progressive"
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_scale(self, "attention_factor")
        require_band(self)

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Divide each frequency by its stretch, and multiply the temperature."""
        scale = self.scale(rope)
        temperature = self.attention_factor or yarn_temperature(scale)
        return replace(
            plan,
            inv_freq=plan.inv_freq * scale ** -self.share(rope),
            attention_scale=plan.attention_scale * temperature,
        )

    def share(self, rope: Rope) -> Tensor:
        """Share of the logarithm of the factor that each pair is stretched by, 0 to 1."""
        low, high = band(rope, self.beta_fast, self.beta_slow, True, rope.trained_length)
        steps = max(high - low, 1)
        done = (rope.pairs - low).clamp(0, steps)
        if self.radix == "uniform":
            return done / steps
        weight = done + 1 if self.radix == "progressive" else 2 * steps + 1 - done
        return done * weight / (steps * (steps + 1))


@dataclass(frozen=True)
class MrRopeUniform(MrRope):
    """MrRoPE with equal radices: the stretch grows by the same ratio from pair to pair.

    MrRoPE-Uni of "MrRoPE: Mixed-radix Rotary Position Embedding" (arXiv:2601.22181). The
    parameters are those of `mrrope`.
    """

    name: ClassVar[str] = "mrrope_uni"
    aliases: ClassVar[tuple[str, ...]] = ("mrrope_uniform",)

    radix: Literal["progressive", "uniform", "degressive"] = "uniform"

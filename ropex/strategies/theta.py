"""A different base: given, or the one at which the critical pair turns once over the target."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ropex.rope import Plan, Rope
from ropex.strategies.base import (
    LARGEST,
    Length,
    Scaled,
    Strategy,
    require,
    require_length,
    require_longer,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Theta(Strategy):
    """Use a given base (`rope_theta`), as models that continue training with a larger one do.

    "Adjusted base frequency" of Xiong et al., "Effective Long-Context Scaling of Foundation Models"
    (arXiv:2309.16039), section 2.1: 500,000 for Llama 2 at 32k. Made for further training: without
    it, `yarn` is better than a large base.

    Args:
        base: The new base, above 1.
        length: Target length in tokens; by default the trained length.
    """

    name: ClassVar[str] = "theta"
    aliases: ClassVar[tuple[str, ...]] = ("abf", "base")
    paper: ClassVar[str] = "https://arxiv.org/abs/2309.16039"

    base: float
    length: int | None = None

    def __post_init__(self) -> None:
        require_base(self)
        require_length(self)

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Multiply pair `i` by `(base / old base) ** (-2 i / dim)`.

        Raises:
            ValueError: The stated length is shorter than the trained length.
        """
        self.scale(rope)
        return replace(plan, inv_freq=plan.inv_freq * base_ratio(rope, self.base))

    def scale(self, rope: Rope) -> float:
        """The stated length over the trained length; 1 if none is stated."""
        if self.length is None:
            return 1.0
        require_longer(self, self.length, rope)
        return self.length / rope.trained_length

    def native(self, rope: Rope) -> dict[str, Any]:
        """The `default` type with this base."""
        return {"rope_type": "default", "rope_theta": float(self.base)}


@dataclass(frozen=True)
class ThetaScale(Scaled):
    """Enlarge the base so that the critical pair, which turned once, turns once over the target.

    Liu et al., "Scaling Laws of RoPE-based Extrapolation" (arXiv:2310.05209), section 4:
    `base ** (ln(L' / 2 pi) / ln(L / 2 pi))`. Also in the code of Grok-1.

    Args:
        factor: Target length over trained length, at least 1.
        length: Target length in tokens, instead of `factor`.
    """

    name: ClassVar[str] = "theta_scale"
    aliases: ClassVar[tuple[str, ...]] = ("critical_base",)
    paper: ClassVar[str] = "https://arxiv.org/abs/2310.05209"

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Multiply pair `i` by `(base / old base) ** (-2 i / dim)`."""
        return replace(plan, inv_freq=plan.inv_freq * base_ratio(rope, self.base(rope)))

    def base(self, rope: Rope) -> float:
        """The enlarged base.

        Raises:
            ValueError: The fastest pair hardly turns within the trained length.
        """
        trained = rope.trained_length / (2 * math.pi)
        exponent = math.log(self.scale(rope) * trained) / math.log(trained) if trained > 1 else 1e9
        if exponent * math.log(rope.base) > 600:  # beyond what a float holds
            raise ValueError(
                f"{self}: needs a trained length far above 2 pi tokens, and the model has "
                f"{rope.trained_length}"
            )
        return float(rope.base**exponent)

    def native(self, rope: Rope) -> dict[str, Any]:
        """The `default` type with the larger base."""
        return {"rope_type": "default", "rope_theta": self.base(rope)}


def require_base(strategy: Any) -> None:
    """Raise a ValueError unless the base is one whose powers fall."""
    require(strategy, "base", 1 < strategy.base <= LARGEST, f"above 1 and at most {LARGEST:g}")


def base_ratio(rope: Rope, base: float) -> Tensor:
    """Frequency at `base` over frequency at the base of `rope`, `(dim // 2,)`, float64."""
    return (base / rope.base) ** (-2 * rope.pairs / rope.dim)

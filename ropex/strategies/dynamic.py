"""Dynamic NTK: the base grows with the sequence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ropex.rope import Plan, Rope
from ropex.strategies.base import Length, PerLength, require_factor
from ropex.strategies.ntk import ntk_base, ntk_ratio

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Dynamic(PerLength):
    """Enlarge the base as the sequence grows, and not at all within the trained length.

    emozilla, "Dynamically Scaled RoPE" (2023), and Peng et al. (arXiv:2309.00071), section 3.3:
    NTK-aware scaling by `factor * l / L - (factor - 1)` for a sequence of `l` tokens on a trained
    length of `L`. Two conventions are in use: the paper's `l / L`, which is `factor` 1, and
    transformers', where `factor` is the target length over the trained length.

    All keys of a sequence must be rotated with the same base, so a key-value cache cannot be
    continued beyond the trained length; `length` fixes the base for all sequences and makes that
    possible. Documents that are packed into one sequence count as one. A saved model has
    transformers' own `dynamic` type, whose result also depends on earlier and neighbouring
    sequences; `length` avoids that.

    Args:
        factor: 1 for the paper's convention, more for transformers'.
        length: Use the base of this many tokens for every sequence.
    """

    name: ClassVar[str] = "dynamic"
    aliases: ClassVar[tuple[str, ...]] = ("dynamic_ntk",)
    paper: ClassVar[str] = "https://arxiv.org/abs/2309.00071"

    factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_factor(self, self.factor)

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Stretch as NTK-aware scaling does, with the alpha of `length` tokens."""
        ratio = ntk_ratio(rope, self.alpha(rope, length))
        return replace(plan, inv_freq=plan.inv_freq * ratio)

    def alpha(self, rope: Rope, length: Length) -> Tensor:
        """Stretch of the slowest pair for sequences of `length` tokens, float64, at least 1."""
        return self.factor * self.growth(rope, length) - (self.factor - 1)

    def scale(self, rope: Rope) -> float:
        """The fixed length over the trained length, or the factor."""
        return self.factor if self.length is None else self.length / rope.trained_length

    def native(self, rope: Rope) -> dict[str, Any]:
        """The `dynamic` type, or the larger base if the length is fixed."""
        if self.length is None:
            return {"rope_type": "dynamic", "factor": float(self.factor)}
        alpha = float(self.alpha(rope, self.length))
        return {"rope_type": "default", "rope_theta": ntk_base(rope, alpha)}

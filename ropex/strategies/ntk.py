"""NTK-aware scaling: a larger base."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ropex.rope import Plan, Rope
from ropex.strategies.base import Length, Scaled

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Ntk(Scaled):
    """Enlarge the base so that the slowest pair is interpolated and the fastest is untouched.

    bloc97, "NTK-Aware Scaled RoPE" (2023), as given in Peng et al. (arXiv:2309.00071), section
    3.1: `base * factor ** (dim / (dim - 2))`. Pairs between the two ends are stretched by less
    than the factor, so the reach is smaller than the factor.

    Args:
        factor: Stretch of the slowest pair, at least 1 (`alpha` in exllama).
        length: Target length in tokens, instead of `factor`.
    """

    name: ClassVar[str] = "ntk"
    aliases: ClassVar[tuple[str, ...]] = ("ntk_aware",)
    paper: ClassVar[str] = "https://arxiv.org/abs/2309.00071"

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Stretch pair `i` by `factor ** (2 i / (dim - 2))`."""
        return replace(plan, inv_freq=plan.inv_freq * ntk_ratio(rope, self.scale(rope)))

    def native(self, rope: Rope) -> dict[str, Any]:
        """The `default` type with the larger base."""
        return {"rope_type": "default", "rope_theta": ntk_base(rope, self.scale(rope))}


def ntk_base(rope: Rope, factor: float) -> float:
    """The base at which the slowest pair of `rope` is stretched by `factor`; see `ntk_ratio`."""
    return float(rope.base * factor ** (rope.dim / (rope.dim - 2)))


def ntk_ratio(rope: Rope, factor: float | Tensor) -> Tensor:
    """New frequency over old one of each pair, `(dim // 2,)`, float64.

    Raises:
        ValueError: There is only one pair, which would be both the fastest and the slowest.
    """
    if rope.dim < 4:
        raise ValueError(
            f"a larger base needs at least two rotated pairs; this model has {rope.dim // 2}"
        )
    return factor ** (-2 * rope.pairs / (rope.dim - 2))

"""LongRoPE: a separate factor for each pair; one list for short sequences, one for long."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ropex.rope import Plan, Rope
from ropex.strategies.attention_factors import longrope_temperature
from ropex.strategies.base import (
    LARGEST,
    LARGEST_FACTOR,
    Length,
    LengthClass,
    Scaled,
    require,
    require_scale,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LongRope(Scaled):
    """Divide each pair by its own factor, found by a search.

    Ding et al., "LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens"
    (arXiv:2402.13753), as transformers has it for Phi-3: sequences longer than the trained length
    take the long list, others the short one, both with one temperature. The lists fit one model
    only; take them from its authors, or from a search.

    Args:
        factor: Target length over trained length, at least 1.
        length: Target length in tokens, instead of `factor`.
        long_factor: A divisor for each pair, from the fastest to the slowest: `1/1.2/3.5/...`.
        short_factor: The same for sequences within the trained length; by default all 1.
        attention_factor: What cos and sin are multiplied by; by default
            `sqrt(1 + ln(factor) / ln(trained length))`.
    """

    name: ClassVar[str] = "longrope"
    aliases: ClassVar[tuple[str, ...]] = ("su",)
    paper: ClassVar[str] = "https://arxiv.org/abs/2402.13753"

    long_factor: tuple[float, ...] = ()
    short_factor: tuple[float, ...] | None = None
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_scale(self, "attention_factor")
        require(self, "long_factor", len(self.long_factor) > 0, "given: one divisor for each pair")
        for name in ("long_factor", "short_factor"):
            values = getattr(self, name)
            # a pair that does not turn is divided by an immense number
            each = (1 / LARGEST_FACTOR <= value <= LARGEST for value in values or ())
            fits = values is None or (len(values) > 0 and all(each))
            require(self, name, fits, "made of numbers above 0, from 2**-20 to 1e30")

    @property
    def length_class(self) -> LengthClass:
        """One plan within the trained length and one beyond, unless the two lists are equal."""
        return "static" if self.short_factor == self.long_factor else "two"

    def fixed(self, length: int) -> LongRope:
        """The same with the long list for short sequences too."""
        return replace(self, short_factor=self.long_factor)

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Divide by the list that `length` takes.

        Raises:
            ValueError: A list does not have one divisor for each pair.
        """
        import torch

        short, long = self.divisors(rope, "short_factor"), self.divisors(rope, "long_factor")
        beyond = torch.as_tensor(length) > rope.trained_length
        return replace(
            plan,
            inv_freq=plan.inv_freq / torch.where(beyond, long, short),
            attention_scale=plan.attention_scale * self.temperature(rope),
        )

    def divisors(self, rope: Rope, name: Literal["short_factor", "long_factor"]) -> Tensor:
        """A list as a tensor, `(dim // 2,)`, float64; ones if it is not given."""
        given, pairs = getattr(self, name), rope.dim // 2
        values = (1.0,) * pairs if given is None else given
        if len(values) != pairs:
            raise ValueError(
                f"{self.name}: {name} has {len(values)} divisors, it must have {pairs}, one for "
                "each rotated pair"
            )
        return rope.inv_freq.new_tensor(values)

    def temperature(self, rope: Rope) -> float:
        """Factor of cos and sin (section 3.2 of the code's `attention_factor`)."""
        if self.attention_factor is not None:
            return float(self.attention_factor)
        return longrope_temperature(self.scale(rope), rope.trained_length)

    def native(self, rope: Rope) -> dict[str, Any]:
        """The `longrope` type."""
        entry: dict[str, Any] = {
            "rope_type": "longrope",
            "factor": self.scale(rope),
            "original_max_position_embeddings": rope.trained_length,
            "short_factor": self.divisors(rope, "short_factor").tolist(),
            "long_factor": self.divisors(rope, "long_factor").tolist(),
        }
        return {**entry, "attention_factor": self.temperature(rope)}

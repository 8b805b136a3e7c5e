"""How sharp attention is: by one factor, or by the position of the query in steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ropex.rope import Plan, Rope
from ropex.sizes import LONGEST
from ropex.strategies.base import Length, Strategy, require, require_growth, require_scale
from ropex.strategies.logn import scale_queries

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Temperature(Strategy):
    """Multiply cos and sin, and hence attention logits by the square: above 1 is sharper.

    The temperature of YaRN as a separate strategy: Peng et al. (arXiv:2309.00071), section 3.4,
    where it is `0.1 ln(factor) + 1`: 1.07 for a factor of 2, 1.14 for 4, 1.21 for 8.

    Args:
        factor: What cos and sin are multiplied by, from 0.001 to 1000.
    """

    name: ClassVar[str] = "temperature"
    aliases: ClassVar[tuple[str, ...]] = ("attention_factor", "mscale")
    paper: ClassVar[str] = "https://arxiv.org/abs/2309.00071"
    changes_frequencies: ClassVar[bool] = False

    factor: float

    def __post_init__(self) -> None:
        require_scale(self, "factor")

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Multiply the attention scale."""
        return replace(plan, attention_scale=plan.attention_scale * self.factor)


@dataclass(frozen=True)
class Llama4Temperature(Strategy):
    """Multiply a query by `1 + beta ln(1 + floor((m + 1) / L))` at position `m`.

    The attention temperature of Llama 4 (2025), which applies it in layers without rotary
    embeddings; here it applies to all layers. It grows with the position of the query, so cached
    keys stay valid. It changes no frequency: combine it.

    Args:
        length: `L`, the tokens of a step.
        beta: Growth with the logarithm of the step.
    """

    name: ClassVar[str] = "llama4_temperature"
    paper: ClassVar[str] = "https://github.com/meta-llama/llama-models"
    changes_frequencies: ClassVar[bool] = False

    length: int = 8192
    beta: float = 0.1

    def __post_init__(self) -> None:
        require(self, "length", 1 <= self.length <= LONGEST, "at least 1 and at most 2**40")
        require_growth(self)

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Add the scale of the queries."""
        return scale_queries(self, plan, StepScale(self.length, self.beta, 1))

    def native(self, rope: Rope) -> dict[str, Any]:
        """The frequencies stay as they are."""
        return {}


@dataclass(frozen=True)
class MinistralTemperature(Strategy):
    """Multiply a query by `1 + beta ln(1 + floor(m / L))` at position `m`.

    The attention temperature of Ministral 3 (2025), `llama_4_scaling_beta` in its config: like
    `llama4_temperature`, but with steps of the trained length, and no change within it.

    Args:
        beta: Growth with the logarithm of the step.
        length: `L`, the tokens of a step; by default the trained length.
    """

    name: ClassVar[str] = "ministral_temperature"
    paper: ClassVar[str] = "https://huggingface.co/mistralai"
    changes_frequencies: ClassVar[bool] = False

    beta: float = 0.1
    length: int | None = None

    def __post_init__(self) -> None:
        fits = self.length is None or 1 <= self.length <= LONGEST
        require(self, "length", fits, "at least 1 and at most 2**40")
        require_growth(self)

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Add the scale of the queries."""
        scale = StepScale(self.length or rope.trained_length, self.beta, 0)
        return scale_queries(self, plan, scale)

    def native(self, rope: Rope) -> dict[str, Any]:
        """The frequencies stay as they are."""
        return {}


@dataclass(frozen=True)
class StepScale:
    """`1 + beta ln(1 + floor((position + offset) / length))`."""

    length: int
    beta: float
    offset: int
    first_layer: int = 0

    def __str__(self) -> str:
        shifted = f"(position + {self.offset})" if self.offset else "position"
        return f"1 + {self.beta:g} ln(1 + floor({shifted} / {self.length}))"

    def __call__(self, positions: Tensor) -> Tensor:
        """Factors of the queries at `positions`, same shape, float32."""
        steps = (positions + self.offset).div(self.length, rounding_mode="floor")
        return 1 + self.beta * steps.float().log1p()

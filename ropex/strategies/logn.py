"""Log-n scaling: sharper attention for later queries."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ropex.rope import Plan, QueryScale, Rope
from ropex.strategies.base import Length, Strategy, require_length

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LogN(Strategy):
    """Multiply a query by `ln(n) / ln(L)` once it attends to more than `L` tokens.

    Su Jianlin, "Scale operation of attention from the perspective of entropy invariance" (2021)
    and "ReRoPE" (2023): keeps the entropy of attention from growing with the number of keys. It
    depends on the position of the query, not on the length of the sequence, so cached keys stay
    valid. It changes no frequency: combine it, as in `yarn:4+logn`.

    Args:
        length: `L`, up to which nothing changes, in tokens; by default the trained length.
    """

    name: ClassVar[str] = "logn"
    aliases: ClassVar[tuple[str, ...]] = ("log_n",)
    paper: ClassVar[str] = "https://kexue.fm/archives/8823"
    changes_frequencies: ClassVar[bool] = False

    length: int | None = None

    def __post_init__(self) -> None:
        require_length(self)

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Add the scale of the queries."""
        return scale_queries(self, plan, LogScale(self.length or rope.trained_length))

    def native(self, rope: Rope) -> dict[str, Any]:
        """The frequencies stay as they are."""
        return {}


def scale_queries(strategy: Strategy, plan: Plan, scale: QueryScale) -> Plan:
    """`plan` with scaled queries.

    Raises:
        ValueError: They are scaled already.
    """
    if plan.query_scale is not None:
        raise ValueError(f"{strategy.name}: the queries are scaled already; give one such strategy")
    return replace(plan, query_scale=scale)


@dataclass(frozen=True)
class LogScale:
    """`max(1, ln(position + 1) / ln(length))`, from layer `first_layer` on."""

    length: int
    first_layer: int = 0

    def __str__(self) -> str:
        where = f" from layer {self.first_layer}" if self.first_layer else ""
        return f"ln(position + 1) / ln({self.length}){where}"

    def __call__(self, positions: Tensor) -> Tensor:
        """Factors of the queries at `positions`, same shape, float32."""
        return ((positions + 1).float().log() / math.log(self.length)).clamp(min=1)

"""Strategies that change which distance a rotation sees, and no frequency."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from ropex.positions import PositionMap
from ropex.rope import Plan, Rope
from ropex.sizes import LONGEST
from ropex.strategies.base import Length, Strategy, require

Window: TypeAlias = int | float
"""Tokens, or a share of the trained length: `near=2k`, `near=0.5`."""

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Mapped(Strategy):
    """A strategy with a position map.

    Args:
        always: Map queries within the trained length too, as far as the map reaches them. By
            default they see plain distances, whatever follows them, so short texts pay nothing.
    """

    changes_frequencies: ClassVar[bool] = False

    always: bool = field(default=False, kw_only=True)

    @abstractmethod
    def map(self, rope: Rope) -> PositionMap:
        """The map on a model with this rotary embedding."""

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Add the map.

        Raises:
            ValueError: Positions are mapped already.
        """
        if plan.positions is not None:
            raise ValueError(
                f"{self.name}: the positions are mapped already; give one such strategy"
            )
        return replace(plan, positions=self.map(rope))

    def native(self, rope: Rope) -> dict[str, Any]:
        """The frequencies stay as they are."""
        return {}

    def first(self, rope: Rope) -> int:
        """Position of the first query that is mapped."""
        return 0 if self.always else rope.trained_length


@dataclass(frozen=True)
class FromFirst(PositionMap):
    """A map with the same regions for all queries from one position on; part of a map's values."""

    first: int

    def level(self, positions: Tensor) -> Tensor:
        """1 from `first` on."""
        return (positions >= self.first).long()


def tokens(strategy: Strategy, name: str, rope: Rope) -> int:
    """A window of a strategy in tokens.

    Raises:
        ValueError: It is longer than the trained length.
    """
    value: Window = getattr(strategy, name)
    found = value if isinstance(value, int) else max(1, round(value * rope.trained_length))
    if found > rope.trained_length:
        raise ValueError(
            f"{strategy}: {name} is {found} tokens, and the model is trained at "
            f"{rope.trained_length}; distances beyond that are what the map avoids"
        )
    return found


def require_window(strategy: Strategy, *names: str) -> None:
    """Raise a ValueError unless these parameters are shares above 0 up to 1, or tokens."""
    for name in names:
        value = getattr(strategy, name)
        share = isinstance(value, float) and 0 < value <= 1
        whole = isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= LONGEST
        allowed = "a share of the trained length above 0 up to 1, as 0.5, or tokens, as 2k"
        require(strategy, name, share or whole, allowed)

"""Stretch: far distances are compressed by what each query needs, and by no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ropex.positions import PositionMap, Region
from ropex.rope import Rope
from ropex.strategies.base import require
from ropex.strategies.mapped import Mapped, Window, require_window, tokens
from ropex.strategies.rerope import sloped

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Stretch(Mapped):
    """Far distances shrink by as much as it takes to see the farthest key as in training.

    A query at position `m` of a model trained at `L` sees keys within the window `w` at their
    distance `d`, and others at `w + (d - w) / s`, where `s = (m - w) / (L - 1 - w)`: leaky ReRoPE
    (2023, Su Jianlin) whose slope just fits each query. It needs no factor, is continuous at `w`
    and at `L`, and does not depend on how a text is cut into calls. The slope is rounded up to a
    multiple of `1 / steps`, as keys are rotated anew for each.

    Args:
        near: `w`, as a share of the trained length or in tokens.
        steps: Slopes in a unit.
    """

    name: ClassVar[str] = "stretch"
    paper: ClassVar[str] = "https://kexue.fm/archives/9708"

    near: Window = 0.25
    steps: int = 8

    def __post_init__(self) -> None:
        require_window(self, "near")
        require(self, "steps", 1 <= self.steps <= 1024, "from 1 to 1024")

    def map(self, rope: Rope) -> PositionMap:
        """Two regions, whose slope goes by the query."""
        near = min(tokens(self, "near", rope), rope.trained_length - 2)
        return _Fitted(near, rope.trained_length, self.steps)


@dataclass(frozen=True)
class _Fitted(PositionMap):
    near: int
    trained: int
    steps: int

    def level(self, positions: Tensor) -> Tensor:
        beyond = (positions - self.near) * self.steps
        room = self.trained - 1 - self.near
        found = (beyond + room - 1).div(room, rounding_mode="floor")
        return found.where(positions >= self.trained, 0)

    def regions(self, level: int) -> tuple[Region, ...]:
        return sloped(self.near, level / self.steps)

"""ReRoPE: distances beyond a window are all seen as one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ropex.positions import At, PositionMap, Region
from ropex.rope import Rope
from ropex.strategies.base import require
from ropex.strategies.mapped import FromFirst, Mapped, Window, require_window, tokens


@dataclass(frozen=True)
class ReRoPE(Mapped):
    """Keys within the window `w` are seen at their distance, all others at `w`.

    Su Jianlin, "ReRoPE" (2023): any length, and no distance that training did not have. The
    published code maps queries within the trained length too (`always`), with `w` of 512 to 1024
    for 4096 trained tokens, and scales queries by log-n, which is `rerope+logn` here.

    Args:
        near: `w`, as a share of the trained length or in tokens.
    """

    name: ClassVar[str] = "rerope"
    paper: ClassVar[str] = "https://kexue.fm/archives/9708"

    near: Window = 0.5

    def __post_init__(self) -> None:
        require_window(self, "near")

    def map(self, rope: Rope) -> PositionMap:
        """Two regions: near ones as they are, far ones at one distance."""
        return _Clipped(self.first(rope), tokens(self, "near", rope))


@dataclass(frozen=True)
class LeakyReRoPE(Mapped):
    """Keys within the window `w` are seen at their distance `d`, others at `w + (d - w) / k`.

    Su Jianlin, "ReRoPE" (2023), the leaky form: far distances still differ, and there is an end
    to what it reaches: `w + k (L - w)` tokens of a model trained at `L`.

    Args:
        factor: `k`.
        near: `w`, as a share of the trained length or in tokens.
    """

    name: ClassVar[str] = "leaky_rerope"
    paper: ClassVar[str] = "https://kexue.fm/archives/9708"

    factor: float = 16
    near: Window = 0.5

    def __post_init__(self) -> None:
        require_window(self, "near")
        require(self, "factor", 1 <= self.factor <= 2**20, "from 1 to 2**20")

    def map(self, rope: Rope) -> PositionMap:
        """Two regions: near ones as they are, far ones by the slope."""
        return Sloped(self.first(rope), tokens(self, "near", rope), self.factor)

    def scale(self, rope: Rope) -> float:
        """The length at which the farthest key is seen at the trained length."""
        near = tokens(self, "near", rope) / rope.trained_length
        return near + self.factor * (1 - near)


@dataclass(frozen=True)
class _Clipped(FromFirst):
    near: int

    def regions(self, level: int) -> tuple[Region, ...]:
        clipped = Region(At(0, self.near), At(0), near=self.near)
        return Region(far=self.near), clipped


@dataclass(frozen=True)
class Sloped(FromFirst):
    """Distances beyond `near` grow `factor` times more slowly."""

    near: int
    factor: float

    def regions(self, level: int) -> tuple[Region, ...]:
        """The near ones, and those by the slope."""
        return sloped(self.near, self.factor)


def sloped(near: int, factor: float) -> tuple[Region, ...]:
    """Distance `d` within `near`, and `near + (d - near) / factor` beyond."""
    rate = 1 / factor
    far = Region(At(rate, near - near * rate), At(rate), near=near)
    return Region(far=near), far

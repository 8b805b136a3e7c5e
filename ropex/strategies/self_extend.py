"""Self-Extend: far keys are seen in groups that share a position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from ropex.positions import At, PositionMap, Region
from ropex.rope import Rope
from ropex.strategies.base import require
from ropex.strategies.mapped import FromFirst, Mapped, Window, require_window, tokens

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SelfExtend(Mapped):
    """Keys within the window `w` are seen at their distance, others by groups of `G` tokens.

    Jin et al. (arXiv:2401.01325), equations 3 and 4: a far query is seen at
    `floor(m / G) + w - w / G` and a far key at `floor(n / G)`. Their code rounds `w / G` down while
    it decodes and not while it reads a prompt; here it is the same in both (`shift`). Without a
    group size, each query has the smallest at which its farthest key is seen within the trained
    length, so no factor is needed, and a text may be cut into calls in any way.

    Args:
        group: `G`; by default it grows with the position of the query.
        near: `w`, as a share of the trained length or in tokens.
        shift: Whether `w / G` is rounded down (`floor`) or not (`float`).
    """

    name: ClassVar[str] = "self_extend"
    aliases: ClassVar[tuple[str, ...]] = ("grp_attn",)
    paper: ClassVar[str] = "https://arxiv.org/abs/2401.01325"

    group: int | None = None
    near: Window = 0.25
    shift: Literal["floor", "float"] = "floor"

    def __post_init__(self) -> None:
        require_window(self, "near")
        fits = self.group is None or 1 <= self.group <= 2**20
        require(self, "group", fits, "from 1 to 2**20")
        if self.group is None and self.always:
            raise ValueError("self_extend: always=true needs a group size, as in self_extend:8")

    def map(self, rope: Rope) -> PositionMap:
        """Two regions: near ones as they are, far ones in groups."""
        near = tokens(self, "near", rope)
        if self.group is not None:
            return _Grouped(self.first(rope), near, self.group, self.shift == "floor")
        near = min(near, rope.trained_length - 2)
        return _Growing(near, rope.trained_length, self.shift == "floor")

    def scale(self, rope: Rope) -> float:
        """What a stated group reaches, `(L - w) G + w` tokens, over the trained length `L`."""
        if self.group is None:
            return 1.0
        near = tokens(self, "near", rope) / rope.trained_length
        return (1 - near) * self.group + near


@dataclass(frozen=True)
class _Grouped(FromFirst):
    near: int
    group: int
    floor: bool

    def regions(self, level: int) -> tuple[Region, ...]:
        return _groups(self.near, self.group, self.floor)


@dataclass(frozen=True)
class _Growing(PositionMap):
    near: int
    trained: int
    floor: bool

    def level(self, positions: Tensor) -> Tensor:
        room = self.trained - 1 - self.near
        found = (positions - self.near + room - 1).div(room, rounding_mode="floor")
        return found.where(positions >= self.trained, 0)

    def regions(self, level: int) -> tuple[Region, ...]:
        return _groups(self.near, level, self.floor)


def _groups(near: int, group: int, floor: bool) -> tuple[Region, ...]:
    shift = near - (near // group if floor else near / group)
    far = Region(At(offset=shift, group=group), At(group=group), near=near)
    return Region(far=near), far

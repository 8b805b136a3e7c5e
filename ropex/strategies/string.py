"""STRING: the positions that training saw most take the place of those that it saw least."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ropex.positions import At, PositionMap, Region
from ropex.rope import Rope
from ropex.strategies.base import require
from ropex.strategies.mapped import FromFirst, Mapped, Window, require_window, tokens


@dataclass(frozen=True)
class String(Mapped):
    """Distances from `S` on are seen as `d - S + W`.

    An et al. (arXiv:2410.18745), section 4: long distances are rare in training, so the shorter
    ones serve in their place within the trained window, and up to `L + S - W` tokens of a model
    trained at `L`. It is meant for that window, so `always` is on. The published code counts the
    distance `S` in both regions while it reads a prompt and in one while it decodes; here it is in
    the far one.

    Args:
        shift: `S`, as a share of the trained length or in tokens; the paper takes 0.25 to 0.4.
        near: `W`, likewise; the paper takes 128 to 512 tokens.
    """

    name: ClassVar[str] = "string"
    paper: ClassVar[str] = "https://arxiv.org/abs/2410.18745"

    shift: Window = 0.33
    near: Window = 128
    always: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        require_window(self, "shift", "near")

    def map(self, rope: Rope) -> PositionMap:
        """Two regions: near ones as they are, far ones moved.

        Raises:
            ValueError: The window is longer than the shift.
        """
        shift, near = tokens(self, "shift", rope), tokens(self, "near", rope)
        allowed = f"at most the shift of {shift} tokens"
        require(self, "near", near <= shift, allowed)
        return _Moved(self.first(rope), shift, near)

    def scale(self, rope: Rope) -> float:
        """The length at which the farthest key is seen at the trained length."""
        moved = tokens(self, "shift", rope) - tokens(self, "near", rope)
        return 1 + moved / rope.trained_length


@dataclass(frozen=True)
class _Moved(FromFirst):
    shift: int
    near: int

    def regions(self, level: int) -> tuple[Region, ...]:
        moved = Region(At(offset=self.near - self.shift), near=self.shift)
        return Region(far=self.shift), moved

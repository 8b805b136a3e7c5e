"""Masks: the first tokens and a window of the last ones, and nothing between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ropex.positions import SAME, At, Place, PositionMap, Region
from ropex.rope import Rope
from ropex.sizes import LONGEST
from ropex.strategies.base import require
from ropex.strategies.mapped import FromFirst, Mapped, Window, require_window, tokens


@dataclass(frozen=True)
class LMInfinite(Mapped):
    """A query sees the first tokens at the distance `L`, and the last `L` tokens as they are.

    Han et al. (arXiv:2308.16137), section 4: a mask in the shape of a lambda, and distances up to
    the window. The text between is not seen, so it is fluent at any length and retrieves nothing
    from there. The optional retrieval of middle tokens is not part of it.

    Args:
        near: The window, as a share of the trained length or in tokens.
        sinks: First tokens that are always seen.
    """

    name: ClassVar[str] = "lm_infinite"
    paper: ClassVar[str] = "https://arxiv.org/abs/2308.16137"

    near: Window = 1.0
    sinks: int = 10

    def __post_init__(self) -> None:
        _require(self)

    def map(self, rope: Rope) -> PositionMap:
        """Two regions: the window, and the first tokens at one distance."""
        near = tokens(self, "near", rope)
        return _Sinks(self.first(rope), near, self.sinks, At(0, near), At(0))


@dataclass(frozen=True)
class Streaming(Mapped):
    """A query sees the first tokens and the last ones, as if nothing stood between them.

    Xiao et al. (arXiv:2309.17453), section 3.2: attention sinks and a rolling window, with
    positions in the cache in place of positions in the text. The text between is not seen. Their
    code drops it from the cache; here the cache keeps it, so a patch may be removed at any time.

    Args:
        near: Tokens that are seen in all, as a share of the trained length or a number.
        sinks: First tokens among them.
    """

    name: ClassVar[str] = "streaming"
    aliases: ClassVar[tuple[str, ...]] = ("streaming_llm",)
    paper: ClassVar[str] = "https://arxiv.org/abs/2309.17453"

    near: Window = 1.0
    sinks: int = 4

    def __post_init__(self) -> None:
        _require(self)

    def map(self, rope: Rope) -> PositionMap:
        """Two regions: the window, and the first tokens right before it.

        Raises:
            ValueError: The first tokens fill the window.
        """
        near = tokens(self, "near", rope)
        require(self, "sinks", self.sinks < near, f"below the window of {near} tokens")
        return _Sinks(self.first(rope), near - self.sinks, self.sinks, At(0, near - 1), SAME)


@dataclass(frozen=True)
class _Sinks(FromFirst):
    near: int
    sinks: int
    query: Place
    key: Place

    def regions(self, level: int) -> tuple[Region, ...]:
        sinks = Region(self.query, self.key, near=self.near, last=self.sinks)
        return Region(far=self.near), sinks


def _require(strategy: LMInfinite | Streaming) -> None:
    require_window(strategy, "near")
    require(strategy, "sinks", 1 <= strategy.sinks <= LONGEST, "at least 1")

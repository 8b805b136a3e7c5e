"""Dual chunk attention: positions start again in each chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ropex.positions import At, PositionMap, Region
from ropex.rope import Rope
from ropex.strategies.mapped import Mapped, Window, require_window, tokens

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DualChunk(Mapped):
    """Keys are seen at `n mod p`, with `p = c - w` of chunks of `c` tokens and a window `w`.

    An et al. (arXiv:2402.17463), equations 2 to 4. A query in the chunk of a key is seen at
    `m mod p`; in the next chunk at `min(m mod p + p, c)`, so that distances across the border are
    true within `w`; in later chunks at `min(2 p - 1, c)`. The code of Hugging Face and vLLM also
    multiplies keys by a temperature of the longest length so far, which the paper's results do not
    use: add `temperature` for one.

    Args:
        chunk: `c`, as a share of the trained length or in tokens.
        near: `w`, likewise.
    """

    name: ClassVar[str] = "dca"
    aliases: ClassVar[tuple[str, ...]] = ("dual_chunk", "chunkllama")
    paper: ClassVar[str] = "https://arxiv.org/abs/2402.17463"

    chunk: Window = 0.75
    near: Window = 0.125

    def __post_init__(self) -> None:
        require_window(self, "chunk", "near")

    def map(self, rope: Rope) -> PositionMap:
        """Three regions: the chunk of the query, the one before, and all older ones.

        Raises:
            ValueError: The window is as long as a chunk, or longer.
        """
        chunk, near = tokens(self, "chunk", rope), tokens(self, "near", rope)
        if near >= chunk:
            allowed = f"below the chunk of {chunk} tokens"
            raise ValueError(f"{self}: near is {near} tokens, it must be {allowed}")
        return _Chunks(self.first(rope), chunk - near, chunk)


@dataclass(frozen=True)
class _Chunks(PositionMap):
    first: int
    period: int
    limit: int

    def level(self, positions: Tensor) -> Tensor:
        chunk = positions.div(self.period, rounding_mode="floor") + 1
        return chunk.where(positions >= self.first, 0)

    def regions(self, level: int) -> tuple[Region, ...]:
        start, key = (level - 1) * self.period, At(period=self.period)
        before = start - self.period
        next_chunk = At(offset=self.period, period=self.period, limit=self.limit)
        later = At(0, min(2 * self.period - 1, self.limit))
        older = (Region(later, key, last=before),) if before > 0 else ()
        previous = (Region(next_chunk, key, first=before, last=start),) if start else ()
        return Region(first=start), *previous, *older

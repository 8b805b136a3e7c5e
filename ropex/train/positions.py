"""Positions of a long context for short rows: skips, drawn for every row."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

_SIGMA = 3.0  # of CREAM, in half windows


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a row is read as.

    Attributes:
        tokens: Indices of the tokens that are read, ascending, `(window,)`.
        positions: Their positions, strictly ascending and below the target, `(window,)`.
    """

    tokens: Tensor
    positions: Tensor


class Sampler(Protocol):
    """Draws what is read of a row, and at which positions."""

    @property
    def window(self) -> int:
        """Tokens that are read of a row."""

    @property
    def target(self) -> int:
        """Positions that the draws cover together."""

    def draw(self, length: int, rng: random.Random) -> Drawn:
        """Draw for a row of `length` tokens."""


@dataclass(frozen=True)
class _Windowed(ABC):
    """The two lengths of every sampler.

    Attributes:
        window: Tokens that are read of a row.
        target: Positions that the draws cover together.
    """

    window: int
    target: int

    def __post_init__(self) -> None:
        least = self._least()
        if self.window < least:
            raise ValueError(f"a window of {self.window} tokens is too short; give {least} or more")
        if self.target < self.window:
            raise ValueError(
                f"the target of {self.target} positions is below the window of {self.window} "
                "tokens; give a longer target or a shorter window"
            )

    def _least(self) -> int:
        """The shortest window."""
        return 2

    def draw(self, length: int, rng: random.Random) -> Drawn:
        """Draw what is read of a row, and at which positions.

        Args:
            length: Tokens of the row, `window` or more.
            rng: The random generator.

        Raises:
            ValueError: The row is shorter than the window.
        """
        if length < self.window:
            raise ValueError(
                f"a row of {length} tokens does not fill the window of {self.window}; "
                "join short rows, leave them out or give a smaller window"
            )
        return self._drawn(length, rng)

    @abstractmethod
    def _drawn(self, length: int, rng: random.Random) -> Drawn:
        """The draw itself, of a row that fills the window."""


@dataclass(frozen=True)
class PoSE(_Windowed):
    """Cut the window into chunks; skip positions, and text where there is more, between them.

    Zhu et al., "PoSE: Efficient Context Window Extension of LLMs via Positional Skip-wise
    Training" (arXiv:2309.10400), section 3; lengths and skips as the authors' code draws them for
    two chunks. The skips of positions are uniform, none smaller than the one before. Skips of text
    are drawn the same way, independently. The first chunk stays at 0.

    Args:
        window: Tokens that are read of a row.
        target: Positions that the draws cover together.
        chunks: Number of parts of the window. All but the last have 1 to
            `(window + 1) / chunks` tokens.
    """

    chunks: int = 2

    def __post_init__(self) -> None:
        if self.chunks < 2:
            raise ValueError(
                f"{self.chunks} chunks leave nothing between them to skip; give 2 or more"
            )
        super().__post_init__()

    def _least(self) -> int:
        return self.chunks

    def _drawn(self, length: int, rng: random.Random) -> Drawn:
        """Draw the lengths of the chunks and what is skipped before each of them."""
        longest = (self.window + 1) // self.chunks
        sizes = [rng.randint(1, longest) for _ in range(self.chunks - 1)]
        sizes.append(self.window - sum(sizes))
        text = self._skips(sizes, length, rng)
        return Drawn(text, self._skips(sizes, self.target, rng))

    def _skips(self, sizes: list[int], reach: int, rng: random.Random) -> Tensor:
        """Indices below `reach` of all chunks, with a skip before each but the first."""
        skips = [0]
        while len(skips) < self.chunks:
            skips.append(rng.randint(skips[-1], reach - self.window))
        shift = torch.tensor(skips).repeat_interleave(torch.tensor(sizes))
        return torch.arange(self.window) + shift


@dataclass(frozen=True)
class CREAM(_Windowed):
    """Keep the first and last positions of the target, and favour its middle in between.

    Wu et al., "An Efficient Recipe for Long Context Extension via Middle-Focused Positional
    Encoding" (arXiv:2406.07138), with the constants of the authors' code. With a factor of
    `F = target / window`, head and tail have a third of the window in one half of the draws and
    `4 F` tokens (a third at most) in the other. The middle part is read within the first
    `k / 2` windows, with `k` from 2 to `2 F`, drawn from a truncated Gaussian around `1 + F` of
    width 3. With factors far above 8 it therefore rarely reads what is far from the middle.

    A longer row is read at its own positions, up to its last token.

    Args:
        window: Tokens that are read of a row, 3 or more.
        target: Positions that the draws cover together.
    """

    def _least(self) -> int:
        return 3

    def _drawn(self, length: int, rng: random.Random) -> Drawn:
        """Draw the sizes of the three parts and where the middle one ends."""
        third = self.window // 3
        edge = rng.choice((third, min(4 * self.target // self.window, third)))
        middle = self.window - 2 * edge
        reach = self._reach(rng)
        first = edge + (middle - 1) * reach // self.window
        last = rng.randint(first, reach - edge - 1)
        text = _parts(edge, middle, min(last, length - edge - 1), length)
        return Drawn(text, _parts(edge, middle, last, self.target))

    def _reach(self, rng: random.Random) -> int:
        """Positions within which the middle part lies: half windows, and at most the target."""
        most = 2 * self.target / self.window
        halves = max(rng.normalvariate(1 + most / 2, _SIGMA), 2)
        return self.target if halves >= most else int(halves) * self.window // 2


@dataclass(frozen=True)
class RandomPositions(_Windowed):
    """Read a window at positions drawn from the whole target, in order.

    Ruoss et al., "Randomized Positional Encodings Boost Length Generalization of Transformers"
    (arXiv:2305.16843), section 3; the baseline of PoSE and CREAM. There the first position is
    random too. Here it is 0, as in the other samplers: rotations are relative, and flash attention
    in transformers 4 needs a 0 to find the start of a sequence. Of a longer row, the first `window`
    tokens are read.

    Args:
        window: Tokens that are read of a row.
        target: Positions that the draws cover together.
    """

    def _drawn(self, length: int, rng: random.Random) -> Drawn:
        """Draw the positions, all equally likely but the first."""
        drawn = sorted(rng.sample(range(1, self.target), self.window - 1))
        return Drawn(torch.arange(self.window), torch.tensor([0, *drawn]))


SAMPLERS: Mapping[str, type[PoSE] | type[CREAM] | type[RandomPositions]] = MappingProxyType(
    {"pose": PoSE, "cream": CREAM, "random": RandomPositions}
)


def _parts(edge: int, middle: int, last: int, reach: int) -> Tensor:
    """Indices below `reach`: its first and last `edge`, and the `middle` up to and with `last`."""
    between = torch.arange(last + 1 - middle, last + 1)
    return torch.cat([torch.arange(edge), between, torch.arange(reach - edge, reach)])

"""Position maps: which distance a rotation sees between a query and a key.

A rotary embedding turns a query at position m and a key at position n, and their product depends on
`m - n` alone. A map gives both other positions in regions of distance, so that far keys are seen at
distances that occurred in training (Self-Extend, ReRoPE, dual chunk attention, ...).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Place(Protocol):
    """Where the rotation sees a query or a key, as a function of where it stands."""

    def __call__(self, positions: Tensor, pairs: int, heads: int) -> Tensor:
        """New positions.

        Args:
            positions: `(tokens,)`, int64.
            pairs: Pairs of dimensions that rotate.
            heads: Heads of keys.

        Returns:
            float64, broadcasts to `(heads, tokens, pairs)`.
        """


@dataclass(frozen=True)
class At:
    """`min(offset + rate * floor((x mod period) / group), limit)`.

    Attributes:
        rate: 1 keeps distances, 0 puts all at `offset`.
        offset: Added at the end.
        group: So many positions in a row become one.
        period: Positions start again after this many; None if never.
        limit: The largest result; None if any.
        whole: Whether the result is rounded down before `offset` is added.
    """

    rate: float = 1.0
    offset: float = 0.0
    group: int = 1
    period: int | None = None
    limit: float | None = None
    whole: bool = False

    def __call__(self, positions: Tensor, pairs: int = 1, heads: int = 1) -> Tensor:
        """New positions, `(1, tokens, 1)`."""
        found = positions if self.period is None else positions % self.period
        grouped = found.div(self.group, rounding_mode="floor") if self.group > 1 else found
        scaled = grouped.double() * self.rate
        moved = (scaled.floor() if self.whole else scaled) + self.offset
        return (moved if self.limit is None else moved.clamp(max=self.limit))[None, :, None]


SAME = At()
"""Where it stands."""


@dataclass(frozen=True)
class Region:
    """The keys that a query sees at one pair of positions.

    They are `near` to `far` tokens before the query, and stand at `first` to `last`; both ends
    exclude the second value, and None is without end.

    Attributes:
        query: Where the rotation sees the query.
        key: Where it sees the key.
        near: The shortest distance.
        far: The first distance beyond.
        first: Position of the first key.
        last: The first position beyond.
    """

    query: Place = SAME
    key: Place = SAME
    near: int = 0
    far: int | None = None
    first: int = 0
    last: int | None = None

    def holds(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Whether pairs lie in the region; the arguments broadcast, int64."""
        return self._within(queries - keys, queries - keys, keys)

    def reaches(self, low: Tensor, high: Tensor, keys: Tensor) -> Tensor:
        """Whether it may hold a key for some query from `low` to `high`."""
        return self._within(high - keys, low - keys, keys)

    def covers(self, low: Tensor, high: Tensor, keys: Tensor) -> Tensor:
        """Whether it holds a key for every query from `low` to `high`."""
        return self._within(low - keys, high - keys, keys)

    def _within(self, least: Tensor, most: Tensor, keys: Tensor) -> Tensor:
        inside = (least >= self.near) & (keys >= self.first)
        if self.far is not None:
            inside = inside & (most < self.far)
        return inside if self.last is None else inside & (keys < self.last)


class PositionMap(ABC):
    """Regions for each query; no pair lies in two of them, and a pair in none is masked."""

    @abstractmethod
    def level(self, positions: Tensor) -> Tensor:
        """What decides the regions of a query, same shape, int64; 0 for plain attention."""

    @abstractmethod
    def regions(self, level: int) -> tuple[Region, ...]:
        """The regions of queries of a level above 0."""


def seen_distances(positions: PositionMap, query: int, pairs: int = 1, heads: int = 1) -> Tensor:
    """At which distances a query sees the keys before it, by the slowest pair and the first head.

    Args:
        positions: The map.
        query: Position of the query.
        pairs: Pairs of dimensions that rotate.
        heads: Heads of keys.

    Returns:
        `(query + 1,)`, float64, from the first key on; NaN where a key is masked.
    """
    import torch

    at, keys = torch.tensor([query]), torch.arange(query + 1)
    level = int(positions.level(at))
    found = torch.full((query + 1,), torch.nan, dtype=torch.float64)
    for region in positions.regions(level) if level else (Region(),):
        here = region.query(at, pairs, heads)[0, :, -1]
        there = region.key(keys, pairs, heads)[0, :, -1]
        found = torch.where(region.holds(at, keys), here - there, found)
    return found

"""Which keys each block of queries sees, and in which region: worked out once for all layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ropex.attention.turns import Turn
from ropex.positions import Place, PositionMap, Region

_KEPT = 2**23
"""Cosines that are kept for the next layers, so that memory stays linear in the number of keys."""

_Table = tuple[Tensor, Tensor]

PLAIN = (Region(),)
"""The regions of level 0."""


@dataclass(frozen=True, eq=False)
class Piece:
    """The keys that a block of queries sees in one region.

    Attributes:
        region: The region.
        columns: Keys of which some query sees any.
        border: Those, counted from the first of `columns`, that not all queries see.
        inside: Whether a query sees a key of the border in this region, `(queries, keys)`.
    """

    region: Region
    columns: slice
    border: slice
    inside: Tensor


@dataclass(frozen=True, eq=False)
class Block:
    """Queries of one level.

    Attributes:
        rows: The queries.
        columns: All keys that they see, in runs.
        pieces: By region.
    """

    rows: slice
    columns: tuple[slice, ...]
    pieces: tuple[Piece, ...]

    def seen(self, states: Tensor) -> Tensor:
        """The columns among all keys of `states`, `(..., keys, dim)`."""
        runs = [states[..., run, :] for run in self.columns]
        return runs[0] if len(runs) == 1 else torch.cat(runs, -2)

    def start(self, piece: Piece) -> int:
        """Where the columns of a piece begin among all columns."""
        *earlier, own = (run for run in self.columns if run.start <= piece.columns.start)
        before: int = sum(run.stop - run.start for run in earlier)
        return before + int(piece.columns.start - own.start)


class Schedule:
    """Where the queries and keys of a call stand, and what follows for all layers.

    Args:
        positions: The map.
        queries: Positions, `(tokens,)`, int64, on the CPU.
        keys: Positions, `(keys,)`, likewise.
    """

    def __init__(self, positions: PositionMap, queries: Tensor, keys: Tensor) -> None:
        self.positions, self.queries, self.keys = positions, queries, keys
        self._blocks: dict[tuple[int, torch.device], list[Block]] = {}
        self._tables: dict[tuple[Turn, Place, int, torch.dtype, torch.device], _Table] = {}

    def blocks(self, size: int, device: torch.device) -> list[Block]:
        """Blocks of at most `size` queries, in order, for attention on a device."""
        if (size, device) not in self._blocks:
            self._blocks[size, device] = list(self._made(size, device))
        return self._blocks[size, device]

    def tables(self, turn: Turn, place: Place, heads: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cos and sin that turn all keys to a place, in the dtype and on the device of `like`."""
        name = turn, place, heads, like.dtype, like.device
        if name in self._tables:
            return self._tables[name]
        made = turn.tables(place, self.keys, heads, like)
        if sum(cos.numel() for cos, _ in self._tables.values()) < _KEPT:
            self._tables[name] = made
        return made

    def _made(self, size: int, device: torch.device) -> Iterator[Block]:
        levels = self.positions.level(self.queries)
        changes = (levels.diff() != 0).nonzero().flatten() + 1
        start = 0
        for end in sorted({*changes.tolist(), len(levels)}):
            level = int(levels[start])
            regions = self.positions.regions(level) if level else PLAIN
            for first in range(start, end, size):
                rows = slice(first, min(first + size, end))
                found = [
                    _piece(region, self.queries[rows], self.keys, device) for region in regions
                ]
                pieces = tuple(piece for piece in found if piece is not None)
                if pieces:
                    yield Block(rows, _runs([piece.columns for piece in pieces]), pieces)
            start = end


def _piece(region: Region, queries: Tensor, keys: Tensor, device: torch.device) -> Piece | None:
    ends = queries.min(), queries.max()
    columns = _span(region.reaches(*ends, keys))
    if columns is None:
        return None
    border = _span(~region.covers(*ends, keys[columns])) or slice(0, 0)
    inside = region.holds(queries[:, None], keys[columns][border])
    return Piece(region, columns, border, inside.to(device))


def _runs(columns: list[slice]) -> tuple[slice, ...]:
    """The same columns in ascending runs that do not touch."""
    runs: list[slice] = []
    for each in sorted(columns, key=lambda each: each.start):
        if runs and each.start <= runs[-1].stop:
            runs[-1] = slice(runs[-1].start, max(runs[-1].stop, each.stop))
        else:
            runs.append(each)
    return tuple(runs)


def _span(wanted: Tensor) -> slice | None:
    """From the first to the last that is wanted."""
    found = wanted.nonzero().flatten()
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else None

"""Which keys each block of queries sees, and in which region: worked out once for all layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ropex.positions import PositionMap, Region

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
        columns: All keys that they see.
        pieces: By region.
    """

    rows: slice
    columns: slice
    pieces: tuple[Piece, ...]


def blocks(
    positions: PositionMap, queries: Tensor, keys: Tensor, size: int, device: torch.device
) -> Iterator[Block]:
    """Blocks of at most `size` queries.

    Args:
        positions: The map.
        queries: Positions, `(tokens,)`, int64, on the CPU.
        keys: Positions, `(keys,)`, likewise.
        size: Queries of a block.
        device: Where attention is computed.
    """
    levels = positions.level(queries)
    changes = (levels.diff() != 0).nonzero().flatten() + 1
    ends = sorted({*changes.tolist(), len(queries)})
    start = 0
    for end in ends:
        regions = positions.regions(int(levels[start])) if levels[start] else PLAIN
        for first in range(start, end, size):
            rows = slice(first, min(first + size, end))
            found = [_piece(region, queries[rows], keys, device) for region in regions]
            pieces = tuple(piece for piece in found if piece is not None)
            if pieces:
                low = min(piece.columns.start for piece in pieces)
                high = max(piece.columns.stop for piece in pieces)
                yield Block(rows, slice(low, high), pieces)
        start = end


def _piece(region: Region, queries: Tensor, keys: Tensor, device: torch.device) -> Piece | None:
    ends = queries.min(), queries.max()
    columns = _span(region.reaches(*ends, keys))
    if columns is None:
        return None
    border = _span(~region.covers(*ends, keys[columns])) or slice(0, 0)
    inside = region.holds(queries[:, None], keys[columns][border])
    return Piece(region, columns, border, inside.to(device))


def _span(wanted: Tensor) -> slice | None:
    """From the first to the last that is wanted."""
    found = wanted.nonzero().flatten()
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else None

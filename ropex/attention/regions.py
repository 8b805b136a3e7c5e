"""Exact attention in which the position of a key depends on how far the query is from it.

Queries go in blocks. Each pair of a query and a key lies in one region of the map, so the scores of
all regions form one matrix, and one softmax runs over it; only keys on the border of two regions
are multiplied twice. Memory is linear in the number of keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ropex.attention.schedule import Block, Piece, blocks
from ropex.attention.turns import Turn
from ropex.positions import SAME, Place, PositionMap

_SCORES = 2**22
"""Scores of a block: as many as stay in the caches of a processor."""


@dataclass(frozen=True, eq=False)
class Settings:
    """What attention functions of transformers are given besides queries, keys and values.

    Attributes:
        scaling: Multiplies scores.
        mask: `(batch or 1, heads or 1, queries, keys)`: whether a key is seen, or what is added
            to scores; None if the map decides alone.
        softcap: Scores are `softcap * tanh(score / softcap)`; None for as they are.
        sinks: A score for each head, `(heads,)`, of a key without a value.
        dropout: Share of weights that are dropped.
    """

    scaling: float
    mask: Tensor | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    dropout: float = 0.0


def attend_in_regions(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    at: tuple[Tensor, Tensor],
    positions: PositionMap,
    turn: Turn,
    settings: Settings,
) -> Tensor:
    """Attention under a map.

    Args:
        query: `(batch, heads, queries, dim)`, rotated to where they stand.
        key: `(batch, key heads, keys, dim)`, likewise.
        value: `(batch, key heads, keys, value dim)`.
        at: Positions of queries and of keys, `(queries,)` and `(keys,)`, int64, on the CPU.
        positions: The map.
        turn: How states are turned.
        settings: The rest.

    Returns:
        `(batch, queries, heads, value dim)`.
    """
    work = _Work(query, key, value, at, turn, settings)
    size = max(16, _SCORES // (query.shape[0] * query.shape[1] * key.shape[2]))
    out = query.new_zeros(*query.shape[:3], value.shape[-1])
    parts = []
    done = 0
    for block in blocks(positions, *at, size, query.device):
        parts.append(out[:, :, done : block.rows.start])
        if torch.is_grad_enabled() and query.requires_grad:  # scores are computed again, not kept
            parts.append(checkpoint(work.output, block, use_reentrant=False))
        else:
            parts.append(work.output(block))
        done = block.rows.stop
    parts.append(out[:, :, done:])
    return torch.cat(parts, 2).transpose(1, 2)


@dataclass(frozen=True, eq=False)
class _Work:
    query: Tensor
    key: Tensor
    value: Tensor
    at: tuple[Tensor, Tensor]
    turn: Turn
    settings: Settings
    turned: dict[Place, Tensor] = field(default_factory=dict)

    def output(self, block: Block) -> Tensor:
        """Of the queries of a block, `(batch, heads, queries, value dim)`."""
        batch, heads, _, _ = self.query.shape
        key_heads, rows = self.key.shape[1], block.rows.stop - block.rows.start
        scores = self._scores(block)
        weights = self._weights(scores.view(batch, heads, rows, -1), block)
        weights = functional.dropout(weights, self.settings.dropout).to(self.value.dtype)
        grouped = weights.view(batch, key_heads, -1, weights.shape[-1])
        found = grouped @ block.seen(self.value)
        return found.view(batch, heads, rows, -1)

    def _scores(self, block: Block) -> Tensor:
        """`(batch, key heads, heads for each * queries, keys)`; the least number where masked."""
        batch, heads, _, _ = self.query.shape
        key_heads, rows = self.key.shape[1], block.rows.stop - block.rows.start
        width = sum(run.stop - run.start for run in block.columns)
        shape = batch, key_heads, heads // key_heads, rows, width
        scores = self.query.new_full(shape, torch.finfo(self.query.dtype).min)
        for piece in block.pieces:
            products = self._products(block, piece).view(*shape[:-1], -1)
            start = block.start(piece)
            there = scores[..., start : start + products.shape[-1]]
            low, high = piece.border.start, piece.border.stop
            there[..., :low] = products[..., :low]
            there[..., high:] = products[..., high:]
            border = there[..., low:high]
            there[..., low:high] = torch.where(piece.inside, products[..., low:high], border)
        return scores

    def _products(self, block: Block, piece: Piece) -> Tensor:
        region = piece.region
        query = self.query[:, :, block.rows] * self.settings.scaling
        if region.query != SAME:
            heads, at = self.query.shape[1], self.at[0][block.rows]
            angles = self.turn.angles(region.query, at, self.key.shape[1])
            repeats = heads // angles.shape[0] if angles.shape[0] > 1 else 1
            query = self.turn(query, angles.repeat_interleave(repeats, 0))
        key = self._turned(region.key)[:, :, piece.columns]
        return query.reshape(*key.shape[:2], -1, key.shape[-1]) @ key.transpose(2, 3)

    def _turned(self, place: Place) -> Tensor:
        """All keys at a place; those of one place are kept, as neighbouring blocks share it."""
        if place == SAME:
            return self.key
        if place not in self.turned:
            self.turned.clear()
            angles = self.turn.angles(place, self.at[1], self.key.shape[1])
            self.turned[place] = self.turn(self.key, angles)
        return self.turned[place]

    def _weights(self, scores: Tensor, block: Block) -> Tensor:
        settings, least = self.settings, torch.finfo(scores.dtype).min
        if settings.softcap is not None:
            seen = scores > least
            capped = settings.softcap * (scores / settings.softcap).tanh()
            scores = capped.where(seen, least)
        if settings.mask is not None:
            mask = block.seen(settings.mask[:, :, block.rows].mT).mT
            if mask.dtype == torch.bool:
                scores = scores.where(mask, least)
            else:
                scores = (scores + mask).clamp(min=least)
        if settings.sinks is None:
            return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        sinks = settings.sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        both = torch.cat([scores, sinks.to(scores.dtype)], -1)
        return both.softmax(-1, dtype=torch.promote_types(both.dtype, torch.float32))[..., :-1]

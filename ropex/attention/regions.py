"""Exact attention in which the position of a key depends on how far the query is from it.

Queries go in blocks. Each pair of a query and a key lies in one region of the map, so the scores of
all regions form one matrix, and one softmax runs over it; only keys on the border of two regions
are multiplied twice. Memory is linear in the number of keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ropex.attention.schedule import Block, Piece, Schedule
from ropex.attention.turns import Turn
from ropex.positions import SAME, Place

_SCORES = 2**22
"""Scores of a block: as many as stay in the caches of a processor."""

Turned = Callable[[Tensor, Place, Callable[[Tensor, slice], Tensor]], Tensor]
"""Keeps turned keys between calls: keys, their place, and what turns a run of them."""


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
    schedule: Schedule,
    turn: Turn,
    settings: Settings,
    kept: Turned | None = None,
) -> Tensor:
    """Attention under a map.

    Args:
        query: `(batch, heads, queries, dim)`, rotated to where they stand.
        key: `(batch, key heads, keys, dim)`, likewise.
        value: `(batch, key heads, keys, value dim)`.
        schedule: Where queries and keys stand, and the map.
        turn: How states are turned.
        settings: The rest.
        kept: What keeps turned keys for the next call; None to turn them here.

    Returns:
        `(batch, queries, heads, value dim)`.
    """
    size = max(16, _SCORES // (query.shape[0] * query.shape[1] * key.shape[2]))
    blocks = schedule.blocks(size, query.device)
    learns = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
    once = learns or len(blocks) == 1
    work = _Work(query, key, value, schedule, turn, settings, once, None if learns else kept)
    parts = [work.unseen(0, blocks[0].rows.start if blocks else query.shape[2])]
    for place, block in enumerate(blocks):
        if learns:  # scores are computed again, not kept
            parts.append(checkpoint(work.output, block, use_reentrant=False))
        else:
            parts.append(work.output(block))
        after = blocks[place + 1].rows.start if place + 1 < len(blocks) else query.shape[2]
        parts.append(work.unseen(block.rows.stop, after))
    return torch.cat([part for part in parts if part.shape[2]], 2).transpose(1, 2).contiguous()


@dataclass(frozen=True, eq=False)
class _Work:
    query: Tensor
    key: Tensor
    value: Tensor
    schedule: Schedule
    turn: Turn
    settings: Settings
    once: bool
    kept: Turned | None
    turned: dict[Place, Tensor] = field(default_factory=dict)

    def unseen(self, start: int, stop: int) -> Tensor:
        """Of queries that see no key."""
        batch, heads = self.query.shape[:2]
        return self.query.new_zeros(batch, heads, stop - start, self.value.shape[-1])

    def output(self, block: Block) -> Tensor:
        """Of the queries of a block, `(batch, heads, queries, value dim)`."""
        batch, heads, _, _ = self.query.shape
        key_heads, rows = self.key.shape[1], block.rows.stop - block.rows.start
        weights = self._weights(self._scores(block).view(batch, heads, rows, -1), block)
        weights = functional.dropout(weights, self.settings.dropout).to(self.value.dtype)
        grouped = weights.reshape(batch, key_heads, -1, weights.shape[-1])
        return (grouped @ block.seen(self.value)).view(batch, heads, rows, -1)

    def _scores(self, block: Block) -> Tensor:
        """`(batch, key heads, heads for each, queries, keys)`; the least number where masked."""
        batch, heads, _, _ = self.query.shape
        key_heads, rows = self.key.shape[1], block.rows.stop - block.rows.start
        shape = batch, key_heads, heads // key_heads, rows
        if len(block.pieces) == 1 and not block.pieces[0].inside.numel():
            return self._products(block, block.pieces[0]).view(*shape, -1)
        width = sum(run.stop - run.start for run in block.columns)
        scores = self.query.new_full((*shape, width), torch.finfo(self.query.dtype).min)
        for piece in block.pieces:
            products = self._products(block, piece).view(*shape, -1)
            start = block.start(piece)
            there = scores[..., start : start + products.shape[-1]]
            low, high = piece.border.start, piece.border.stop
            there[..., :low] = products[..., :low]
            there[..., high:] = products[..., high:]
            border = there[..., low:high]
            there[..., low:high] = torch.where(piece.inside, products[..., low:high], border)
        return scores

    def _products(self, block: Block, piece: Piece) -> Tensor:
        query = self.query[:, :, block.rows] * self.settings.scaling
        if piece.region.query != SAME:
            query = self.turn(query, *self._tables(piece.region.query, block.rows))
        key = self._keys(piece)
        return query.reshape(*key.shape[:2], -1, key.shape[-1]) @ key.transpose(2, 3)

    def _tables(self, place: Place, rows: slice) -> tuple[Tensor, Tensor]:
        """Cos and sin for queries, `(heads or 1, queries, pairs)`."""
        at, heads, key_heads = self.schedule.queries[rows], self.query.shape[1], self.key.shape[1]
        cos, sin = self.turn.tables(place, at, key_heads, self.query)
        repeats = heads // key_heads if len(cos) > 1 else 1
        return cos.repeat_interleave(repeats, 0), sin.repeat_interleave(repeats, 0)

    def _keys(self, piece: Piece) -> Tensor:
        """The keys of a piece at their place; those of one place serve all blocks that see them."""
        place, columns = piece.region.key, piece.columns
        if place == SAME:
            return self.key[:, :, columns]
        if self.kept is not None:
            return self.kept(self.key, place, lambda key, run: self._turn(key, place, run))[
                :, :, columns
            ]
        if self.once:
            return self._turn(self.key[:, :, columns], place, columns)
        if place not in self.turned:
            self.turned.clear()
            self.turned[place] = self._turn(self.key, place, slice(0, self.key.shape[2]))
        return self.turned[place][:, :, columns]

    def _turn(self, key: Tensor, place: Place, run: slice) -> Tensor:
        tables = self.schedule.tables(self.turn, place, self.key.shape[1], self.key)
        return self.turn(key, *(table[:, run] for table in tables))

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

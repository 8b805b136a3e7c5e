"""Causal attention within groups of tokens, which half of the heads shift."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def shifted_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, groups: int, **settings: Any
) -> Tensor:
    """Attend within groups; see `ropex.attention.shifted`.

    Args:
        query: `(batch, heads, length, head dim)`.
        key: Of the same shape.
        value: `(batch, heads, length, value dim)`.
        mask: What each query may see, `(batch or 1, 1, length, length)`, boolean or added to
            logits; None for all tokens before it.
        groups: How many groups.
        settings: Passed on to torch's attention.

    Returns:
        `(batch, heads, length, value dim)`.
    """
    size, heads = -(-query.shape[2] // groups), query.shape[1] // 2
    states = query, key, value
    still = _attend([each[:, :heads] for each in states], mask, size, **settings)
    first = size - size // 2
    moved = []
    for part in (slice(0, first), slice(first, None)):
        here = None if mask is None else mask[:, :, part, part]
        moved.append(_attend([each[:, heads:, part] for each in states], here, size, **settings))
    return torch.cat([still, torch.cat(moved, dim=2)], dim=1)


def _attend(states: list[Tensor], mask: Tensor | None, size: int, **settings: Any) -> Tensor:
    """Causal attention within groups of `size` tokens from the first on; the last may be short."""
    batch, _, length, _ = states[0].shape
    if not length:
        return states[-1]
    size = min(size, length)
    missing = -length % size
    padded = (functional.pad(each, (0, 0, 0, missing)) for each in states)
    query, key, value = (
        each.unflatten(2, (-1, size)).transpose(1, 2).flatten(0, 1) for each in padded
    )
    blocks = None if mask is None else _blocks(mask, batch, size, missing)
    output = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=blocks, is_causal=mask is None, **settings
    )
    whole: Tensor = output.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)
    return whole[:, :, :length]


def _blocks(mask: Tensor, batch: int, size: int, missing: int) -> Tensor:
    """A mask for each group, `(batch * groups, 1, size, size)`.

    Nobody sees keys that were added; queries that were added see all, as a row of nothing but
    minus infinity has no softmax.
    """
    seen, hidden = (True, False) if mask.dtype == torch.bool else (0.0, float("-inf"))
    mask = functional.pad(mask, (0, missing), value=hidden)
    mask = functional.pad(mask, (0, 0, 0, missing), value=seen)
    pairs = mask.unflatten(3, (-1, size)).unflatten(2, (-1, size))
    blocks: Tensor = pairs.diagonal(dim1=2, dim2=4).movedim(-1, 1)
    return blocks.expand(batch, -1, -1, -1, -1).flatten(0, 1)

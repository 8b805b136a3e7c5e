"""Un-rotated keys in caches: each call of a decoder rotates all of them for its own queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ropex.attention.caches import Call, filled_cache
from ropex.model.sites.hooks import Tables
from ropex.model.tables import TableAt


class KeyRotation:
    """Hooks of the decoder: the cache holds un-rotated keys, and each call rotates all of them.

    Every query sees all keys rotated for the length that the sequence has at its own position. So
    it makes no difference how a sequence is cut into calls.

    Args:
        rotary: The rotary module, whose own output is the identity meanwhile.
        tables: Its tables.
        table_at: The table of a length; None if all lengths have the same.
    """

    def __init__(self, rotary: nn.Module, tables: Tables, table_at: TableAt | None) -> None:
        self.rotary, self.tables, self.table_at = rotary, tables, table_at

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Pre-hook: hand the rotation of all keys on to attention.

        Raises:
            RuntimeError: The positions of the keys are not known; see `key_positions`.
        """
        call = Call.of(module, args, kwargs)
        positions = key_positions(call)
        dtype = module.get_input_embeddings().weight.dtype  # type: ignore[operator]
        x = torch.zeros(1, dtype=dtype, device=positions.device)
        spans = self.spans(positions, call.past)
        turns = Turns(self.tables, self.rotary, x, positions, call.past, spans)
        return args, {**kwargs, "ropex_turns": turns}

    def after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Hook: let the cache remember where its keys stand, and that they are un-rotated."""
        cache = filled_cache(args, kwargs, output)
        if cache is not None:
            cache.ropex_positions = kwargs["ropex_turns"].positions

    def spans(self, positions: Tensor, past: int) -> tuple[Span, ...]:
        """Runs of queries that share a table in every row of the batch."""
        queries = positions.shape[1] - past
        if self.table_at is None or queries == 1:
            return (Span(0, queries, positions[:, past:].amax(1) + 1),)
        runs: tuple[Span, ...] = self._runs(positions[:, past:] + 1)
        return runs

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _runs(self, lengths: Tensor) -> tuple[Span, ...]:
        assert self.table_at is not None
        known: dict[int, tuple[float, ...]] = {}
        for length in lengths.unique().tolist():
            known[length] = tuple(self.table_at(torch.tensor(length))[0].tolist())
        columns = [tuple(known[n] for n in column) for column in lengths.T.tolist()]
        ends = [i for i in range(1, len(columns)) if columns[i] != columns[i - 1]]
        bounds = zip([0, *ends], [*ends, len(columns)], strict=True)
        return tuple(Span(start, stop, lengths[:, stop - 1]) for start, stop in bounds)


@dataclass(frozen=True)
class Span:
    """Queries `start` to `stop` of a call, and the length that each row has for them."""

    start: int
    stop: int
    lengths: Tensor


@dataclass(frozen=True)
class Turns:
    """The rotations of one call of a decoder.

    Attributes:
        tables: Of the rotary module.
        rotary: The rotary module.
        x: Tells dtype and device.
        positions: Of the keys, cached ones first, `(batch, keys)`.
        past: Keys that are older than the first query.
        spans: Runs of queries that share a table.
    """

    tables: Tables
    rotary: nn.Module
    x: Tensor
    positions: Tensor
    past: int
    spans: tuple[Span, ...]

    def at(self, span: Span) -> tuple[Tensor, Tensor]:
        """Cos and sin at every key's position, `(batch, keys, dim)`, for the queries of a span."""
        cos, sin = self.tables.rotation(self.rotary, self.x, self.positions, span.lengths)
        return cos, sin


def key_positions(call: Call) -> Tensor:
    """Position of each key, cached ones first, `(batch or 1, past + length)`.

    The cache remembers those of cached keys. Where its rows have changed since, they follow from
    the two-dimensional attention mask, as transformers counts positions when it generates.

    Raises:
        RuntimeError: The cache holds keys of other rows, and no mask tells their positions.
    """
    if not call.past:
        return call.positions
    cached: Tensor = call.cache.ropex_positions
    rows = call.tokens.shape[0]
    if cached.shape[0] in (1, rows):
        both = (each.expand(rows, -1) for each in (cached[:, : call.past], call.positions))
        return torch.cat([*both], 1)
    if isinstance(call.mask, Tensor) and call.mask.ndim == 2:
        positions = (call.mask.long().cumsum(1) - 1).clamp(min=0)
        positions = positions[:, : call.past + call.tokens.shape[1]]
        if torch.equal(positions[:, call.past :], call.positions.expand(rows, -1)):
            return positions
    raise RuntimeError(
        f"the key-value cache was filled with {cached.shape[0]} rows and is continued with {rows}; "
        "pass the attention_mask, (batch, keys), and position_ids that count its ones"
    )

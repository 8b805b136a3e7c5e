"""Un-rotated keys in caches: each call of a decoder rotates all of them for its own queries."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ropex.attention.caches import Call, filled_cache
from ropex.attention.dispatch import Step
from ropex.errors import UnsupportedModel
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


def _rotated(
    function: Any,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    turns: Turns | None = kwargs.pop("ropex_turns", None)
    if not hasattr(module, "ropex_unrotated"):
        return function(module, query, key, value, attention_mask, *args, **kwargs)
    outputs = []
    for part, rotated, rows in rotated_parts(module, query, key, turns):
        mask = attention_mask
        if rows != slice(0, query.shape[2]):
            mask = _mask(module, query, key, attention_mask, kwargs)[:, :, rows]
        outputs.append(function(module, part, rotated, value, mask, *args, **kwargs))
    if len(outputs) == 1:
        return outputs[0]
    weights = [weight for _, weight in outputs if weight is not None]
    return torch.cat([o for o, _ in outputs], 1), torch.cat(weights, 2) if weights else None


UNROTATED = Step("un-rotated keys", "ropex_unrotated", _rotated)
"""Finds how many dimensions rotate on the module as `ropex_unrotated`, and `Turns` in the call."""

# Attention functions that take a mask row by row.
_SPLIT = ("sdpa", "eager")


def check_split(name: str) -> None:
    """Refuse attention that cannot compute the queries of one call one after the other.

    Raises:
        UnsupportedModel: It cannot.
    """
    if name not in _SPLIT:
        raise UnsupportedModel(
            f"attention {name!r} cannot give each query a length of its own; load the model with "
            f"attn_implementation={' or '.join(map(repr, _SPLIT))}"
        )


def _mask(
    module: nn.Module, query: Tensor, key: Tensor, given: Tensor | None, kwargs: dict[str, Any]
) -> Tensor:
    """The mask that attention computes with where it is given none, which means a causal one."""
    if given is not None:
        return given
    queries, keys = query.shape[2], key.shape[2]
    causal = kwargs.get("is_causal")
    whole = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=query.device)
    causal = getattr(module, "is_causal", True) if causal is None else causal
    return whole.tril(keys - queries) if causal else whole


def rotated_parts(
    module: nn.Module, query: Tensor, key: Tensor, turns: Turns | None
) -> Iterator[tuple[Tensor, Tensor, slice]]:
    """Rotated queries, all keys rotated for them, and which queries these are.

    Args:
        module: The attention module.
        query: `(batch, heads, length, head dim)`.
        key: `(batch, key heads, keys, head dim)`.
        turns: What rotates them.

    Raises:
        UnsupportedModel: The model did not hand the rotation on to its attention.
    """
    if turns is None:
        raise UnsupportedModel(
            f"{type(module).__name__} does not hand keyword arguments on to its attention "
            'function, so its keys cannot stay un-rotated; leave cache="unrotated" out'
        )
    for span in turns.spans:
        tables = turns.at(span)
        rows, past = slice(span.start, span.stop), turns.past
        there = (table[:, past + span.start : past + span.stop] for table in tables)
        keys = (_as_long_as(table, key.shape[2]) for table in tables)
        yield _rotate(module, query[:, :, rows], *there), _rotate(module, key, *keys), rows


def _rotate(module: nn.Module, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first dimensions of `states`, as the model's own file does."""
    dim: int = module.ropex_unrotated  # type: ignore[assignment]
    turned, rest = states[..., :dim], states[..., dim:]
    apply = from_file(type(module), "apply_rotary_pos_emb")
    turned = apply(turned, turned[:, :0], cos, sin)[0]
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def _as_long_as(table: Tensor, keys: int) -> Tensor:
    """`(batch, positions, dim)` for `keys` keys: the last ones of a window, or room for more."""
    missing = keys - table.shape[1]
    return functional.pad(table, (0, 0, 0, missing)) if missing >= 0 else table[:, -keys:]


def from_file(cls: type, name: str) -> Any:
    """A function of the modeling file that a class, or one of its parents, comes from."""
    files = (vars(sys.modules[parent.__module__]) for parent in cls.__mro__)
    found = next((file[name] for file in files if name in file), None)
    if found is None:
        raise UnsupportedModel(f"{cls.__name__}: its file has no function {name}")
    return found

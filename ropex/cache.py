"""Key-value caches under a patch: refuse to mix keys, or keep them un-rotated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ropex.hooks import TableAt, Tables


class CacheGuard:
    """Pre-hook of the decoder: refuse to mix keys that were rotated for different lengths.

    Args:
        strategy: The strategy's text, for the message.
        trained_length: Tokens up to which every length has the same frequencies.
        switches: Whether all lengths beyond it have the same frequencies as well (LongRoPE).
    """

    def __init__(self, strategy: str, trained_length: int, switches: bool) -> None:
        self.strategy, self.trained_length, self.switches = strategy, trained_length, switches

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise a RuntimeError if a filled cache is continued beyond the trained length."""
        past = past_of(args, kwargs)
        if not past:
            return
        start, end = _span(past, args, kwargs)
        if end > self.trained_length and not (self.switches and start > self.trained_length):
            raise RuntimeError(
                f"{self.strategy}: a key-value cache cannot be continued beyond the trained length "
                f"of {self.trained_length} tokens, as its keys are rotated for a shorter sequence; "
                'patch with cache="unrotated", fix the length (dynamic:length=32k) or pass '
                "use_cache=False"
            )


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
        past = past_of(args, kwargs)
        positions = key_positions(past, args, kwargs)
        dtype = module.get_input_embeddings().weight.dtype  # type: ignore[operator]
        x = torch.zeros(1, dtype=dtype, device=positions.device)
        turns = Turns(self.tables, self.rotary, x, positions, past, self.spans(positions, past))
        return args, {**kwargs, "ropex_turns": turns}

    def after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Hook: let the cache remember where its keys stand, and that they are un-rotated."""
        cache = getattr(output, "past_key_values", None)
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


def past_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Tokens in the cache that a decoder is called with."""
    cache = _cache(args, kwargs)
    return 0 if cache is None else int(cache.get_seq_length())


def key_positions(past: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Position of each key, cached ones first, `(batch, past + length)`.

    Those of cached keys follow from the two-dimensional attention mask, as transformers counts
    positions when it generates; where there is none, the cache remembers them.

    Raises:
        RuntimeError: The cache holds keys that were rotated, or of other rows, or the positions
            of this call do not follow from the mask.
    """
    tokens = _tokens(args, kwargs)
    length = tokens.shape[1]
    mask, given = kwargs.get("attention_mask"), kwargs.get("position_ids")
    if not past and given is not None:
        return torch.as_tensor(given)
    cached: Tensor | None = getattr(_cache(args, kwargs), "ropex_positions", None)
    if past and cached is None:
        raise RuntimeError(
            "the key-value cache holds keys that were rotated before this patch; start anew"
        )
    if isinstance(mask, Tensor) and mask.ndim == 2:
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, : past + length]
        _check_given(given, positions[:, past:], mask[:, past : past + length])
        return positions
    if given is None:
        given = torch.arange(past, past + length, device=tokens.device)[None]
    if cached is None:
        return torch.as_tensor(given)
    rows = tokens.shape[0]
    if {cached.shape[0], given.shape[0]} - {1, rows}:
        raise RuntimeError(
            f"the key-value cache was filled with {cached.shape[0]} rows and is continued with "
            f"{rows}; pass an attention_mask of (batch, keys), which tells their positions"
        )
    return torch.cat([cached.expand(rows, -1)[:, :past], given.expand(rows, -1)], 1)


def _check_given(given: Tensor | None, counted: Tensor, seen: Tensor) -> None:
    """Raise a RuntimeError if positions are given that do not follow from the mask."""
    if given is None or torch.compiler.is_compiling():
        return
    if ((given != counted) & seen.bool()).any():
        raise RuntimeError(
            "un-rotated keys need positions that follow from the attention mask (its running sum); "
            "the given position_ids do not"
        )


def _cache(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    values = (*args, *kwargs.values())
    return next((value for value in values if hasattr(value, "get_seq_length")), None)


def _tokens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Ids or embeddings of this call, `(batch, length, ...)`."""
    names = ("input_ids", "inputs_embeds")
    given: list[Any] = [kwargs[name] for name in names if kwargs.get(name) is not None]
    tokens: Tensor = (given or args)[0]
    return tokens


def _span(past: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
    """Tokens of the shortest sequence before this call, and of the longest after it."""
    positions = kwargs.get("position_ids")
    if positions is not None and not torch.compiler.is_compiling():
        return int(positions[:, 0].min()), int(positions.max()) + 1
    return past, past + int(_tokens(args, kwargs).shape[1])

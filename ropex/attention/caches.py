"""Key-value caches under a patch: refuse to mix keys, or keep them un-rotated."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ropex.attention.keys import filled_cache, tokens_in
from ropex.model.sites.hooks import Tables
from ropex.model.tables import TableAt

# What decoders call their tokens; else it is the first tensor that they are given.
_INPUTS = ("input_ids", "inputs_embeds")


class CacheGuard:
    """Hooks of the decoder: refuse to mix keys that were rotated for different lengths.

    That they were rotated by this patch is known already; see `ropex.attention.keys`.

    Args:
        strategy: The strategy's text, for the message.
        trained_length: Tokens up to which every length has the same frequencies.
        switches: Whether all lengths beyond it have the same frequencies as well (LongRoPE).
        by_row: Whether each row of a batch has a table of its own.
    """

    def __init__(
        self, strategy: str, trained_length: int, switches: bool, by_row: bool = True
    ) -> None:
        self.strategy, self.trained_length, self.switches = strategy, trained_length, switches
        self.by_row = by_row

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook.

        Raises:
            RuntimeError: A filled cache is continued beyond the trained length.
        """
        call = Call.of(module, args, kwargs)
        padded = isinstance(call.mask, Tensor) and call.mask.ndim == 2 and not call.mask.all()
        if padded and not self.by_row and call.end > self.trained_length:
            raise RuntimeError(
                f"{self.strategy}: this model rotates all rows of a batch alike, so those with "
                "padding would count as longer than they are; give rows one by one, or fix the "
                "length (dynamic:length=32k)"
            )
        kept: tuple[Tensor, Tensor] | None = getattr(call.cache, "ropex_lengths", None)
        if call.cache is None and call.end > self.trained_length and call.goes_on(module):
            self._refuse()
        if not call.past:
            if kept is not None:  # it was emptied
                del call.cache.ropex_lengths
            return
        if kept is None:
            raise RuntimeError(
                f"{self.strategy}: the key-value cache does not say for which lengths its keys are "
                "rotated, as the call that filled it was cut off; start anew with an empty cache"
            )
        shortest, longest = int(kept[0]), max(int(kept[1]), call.end)
        beyond = self.switches and shortest > self.trained_length
        if longest > self.trained_length and not beyond:
            self._refuse()

    def _refuse(self) -> None:
        raise RuntimeError(
            f"{self.strategy}: a key-value cache cannot be continued beyond the trained length "
            f"of {self.trained_length} tokens, as its keys are rotated for a shorter sequence; "
            'patch with cache="unrotated", fix the length (dynamic:length=32k) or pass '
            "use_cache=False"
        )

    def after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Hook: let the cache remember for which lengths its keys are rotated."""
        cache = filled_cache(args, kwargs, output)
        if not hasattr(cache, "get_seq_length"):
            return
        lengths = named(module, args, kwargs).get("position_ids")
        if lengths is None:
            lengths = torch.full((1, 1), tokens_in(cache) - 1, device=output[0].device)
        lengths = lengths.amax(1) + 1
        old = getattr(cache, "ropex_lengths", (lengths.amin(), lengths.amax()))
        cache.ropex_lengths = (
            torch.minimum(old[0], lengths.amin()),
            torch.maximum(old[1], lengths.amax()),
        )


@dataclass(frozen=True)
class Call:
    """What a decoder is called with.

    Attributes:
        cache: The key-value cache; None if there is none.
        past: Tokens in it.
        tokens: Ids or embeddings, `(batch, length, ...)`.
        mask: The attention mask, of whatever kind.
        caches: Whether keys are to be kept.
        positions: Of these tokens, `(batch or 1, length)`: as given, or counted on from the cache
            as transformers does.
    """

    cache: Any
    past: int
    tokens: Tensor
    mask: Any
    caches: bool
    positions: Tensor

    @classmethod
    def of(cls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Read the arguments by name, wherever they stand."""
        given = named(module, args, kwargs)
        cache = given.get("past_key_values")
        past = _length_of(cache)
        inputs = (*(given.get(name) for name in _INPUTS), *given.values())
        tokens = next(each for each in inputs if isinstance(each, Tensor))
        positions = given.get("position_ids")
        if positions is None and given.get("cache_position") is not None:
            positions = given["cache_position"][None]
        if positions is None:
            positions = torch.arange(past, past + tokens.shape[1], device=tokens.device)[None]
        caches = given.get("use_cache") is not False
        return cls(cache, past, tokens, given.get("attention_mask"), caches, positions)

    def goes_on(self, module: nn.Module) -> bool:
        """Whether a decoder without a cache object continues keys that its own modules keep."""
        one = self.caches and self.tokens.shape[1] == 1
        return one and any(hasattr(each, "_update_cache") for each in module.modules())

    @property
    def end(self) -> int:
        """Tokens of the longest sequence after this call."""
        if torch.compiler.is_compiling():
            return self.past + int(self.tokens.shape[1])
        return int(self.positions.max()) + 1


def named(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, those given by place as well."""
    names = inspect.signature(module.forward).parameters
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _length_of(cache: Any) -> int:
    """Tokens in a key-value cache.

    Raises:
        RuntimeError: It is of a kind that cannot remember how its keys are rotated.
    """
    legacy = isinstance(cache, (tuple, list))
    if cache is None or (legacy and not any(layer is not None for layer in cache)):
        return 0
    if not hasattr(cache, "get_seq_length"):
        raise RuntimeError(
            "this model keeps keys in tuples, which cannot remember for which length they are "
            "rotated; fix the length (dynamic:length=32k) or pass use_cache=False"
        )
    return tokens_in(cache)


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

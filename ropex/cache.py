"""Key-value caches under a patch: refuse to mix keys, or keep them un-rotated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ropex.hooks import Tables


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

    Exact for every strategy, at the price of a rotation of the whole cache in each layer and call.

    Args:
        rotary: The rotary module, whose own output is the identity meanwhile.
        tables: Its tables.
    """

    def __init__(self, rotary: nn.Module, tables: Tables) -> None:
        self.rotary, self.tables = rotary, tables

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Pre-hook: hand cos and sin of all keys on to attention.

        Raises:
            RuntimeError: The cache holds rotated keys, or the positions of the keys are not known.
        """
        past = past_of(args, kwargs)
        if past and not hasattr(_cache(args, kwargs), "ropex_unrotated"):
            raise RuntimeError(
                "the key-value cache holds keys that were rotated before this patch; start anew"
            )
        positions = key_positions(past, args, kwargs)
        dtype = module.get_input_embeddings().weight.dtype  # type: ignore[operator]
        x = torch.zeros(1, dtype=dtype, device=positions.device)
        cos, sin = self.tables.rotation(self.rotary, x, positions)
        return args, {**kwargs, "ropex_rotation": (cos, sin, past)}

    def after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Hook: mark the cache as one of un-rotated keys."""
        cache = getattr(output, "past_key_values", None)
        if cache is not None:
            cache.ropex_unrotated = True


def past_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Tokens in the cache that a decoder is called with."""
    cache = _cache(args, kwargs)
    return 0 if cache is None else int(cache.get_seq_length())


def key_positions(past: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Position of each key, cached ones first, `(batch, past + length)`.

    They follow from the two-dimensional attention mask, as transformers counts positions when it
    generates; without one, they are 0, 1, 2, ...

    Raises:
        RuntimeError: The given positions of this call are others.
    """
    given: Tensor = _tokens(args, kwargs)
    mask, asked = kwargs.get("attention_mask"), kwargs.get("position_ids")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, : past + given.shape[1]]
        seen = mask[:, past : past + given.shape[1]].bool()
    else:
        positions = torch.arange(past + given.shape[1], device=given.device)
        positions = positions[None].expand(given.shape[0], -1)
        seen = torch.ones_like(positions[:, past:], dtype=torch.bool)
    if asked is None or torch.compiler.is_compiling():
        return positions
    if ((asked != positions[:, past:]) & seen).any():
        raise RuntimeError(
            "un-rotated keys need positions that follow from the attention mask (its running sum) "
            "or count from 0; the given position_ids do neither"
        )
    return positions


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

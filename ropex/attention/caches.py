"""Key-value caches of all kinds: found in a call of a decoder, counted, and read."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# What decoders call their tokens; else it is the first tensor that they are given.
_INPUTS = ("input_ids", "inputs_embeds")


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


def tokens_in(cache: Any) -> int:
    """Tokens in a key-value cache, by the layers that count them."""
    own = getattr(cache, "key_cache", ()) if not hasattr(cache, "layers") else ()
    if len(own) and not any(keys.numel() for keys in own):  # Bamba counts a row of none as a token
        return 0
    length = int(cache.get_seq_length())
    layers = () if length else getattr(cache, "layers", ())  # one without attention has none
    counted = [int(each.get_seq_length()) for each in layers if hasattr(each, "get_seq_length")]
    return max(length, *counted) if counted else length


def given_cache(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The cache among the arguments of a decoder; None if there is none."""
    cache = kwargs.get("past_key_values")
    return _among((*args, *kwargs.values())) if cache is None else cache


def filled_cache(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """The cache that a decoder has filled: what it returns, or else was given."""
    cache = getattr(output, "past_key_values", None)
    if cache is None and isinstance(output, tuple):
        cache = _among(output)
    return given_cache(args, kwargs) if cache is None else cache


def _among(values: tuple[Any, ...]) -> Any:
    return next((each for each in values if _is_cache(each)), None)


def _is_cache(value: Any) -> bool:
    """Whether it is a cache, or a tuple of pairs in its place; other outputs are flat tuples."""
    pairs = isinstance(value, (tuple, list)) and any(isinstance(e, (tuple, list)) for e in value)
    return pairs or hasattr(value, "get_seq_length")


def holder_of(cache: Any) -> Any:
    """What carries the mark of a cache: the one that grows; of tuples, their first tensor."""
    while isinstance(cache, (tuple, list)):
        cache = next((each for each in cache if each is not None), None)
    return getattr(cache, "self_attention_cache", cache)

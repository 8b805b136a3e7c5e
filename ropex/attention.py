"""The attention function of a patched model: it scales queries, and rotates un-rotated ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ropex.errors import UnsupportedModel
from ropex.rope import QueryScale

if TYPE_CHECKING:
    from ropex.cache import Turns

PREFIX = "ropex_"
# Attention functions that take a mask row by row.
_SPLIT = ("sdpa", "eager")


def patched_attention(base: str, split: bool = False) -> str:
    """Name under which transformers finds attention `base` with what a patch adds to it.

    The name is added to transformers' tables of attention and mask functions the first time it is
    asked for; nothing that was there changes.

    Args:
        base: An attention implementation of transformers.
        split: Whether queries of one call may have to be computed one after the other.

    Raises:
        UnsupportedModel: `base` cannot be split.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if split and base not in _SPLIT:
        raise UnsupportedModel(
            f"attention {base!r} cannot give each query a length of its own; load the model with "
            f"attn_implementation={' or '.join(map(repr, _SPLIT))}"
        )
    name = f"{PREFIX}{'split_' if split else ''}{base}"
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _Attention(base))
        AttentionMaskInterface.register(name, _mask_function(base, split))
    return name


class AttentionGuard:
    """Pre-hook of the decoder: refuse to run past ropex's attention function.

    Args:
        strategy: The strategy's text, for the message.
        config: Of the decoder.
    """

    def __init__(self, strategy: str, config: Any) -> None:
        self.strategy, self.config = strategy, config

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Raise a RuntimeError if another attention was set since."""
        if not self.config._attn_implementation.startswith(PREFIX):
            raise RuntimeError(
                f"{self.strategy}: the attention implementation was set to "
                f"{self.config._attn_implementation} after patching, so ropex's is no longer "
                "called; set it before"
            )


class _Attention:
    """An attention function of transformers, and before it what a patch asks for."""

    def __init__(self, base: str) -> None:
        self.base = base

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        turns: Turns | None = kwargs.pop("ropex_turns", None)
        scale: QueryScale | None = getattr(module, "ropex_query_scale", None)
        if scale is not None:
            query = query * factors(module, scale, kwargs.get("position_ids")).to(query.dtype)
        function = self._function(type(module))
        if not hasattr(module, "ropex_unrotated"):
            return function(module, query, key, value, attention_mask, *args, **kwargs)
        outputs = []
        for part, rotated, rows in rotated_parts(module, query, key, turns):
            mask = (
                attention_mask if rows == slice(0, query.shape[2]) else attention_mask[:, :, rows]
            )
            outputs.append(function(module, part, rotated, value, mask, *args, **kwargs))
        if len(outputs) == 1:
            return outputs[0]
        weights = [weight for _, weight in outputs if weight is not None]
        return torch.cat([o for o, _ in outputs], 1), torch.cat(weights, 2) if weights else None

    def _function(self, attention: type) -> Any:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        eager = "eager_attention_forward"  # a function of each modeling file
        return ALL_ATTENTION_FUNCTIONS.get(self.base) or from_file(attention, eager)


def _mask_function(base: str, split: bool) -> Any:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    function: Any = ALL_MASK_ATTENTION_FUNCTIONS[base]
    if not split:
        return function

    def whole(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **{**kwargs, "allow_is_causal_skip": False})

    return whole


def factors(module: nn.Module, scale: QueryScale, positions: Tensor | None) -> Tensor:
    """Factors of the queries, `(batch, 1, length, 1)`."""
    if positions is None:
        raise UnsupportedModel(
            f"{type(module).__name__} does not tell its attention function the positions, "
            "so its queries cannot be scaled by position"
        )
    return scale(positions)[:, None, :, None]


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

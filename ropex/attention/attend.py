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
    from ropex.attention.unrotated import Turns

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


class AttentionGuard:
    """Pre-hook of the decoder: refuse to go on with an attention that was not checked.

    Args:
        strategy: The strategy's text, for the message.
        config: Of the decoder, patched.
    """

    def __init__(self, strategy: str, config: Any) -> None:
        self.strategy, self.config = strategy, config
        self.name = config._attn_implementation

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Raise a RuntimeError if another attention was set since."""
        name = self.config._attn_implementation
        if name != self.name:
            raise RuntimeError(
                f"{self.strategy}: the attention implementation was set to {name} after patching, "
                f"which was done for {self.name}; set it before"
            )


def attend(
    function: Any,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """A step of attention, see `dispatch`: scale queries, and rotate what is not rotated."""
    turns: Turns | None = kwargs.pop("ropex_turns", None)
    scale: QueryScale | None = getattr(module, "ropex_query_scale", None)
    if scale is not None:
        query = query * factors(module, scale, query, kwargs.get("position_ids")).to(query.dtype)
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


def factors(
    module: nn.Module, scale: QueryScale, query: Tensor, positions: Tensor | None
) -> Tensor:
    """Factors of the queries, `(batch or 1, 1, length, 1)`.

    Args:
        module: The attention module.
        scale: What gives the factor of a position.
        query: `(batch, heads, length, head dim)`; the last tokens of a call, if not all (Gemma 4,
            whose layers without keys of their own compute what logits are wanted of).
        positions: Of all tokens of a call, `(batch or 1, tokens)`, or for each of three axes, of
            which the furthest counts, from which text after an image is counted on.

    Raises:
        UnsupportedModel: There are no positions.
    """
    if positions is None:
        raise UnsupportedModel(
            f"{type(module).__name__} does not tell its attention function the positions, "
            "so its queries cannot be scaled by position"
        )
    if positions.ndim == 3:
        positions = positions.amax(0)
    return scale(positions[:, -query.shape[2] :])[:, None, :, None]


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

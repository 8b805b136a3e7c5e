"""The attention function of a patched model: it scales queries, and rotates un-rotated ones."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ropex.errors import UnsupportedModel
from ropex.rope import QueryScale

PREFIX = "ropex_"


def patched_attention(base: str) -> str:
    """Name under which transformers finds attention `base` with what a patch adds to it.

    The name is added to transformers' tables of attention and mask functions the first time it is
    asked for; nothing that was there changes.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if base.startswith(PREFIX):
        return base
    name = PREFIX + base
    if name not in ALL_ATTENTION_FUNCTIONS:

        def attend(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
        ) -> Any:
            rotation = kwargs.pop("ropex_rotation", None)
            if hasattr(module, "ropex_unrotated"):
                query, key = rotate(module, query, key, rotation)
            scale: QueryScale | None = getattr(module, "ropex_query_scale", None)
            if scale is not None:
                query = query * factors(module, scale, kwargs.get("position_ids")).to(query.dtype)
            function: Any = ALL_ATTENTION_FUNCTIONS.get(base) or eager_of(type(module))
            return function(module, query, key, value, *args, **kwargs)

        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name


def factors(module: nn.Module, scale: QueryScale, positions: Tensor | None) -> Tensor:
    """Factors of the queries, `(batch, 1, length, 1)`."""
    if positions is None:
        raise UnsupportedModel(
            f"{type(module).__name__} does not tell its attention function the positions, "
            "so its queries cannot be scaled by position"
        )
    return scale(positions)[:, None, :, None]


def rotate(
    module: nn.Module, query: Tensor, key: Tensor, rotation: tuple[Tensor, Tensor, int] | None
) -> tuple[Tensor, Tensor]:
    """Rotate queries and all cached keys, as the model's own file does.

    Args:
        module: The attention module.
        query: `(batch, heads, length, head dim)`.
        key: `(batch, key heads, keys, head dim)`.
        rotation: cos and sin at the position of each key, and how many keys are older than the
            first query.

    Raises:
        UnsupportedModel: The model did not hand the rotation on to its attention.
    """
    if rotation is None:
        raise UnsupportedModel(
            f"{type(module).__name__} does not hand keyword arguments on to its attention "
            'function, so its keys cannot stay un-rotated; leave cache="unrotated" out'
        )
    cos, sin, past = rotation
    length = query.shape[2]
    query = _apply(module, query, cos[:, past : past + length], sin[:, past : past + length])
    cos, sin = (_as_long_as(part, key.shape[2]) for part in (cos, sin))
    return query, _apply(module, key, cos, sin)


def eager_of(attention: type) -> Any:
    """The eager attention function of the modeling file that a class, or a parent, comes from."""
    return _from_file(attention, "eager_attention_forward")


def _apply(module: nn.Module, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first dimensions of `states`, as many as cos and sin are for."""
    dim: int = module.ropex_unrotated  # type: ignore[assignment]
    turned, rest = states[..., :dim], states[..., dim:]
    turned = _from_file(type(module), "apply_rotary_pos_emb")(turned, turned[:, :0], cos, sin)[0]
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def _as_long_as(part: Tensor, keys: int) -> Tensor:
    """`(batch, positions, dim)` for `keys` keys: the last ones of a window, or room for more."""
    missing = keys - part.shape[1]
    return functional.pad(part, (0, 0, 0, missing)) if missing > 0 else part[:, -missing:]


def _from_file(cls: type, name: str) -> Any:
    files = (vars(sys.modules[parent.__module__]) for parent in cls.__mro__)
    found = next((file[name] for file in files if name in file), None)
    if found is None:
        raise UnsupportedModel(f"{cls.__name__}: its file has no function {name}")
    return found

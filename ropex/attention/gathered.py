"""A step of attention: queries of a slice of a text attend to the keys of all slices before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from ropex.attention.dispatch import Step
from ropex.errors import UnsupportedModel

# What some families ask their attention for besides a causal mask (Mistral, Gemma 2, gpt-oss).
_UNKNOWN = ("sliding_window", "softcap", "s_aux")


@dataclass(frozen=True)
class Slices:
    """A text that is cut into slices of the same length.

    Attributes:
        gather: Puts those of all slices in place of states, `(batch, heads, slice, dim)`, along the
            third dimension.
        index: Which slice the queries are in.
    """

    gather: Callable[[Tensor], Tensor]
    index: int


def _attend(
    function: Any,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend to all keys before each query; the text has no padding before what is scored."""
    from torch.nn.attention.bias import causal_lower_right

    slices: Slices = module.ropex_slices  # type: ignore[assignment]
    asked = [name for name in _UNKNOWN if kwargs.get(name) is not None]
    if attention_mask is not None and not asked:
        asked = ["a mask of its own"]  # of sparse attention
    if asked:
        raise UnsupportedModel(refusal(type(module).__name__, f"with {', '.join(asked)}"))
    end = (slices.index + 1) * query.shape[2]
    keys, values = (slices.gather(each)[:, :, :end] for each in (key, value))
    mask = causal_lower_right(query.shape[2], end)
    grouped = keys.shape[1] != query.shape[1]
    output = functional.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, scale=scaling, enable_gqa=grouped
    )
    return output.transpose(1, 2).contiguous(), None


GATHERED = Step(
    "gathered keys",
    "ropex_slices",
    _attend,
    without=("un-rotated keys", "mapped positions", "shifted attention"),
    why="a process has the positions of its own slice alone; split the text under another patch",
)
"""Finds `Slices` on the module as `ropex_slices`."""


def refusal(name: str, how: str) -> str:
    """A sentence on attention that cannot be split over processes."""
    return f"{name} attends {how}, so a text cannot be split over processes (--cp)"

"""A step of attention: queries are scaled by where they stand."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ropex.attention.dispatch import Step
from ropex.errors import UnsupportedModel
from ropex.rope import QueryScale


def _scaled(function: Any, module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> Any:
    scale: QueryScale | None = getattr(module, "ropex_query_scale", None)
    if scale is not None:
        query = query * factors(module, scale, query, kwargs.get("position_ids")).to(query.dtype)
    return function(module, query, *args, **kwargs)


QUERY_SCALE = Step("scaled queries", "ropex_query_scale", _scaled)
"""Finds a `QueryScale` on the module as `ropex_query_scale`; layers without one are left alone."""


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

"""What families do to the result of their output embedding before they call it logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Finish = Callable[[Tensor], Tensor]
"""What makes logits of what the output embedding returns."""


def finishes(config: Any) -> Iterator[Finish]:
    """A soft cap, a scale, or nothing: the candidates of a config; compare logits to find which.

    Nothing comes last: a cap hardly changes most logits, yet it changes the largest ones.

    Args:
        config: Of the text model.
    """
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        yield lambda logits: cap * torch.tanh(logits / cap)
    if scale := getattr(config, "logit_scale", None):  # Cohere
        yield lambda logits: logits * scale
    if divisor := getattr(config, "logits_scaling", None):  # Granite
        yield lambda logits: logits / divisor
    yield lambda logits: logits


def close(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are equal up to rounding, by the norm of their difference."""
    tolerance = 1e-4 if right.dtype in (torch.float32, torch.float64) else 3e-2
    if left.shape != right.shape:
        return False
    return bool((left - right).float().norm() <= tolerance * right.float().norm())

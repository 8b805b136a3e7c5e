"""Feed-forward parts over a few rows at a time: at long lengths they hold more than attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 4096
"""Tokens that a feed-forward part reads at a time."""

_NAMES = ("mlp", "feed_forward", "ffn")
_PROBE = 8


@contextmanager
def in_rows(parts: list[nn.Module], rows: int = ROWS) -> Iterator[None]:
    """Let these modules read a few rows at a time, and be as they were at the end of the block."""
    for part in parts:
        part.forward = _split(part.forward, rows)
    try:
        yield
    finally:
        for part in parts:
            del part.forward


@torch.no_grad()
def feed_forward(model: nn.Module) -> list[nn.Module]:
    """The modules of a model that treat each token by itself, by their names and by trying.

    Mixtures of experts are left alone: what they hold depends on the tokens.
    """
    return [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in _NAMES
        and "forward" not in vars(module)  # hooks of accelerate
        and not any("experts" in inner for inner, _ in module.named_modules())
        and _by_token(module)
    ]


def _split(forward: Callable[..., Any], rows: int) -> Callable[..., Any]:
    def run(states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or states.ndim != 3 or states.shape[1] <= rows:
            return forward(states, *args, **kwargs)
        return torch.cat([forward(part) for part in states.split(rows, dim=1)], dim=1)

    return run


def _by_token(module: nn.Module) -> bool:
    matrix = next((p for p in module.parameters() if p.ndim == 2), None)
    if matrix is None or not matrix.is_floating_point() or matrix.device.type == "meta":
        return False
    states = torch.linspace(-1, 1, _PROBE * matrix.shape[1], dtype=matrix.dtype)
    states = states.view(1, _PROBE, -1).to(matrix.device)
    try:
        whole, parts = module(states), [module(part) for part in states.split(_PROBE // 2, dim=1)]
    except Exception:  # it wants more, or another width; code of models fails in many ways
        return False
    if not all(isinstance(each, Tensor) for each in (whole, *parts)):
        return False
    return torch.allclose(torch.cat(parts, dim=1), whole, rtol=1e-2, atol=1e-3)

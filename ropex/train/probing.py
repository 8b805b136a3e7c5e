"""A few tokens to try a live model on, in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_PROBE = 32


def probe_ids(model: Any) -> Tensor:
    """Token ids, `(1, tokens)`, where the input embedding of a model of transformers is."""
    weight = model.get_input_embeddings().weight
    return torch.arange(min(_PROBE, weight.shape[0]), device=weight.device)[None]


@contextmanager
def trying(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients, for the length of the block."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training

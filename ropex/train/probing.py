"""A few tokens on which a live model is tried, whatever mode it is in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_PROBE = 32


def probe_ids(model: Any) -> Tensor:
    """Token ids, `(1, tokens)`, where the input embedding of a model of transformers is."""
    weight = model.get_input_embeddings().weight
    return torch.arange(min(_PROBE, weight.shape[0]), device=weight.device)[None]

"""The scale of attention logits in latent attention (DeepSeek), which the rope entry decides.

Its families rotate a slice of each head. `attention_scaling` reaches that slice alone, so they
multiply the scale of all logits when they are built, by `(0.1 mscale_all_dim ln(factor) + 1) ** 2`.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ropex.config.write import write_entry
from ropex.model.attributes import set_attribute
from ropex.rope import Plan

SOFTMAX_KEYS = ("factor", "mscale", "mscale_all_dim")
# Later versions of transformers scale these as well; 4 forgot.
_FORGOTTEN = ("deepseek_v2",)


def latent_attention(model: nn.Module, config: Any) -> tuple[Any, ...]:
    """The attention modules built from `config` whose logits are scaled by its rope entry."""
    found = [
        module
        for module in model.modules()
        if hasattr(module, "kv_lora_rank")
        and isinstance(getattr(module, "scaling", None), float)
        and getattr(module, "config", None) is config
    ]
    reads = found and (config.model_type in _FORGOTTEN or _reads_entry(found[0], config))
    return tuple(found) if reads else ()


def same_softmax(latent: tuple[Any, ...], config: Any, plan: Plan) -> bool:
    """Whether such modules, if there are any, built from `config` scale their logits as planned."""
    if not latent:
        return True
    planned: float = latent[0].scaling * plan.softmax_scale
    return _built(latent[0], config) == planned


def scale_softmax(latent: tuple[Any, ...], plan: Plan, undo: ExitStack) -> None:
    """Multiply the scale of the logits of latent attention by what was planned."""
    for module in latent if plan.softmax_scale != 1 else ():
        set_attribute(module, "scaling", module.scaling * plan.softmax_scale, undo)


def _reads_entry(module: Any, config: Any) -> bool:
    scalings = []
    for mscale in (0.0, 1.0):
        changed = copy.deepcopy(config)
        entry = {"rope_type": "yarn", "factor": 4.0, "mscale": mscale, "mscale_all_dim": mscale}
        try:
            write_entry(changed, entry, config.max_position_embeddings, 4)
            scalings.append(_built(module, changed))
        except Exception:  # a family that takes no such entry
            return False
    return scalings[0] != scalings[1]


def _built(module: Any, config: Any) -> float:
    """The scale of an attention module like this one, built from `config`."""
    with torch.device("meta"):
        return float(type(module)(config, module.layer_idx).scaling)

"""Rotary tables of live modules, and those that transformers builds from a config."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ropex.model.configs import is_adapter
from ropex.model.rotary import ancestors
from ropex.model.sites.base import Site
from ropex.model.sites.buffers import BufferSite
from ropex.model.tables import close
from ropex.rope import Plan

Tables = tuple[tuple[int, Plan], ...]
"""Plans by length in tokens: one within the trained length, one far beyond it."""


def same_table(table: Tensor, scale: float, plan: Plan) -> bool:
    """Whether the frequencies and the factor of cos and sin are the planned ones."""
    return close(table, plan.inv_freq.cpu()) and abs(scale - float(plan.attention_scale)) < 1e-6


def asked(site: BufferSite, module: Any, length: int) -> tuple[Tensor, float]:
    """Frequencies, `(dim // 2,)`, on the CPU, and scale of a module like that of `site`.

    Args:
        site: Where such a module is.
        module: The module; it is called for a sequence of `length` tokens.
        length: Tokens.
    """
    with torch.no_grad():
        table, scale = site.slot.at(module, length)
    return table.cpu(), scale


def built(site: BufferSite, config: Any, lengths: tuple[int, ...]) -> Tables:
    """What transformers computes for a config.

    Args:
        site: What kind of module to build.
        config: The config; it is only read.
        lengths: In tokens, ascending.
    """
    own = has_own_type(site.module) and "ropex_scales" not in vars(site.module)
    with torch.device("cpu"):
        module = type(site.module)(config, **({"rope_type": site.module.rope_type} if own else {}))
    plans = []
    for length in lengths:
        table, scale = asked(site, module, length)
        plans.append(Plan(table.double(), scale))
    return tuple(zip(lengths, plans, strict=True))


def has_own_type(module: Any) -> bool:
    """Whether its rope type may differ from the config's (OLMo 3, transformers 4)."""
    return "rope_type" in inspect.signature(type(module)).parameters


def around(model: nn.Module, site: Site) -> list[Any]:
    """The configs that are saved with the models around a rotary module, outermost first."""
    models = [each for each in ancestors(model, site.name) if hasattr(each, "save_pretrained")]
    found = [vars(each).get("config") for each in models if not is_adapter(each)]
    return [config for config in found if type(config) is type(site.config)]

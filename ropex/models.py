"""Where the rotary embeddings of a model are, and what they were trained with."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ropex.errors import UnsupportedModel
from ropex.native import native_table
from ropex.rope import Rope
from ropex.rope_config import reach, read_entry


@dataclass(frozen=True)
class Site:
    """One rotary module of a model.

    Attributes:
        name: Its path in the model, such as `model.rotary_emb`.
        module: The module; it owns an `inv_freq` buffer and answers `(x, position_ids)`.
    """

    name: str
    module: Any


def sites(model: nn.Module) -> tuple[Site, ...]:
    """Every rotary module of `model`, found by what it holds and how it is called.

    Raises:
        UnsupportedModel: There is none, or one that ropex cannot patch exactly.
    """
    found = [Site(name, module) for name, module in model.named_modules() if _holds(module)]
    family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if not found:
        raise UnsupportedModel(
            f"{family} has no rotary embedding that ropex knows: looked for a module with an "
            f"`inv_freq` buffer in {type(model).__name__} and found none"
        )
    if getattr(found[0].module.config, "alibi", False):  # Falcon: the module is there, unused
        raise UnsupportedModel(
            f"{family} is built with ALiBi (config.alibi), not rotary embeddings"
        )
    for site in found:
        if not _is_standard(site.module):
            raise UnsupportedModel(
                f"{family}: {site.name} ({type(site.module).__name__}) is not a rotary module that "
                "ropex knows: it wants one `inv_freq` buffer and forward(x, position_ids)"
            )
    first = _table(found[0].module)
    if any(not torch.equal(_table(site.module), first) for site in found):
        raise UnsupportedModel(
            f"{family} has different rotary embeddings ({', '.join(s.name for s in found)}); "
            "ropex patches models with one for all layers"
        )
    return tuple(found)


def rope_of(model: nn.Module, trained_length: int | None = None) -> Rope:
    """What the rotary embedding of `model` was trained with, read from the model.

    Args:
        model: A model with rotary embeddings. It is not changed.
        trained_length: Tokens that it was trained at, if its config does not say or is wrong.

    Raises:
        UnsupportedModel: No rotary embedding was found, or not one that ropex can patch.
        ValueError: The config does not say the base or the trained length.
    """
    return rope_at(sites(model)[0], trained_length)


def rope_at(site: Site, trained_length: int | None = None) -> Rope:
    """What one rotary module was trained with; see `rope_of`."""
    module = site.module
    entry = read_entry(module.config)
    # Equal lists are how any static vector is carried; unequal ones switch by length.
    if entry.get("short_factor") != entry.get("long_factor"):
        raise UnsupportedModel(
            f"{module.config.model_type} switches its frequencies by length (longrope); "
            "a strategy needs one set to start from"
        )
    length = reach(module.config, entry) if trained_length is None else trained_length
    if length is None:
        raise ValueError(
            f"the config of {module.config.model_type} does not say the trained length "
            "(max_position_embeddings); give it as trained_length"
        )
    if length < 2:
        raise ValueError(f"trained_length is {length}, it must be at least 2")
    inv_freq = _table(module).double()
    return Rope(
        dim=2 * len(inv_freq),
        base=float(entry["rope_theta"]),
        trained_length=int(length),
        inv_freq=inv_freq,
        attention_scale=float(module.attention_scaling),
        by_length=entry["rope_type"] == "dynamic",
    )


def decoder_of(model: nn.Module, site: Site) -> nn.Module:
    """The smallest model of transformers that holds `site`; it is called with the cache."""
    path = site.name.split(".")
    owners = [model.get_submodule(".".join(path[:depth])) for depth in range(len(path))]
    return next((o for o in reversed(owners) if hasattr(o, "get_input_embeddings")), model)


def _table(module: Any) -> Tensor:
    """The unrounded frequencies of a rotary module, float32, on the CPU."""
    live = module.inv_freq
    if read_entry(module.config)["rope_type"] == "dynamic":
        live = module.original_inv_freq  # the live one depends on what the model saw last
    if live.is_meta or live.dtype != torch.float32:  # not there yet, or rounded by .to(bfloat16)
        return native_table(module, module.config)[0]
    return torch.as_tensor(live).detach().cpu()


def _holds(module: nn.Module) -> bool:
    return any(
        name.endswith("inv_freq") and "original" not in name
        for name, _ in module.named_buffers(recurse=False)
    )


def _is_standard(module: Any) -> bool:
    buffer = getattr(module, "inv_freq", None)
    return (
        isinstance(buffer, Tensor)
        and buffer.ndim == 1
        and isinstance(getattr(module, "rope_type", None), str)
        and hasattr(module, "attention_scaling")
        and hasattr(module, "config")
        and "position_ids" in inspect.signature(module.forward).parameters
        and _follows(module)
    )


def _follows(module: Any) -> bool:
    """Whether what a module returns follows its buffer; PhiMoE's computes its own in each call."""
    if module.inv_freq.is_meta:
        return True
    twin = copy.copy(module)
    twin._buffers = dict(module._buffers)
    twin.rope_type = "default"  # it must not renew its table by itself
    x, positions = torch.zeros(1, 2, 1, device=module.inv_freq.device), torch.arange(2)[None]
    outputs = []
    for factor in (1.0, 0.5):
        twin._buffers["inv_freq"] = module.inv_freq.detach().float() * factor
        output = type(module).forward(twin, x, positions.to(x.device))
        outputs.append(output if isinstance(output, Tensor) else output[0])
    return not torch.equal(*outputs)

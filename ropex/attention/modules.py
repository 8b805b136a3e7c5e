"""The attention modules of a model, and how they are sent through the function of ropex."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from typing import Any

from torch import nn

from ropex.attention.attend import attend, check_split
from ropex.attention.dispatch import calls_interface, route
from ropex.errors import UnsupportedModel
from ropex.model.attributes import set_attribute


def install_attention(
    model: Any,
    configs: tuple[Any, ...],
    attributes: dict[str, Any],
    split: bool,
    undo: ExitStack,
) -> None:
    """Send the attention that reads `configs` through ropex's function.

    Args:
        model: The model.
        configs: What its rotary modules read.
        attributes: What the function finds on each attention module; see `ropex.attention.attend`.
        split: Whether queries of one call may have to be computed one after the other.
        undo: Where the way back is written.

    Raises:
        UnsupportedModel: The model does not let its attention function be chosen.
    """
    found = attention_modules(model, configs)
    if not found or not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedModel(
            f"{configs[0].model_type} does not call transformers' attention interface, so its "
            "queries cannot be scaled nor its keys kept un-rotated"
        )
    for config in configs if split else ():
        check_split(config._attn_implementation or "eager")
    for module in found:
        route(module, attend, undo)
        for name, value in attributes.items():
            layer = getattr(module, "layer_idx", None)
            if layer is None or layer >= getattr(value, "first_layer", 0):
                set_attribute(module, name, value, undo)


def attention_modules(model: nn.Module, configs: tuple[Any, ...]) -> tuple[nn.Module, ...]:
    """The modules that read one of `configs` and call transformers' attention interface."""
    return tuple(
        module
        for module in model.modules()
        if any(vars(module).get("config") is config for config in configs)
        and calls_interface(module)
    )


def part_takes(module: nn.Module, argument: str) -> bool:
    """Whether a part of an attention module takes an argument, as that which selects keys does."""
    parts = (part for part in module.modules() if part is not module)
    return any(argument in inspect.signature(part.forward).parameters for part in parts)

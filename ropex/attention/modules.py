"""The attention modules of a model, and how they are sent through the function of ropex."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from typing import Any

from torch import nn

from ropex.attention.dispatch import Step, calls_interface, route
from ropex.errors import UnsupportedModel
from ropex.model.attributes import set_attribute


def reachable(model: Any, configs: tuple[Any, ...]) -> tuple[nn.Module, ...]:
    """The attention modules that read one of `configs`.

    Raises:
        UnsupportedModel: The model does not let its attention function be chosen.
    """
    found = attention_modules(model, configs)
    if not found or not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedModel(
            f"{configs[0].model_type} does not call transformers' attention interface, so its "
            "queries cannot be scaled nor its keys kept un-rotated"
        )
    return found


def install(modules: tuple[nn.Module, ...], step: Step, value: Any, undo: ExitStack) -> None:
    """Add a step to attention, and what it finds on each module.

    Args:
        modules: Attention modules.
        step: The step.
        value: What it works with; layers before its `first_layer`, where it has one, go without.
        undo: Where the way back is written.

    Raises:
        UnsupportedModel: The step does not go with one that is there.
    """
    for module in modules:
        route(module, step, undo)
        layer = getattr(module, "layer_idx", None)
        if layer is None or layer >= getattr(value, "first_layer", 0):
            set_attribute(module, step.attribute, value, undo)


class AttentionGuard:
    """Pre-hook of the decoder: refuse to go on with an attention that was not checked.

    Args:
        strategy: The strategy's text, for the message.
        config: Of the decoder, patched.
    """

    def __init__(self, strategy: str, config: Any) -> None:
        self.strategy, self.config = strategy, config
        self.name = config._attn_implementation

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Raise a RuntimeError if another attention was set since."""
        name = self.config._attn_implementation
        if name != self.name:
            raise RuntimeError(
                f"{self.strategy}: the attention implementation was set to {name} after patching, "
                f"which was done for {self.name}; set it before"
            )


def attention_modules(model: nn.Module, configs: tuple[Any, ...]) -> tuple[nn.Module, ...]:
    """The modules that read one of `configs` and call transformers' attention interface."""
    return tuple(
        module
        for module in model.modules()
        if any(vars(module).get("config") is config for config in configs)
        and calls_interface(module)
    )


def part_takes(module: nn.Module, argument: str) -> bool:
    """Whether a part of an attention module, such as one that selects keys, takes an argument."""
    parts = (part for part in module.modules() if part is not module)
    return any(argument in inspect.signature(part.forward).parameters for part in parts)

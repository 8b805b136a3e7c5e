"""Change attributes of a live model, with the way back written down before each step."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from torch import Tensor, nn

from ropex.attention import attend, check_split
from ropex.errors import UnsupportedModel
from ropex.routed import calls_interface, route

_MISSING = object()


def set_attribute(module: Any, name: str, value: Any, undo: ExitStack) -> None:
    """Set an attribute of a module, and remember to put back the very object that was there."""
    places = (vars(module), module._buffers, module._parameters)
    old = next((place[name] for place in places if name in place), _MISSING)

    def restore() -> None:
        if old is _MISSING:
            vars(module).pop(name, None)  # unless someone was there before
            module._buffers.pop(name, None)
        elif isinstance(old, Tensor) and not old.is_meta:
            now = getattr(module, name)  # the model may have moved
            if isinstance(now, Tensor) and not now.is_meta:
                dtype = now.dtype if isinstance(old, nn.Parameter) else old.dtype
                old.data = old.data.to(device=now.device, dtype=dtype)
            setattr(module, name, old)
        else:
            setattr(module, name, old)

    undo.callback(restore)
    setattr(module, name, value)


@dataclass(frozen=True)
class Options:
    """How a patch computes, apart from what.

    Attributes:
        precision: `parity` computes cos and sin in float32, as transformers and engines do;
            `exact` in float64.
        cache: Whether key-value caches hold `rotated` keys, as ever, or `unrotated` ones.
    """

    precision: Literal["parity", "exact"] = "parity"
    cache: Literal["rotated", "unrotated"] = "rotated"

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if getattr(self, name) not in get_args(kind):
                allowed = " or ".join(map(repr, get_args(kind)))
                raise ValueError(f"{name} is {getattr(self, name)!r}, it must be {allowed}")


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
        attributes: What the function finds on each attention module; see `ropex.attention`.
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

"""Change a live model, with the way back written down before each step."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor

from ropex.errors import UnsupportedModel
from ropex.hooks import FixedTable, LengthTable, protected, scaled_attention
from ropex.native import Native
from ropex.rope import QueryScale

_MISSING = object()


def set_attribute(module: Any, name: str, value: Any, undo: ExitStack) -> None:
    """Set an attribute of a module, and remember to put back the very object that was there."""
    old = vars(module).get(name, module._buffers.get(name, _MISSING))

    def restore() -> None:
        if old is _MISSING:
            delattr(module, name)
        elif isinstance(old, Tensor) and not old.is_meta:
            setattr(module, name, old.to(_device(module)))  # the model may have moved
        else:
            setattr(module, name, old)

    undo.callback(restore)
    setattr(module, name, value)


def install_rope(module: Any, native: Native, length: int, undo: ExitStack) -> None:
    """Make one rotary module compute `native`.

    Args:
        module: The rotary module.
        native: Its tables.
        length: What the config now has as `max_position_embeddings`.
        undo: Where the way back is written.
    """
    table, rope_type = module.inv_freq, "default"
    if native.table_at is not None:
        # torch.compile notices a new type, but no new hooks. No type here updates its own table.
        rope_type = "proportional" if module.rope_type == "default" else "default"
        by_length = LengthTable(native.table_at)
        before = module.register_forward_pre_hook(by_length.before, with_kwargs=True)
        undo.callback(before.remove)
        undo.callback(module.register_forward_hook(by_length.after, with_kwargs=True).remove)
    elif native.inv_freq is not None:
        table = protected(native.inv_freq.to(_device(module), copy=True))
        fixed = module.register_forward_pre_hook(FixedTable(table), with_kwargs=True)
        undo.callback(fixed.remove)
        if native.entry is not None and native.entry["rope_type"] != "longrope":
            rope_type = native.entry["rope_type"]
    attributes = {
        "inv_freq": table,
        # Its own storage: transformers 4 has one for both, and would see changes to either.
        "original_inv_freq": table.clone(),
        "rope_type": rope_type,
        "attention_scaling": native.attention_scale,
        "max_seq_len_cached": length,
        "original_max_seq_len": length,
    }
    for name, value in attributes.items():
        set_attribute(module, name, value, undo)


def install_query_scale(
    model: Any, configs: tuple[Any, ...], scale: QueryScale, undo: ExitStack
) -> None:
    """Send the attention that reads `configs` through a function that scales the queries first.

    Raises:
        UnsupportedModel: The model does not let its attention function be chosen.
    """
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedModel(
            f"{configs[0].model_type} does not call transformers' attention interface, so its "
            "queries cannot be scaled"
        )
    for config in configs:
        config._attn_implementation = scaled_attention(config._attn_implementation or "eager")
    for module in model.modules():
        if any(vars(module).get("config") is config for config in configs):
            set_attribute(module, "ropex_query_scale", scale, undo)


def _device(module: Any) -> Any:
    return "cpu" if module.inv_freq.is_meta else module.inv_freq.device

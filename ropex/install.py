"""Change a live model, with the way back written down before each step."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from torch import Tensor

from ropex.attention import patched_attention
from ropex.errors import UnsupportedModel
from ropex.exact import ExactTables, layout_of
from ropex.hooks import FixedTable, LengthTable, Rotation, TableAt, Tables, protected
from ropex.native import Native

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


def install_rope(
    module: Any, native: Native, exact_at: TableAt, options: Options, length: int, undo: ExitStack
) -> Tables:
    """Make one rotary module compute `native`.

    Args:
        module: The rotary module.
        native: Its tables.
        exact_at: The float64 table of a length.
        options: How to compute.
        length: What the config now has as `max_position_embeddings`.
        undo: Where the way back is written.

    Returns:
        Its tables as they are installed.
    """
    tables, table, rope_type = _tables_of(module, native)
    by_length = native.table_at is not None
    if options.precision == "exact":
        tables = ExactTables(tables.before, exact_at, by_length, layout_of(module))
    undo.callback(module.register_forward_pre_hook(tables.before, with_kwargs=True).remove)
    if by_length or options != Options():
        each_row = by_length and options.precision == "parity"
        rotation = Rotation(tables, each_row, options.cache == "unrotated")
        undo.callback(module.register_forward_hook(rotation, with_kwargs=True).remove)
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
    return tables


def _tables_of(module: Any, native: Native) -> tuple[Tables, Tensor, str]:
    """The tables of a module, the one that it holds first, and what to call its type."""
    if native.table_at is not None:
        # torch.compile notices a new type, but no new hooks. No type here updates its own table.
        rope_type = "proportional" if module.rope_type == "default" else "default"
        return LengthTable(native.table_at), module.inv_freq, rope_type
    assert native.inv_freq is not None
    table = protected(native.inv_freq.to(_device(module), copy=True))
    kind: str = "longrope" if native.entry is None else native.entry["rope_type"]
    return FixedTable(table), table, "default" if kind == "longrope" else kind


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
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedModel(
            f"{configs[0].model_type} does not call transformers' attention interface, so its "
            "queries cannot be scaled nor its keys kept un-rotated"
        )
    for config in configs:
        config._attn_implementation = patched_attention(
            config._attn_implementation or "eager", split
        )
    for module in model.modules():
        if any(vars(module).get("config") is config for config in configs):
            for name, value in attributes.items():
                layer = getattr(module, "layer_idx", None)
                if layer is None or layer >= getattr(value, "first_layer", 0):
                    set_attribute(module, name, value, undo)


def _device(module: Any) -> Any:
    return "cpu" if module.inv_freq.is_meta else module.inv_freq.device

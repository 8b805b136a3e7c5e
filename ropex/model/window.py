"""Sliding windows of attention, which hide the gain of a longer context."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from ropex.config.families import BASES_BY_LAYER

if TYPE_CHECKING:
    from ropex.model.sites.base import Site

# Types of layers with a window, and what configs call its size.
_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}


def window_of(config: Any) -> int | None:
    """Tokens that a query sees, if no layer of the model sees more; else None."""
    window: int | None = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None) or ()
    return None if any(kind != "sliding_attention" for kind in layer_types) else window


def lift_window(config: Any) -> None:
    """Let every query see all tokens before it, by changing `config` in place.

    Raises:
        ValueError: There is no such window, or it is built into the layers.
    """
    if window_of(config) is None:
        raise ValueError(f"{config.model_type} has no sliding window over all layers to lift")
    if getattr(config, "layer_types", None):
        raise ValueError(f"the window of {config.model_type} is built into its layers")
    config.sliding_window = None


def windowed(site: Site, trained_length: int | None = None) -> bool:
    """Whether a table is used only by layers whose window is within the trained length.

    They never see a distance that they were not trained at, so a strategy leaves them alone.
    """
    config = site.config
    window = getattr(config, "sliding_window", None) or getattr(config, "local_attention", None)
    trained = trained_length or getattr(config, "max_position_embeddings", None)
    if not window or not trained or window > trained:
        return False
    bases = getattr(config, BASES_BY_LAYER, None)
    if bases:
        mine = zip(bases, config.layer_types, strict=True)
        kinds = {kind for base, kind in mine if base == config.rope_parameters["rope_theta"]}
        return kinds == {"sliding_attention"}
    own = getattr(site.layer, "local_attention", None)
    if isinstance(own, tuple):  # ModernBERT in transformers 4: tokens on either side, or -1
        return bool(max(own) >= 0)
    label = site.layer_type or site.name.rsplit(".", 1)[-1]
    return "sliding" in label or "local" in label


def near_only(model: Any, found: tuple[Site, ...], trained_length: int) -> int | None:
    """The window of the layers that rotate, where none of them sees beyond the trained length.

    Layers which see the whole context do not rotate then, so no distance is ever new to the model,
    and there is nothing that a strategy could extend (Cohere 2, EXAONE 4, Llama 4).

    Returns:
        Tokens; None if a layer that rotates sees more.
    """
    config = found[0].config
    types = getattr(config, "layer_types", None) or ()
    sizes = [getattr(config, _WINDOWS[kind], None) or 0 for kind in {*types} & {*_WINDOWS}]
    far = [place for place, kind in enumerate(types) if kind not in _WINDOWS]
    if not far or not sizes or not all(0 < size <= trained_length for size in sizes):
        return None
    if not all(windowed(site, trained_length) for site in found):
        attends = {getattr(m, "layer_idx", None): m for m in model.modules() if _takes_tables(m)}
        if any(place not in attends or _rotates(attends[place], place) for place in far):
            return None
    return int(max(sizes))


def _takes_tables(module: nn.Module) -> bool:
    """Whether a module is attention that is handed cos and sin."""
    inside = any("proj" in name or "qkv" in name for name, _ in module.named_children())
    return inside and "position_embeddings" in inspect.signature(module.forward).parameters


def _rotates(attention: Any, place: int) -> bool:
    """Whether attention of a layer reads cos and sin, found by calling one like it with neither.

    It is built without weights, on the meta device. Whatever goes wrong counts as yes.
    """
    config = copy.copy(attention.config)
    config._attn_implementation = "eager"
    try:
        with torch.device("meta"), torch.no_grad():
            twin = type(attention)(config, place)
            x, position = torch.zeros(1, 1, config.hidden_size), torch.zeros(1, dtype=torch.long)
            taken = inspect.signature(twin.forward).parameters
            given = {"position_ids": position[None], "cache_position": position}
            open_ended = any(each.kind is each.VAR_KEYWORD for each in taken.values())
            given = {name: each for name, each in given.items() if open_ended or name in taken}
            tables = (_Unread(), _Unread())
            twin(hidden_states=x, position_embeddings=tables, attention_mask=None, **given)
    except Exception:  # its type depends on what a family does with a table first
        return True
    return False


class _Unread:
    """A table that cannot be read."""

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(name)

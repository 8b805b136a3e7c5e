"""Put a position map into the attention of a live model."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ropex.attention.dispatch import route
from ropex.attention.layout import STEP, fit
from ropex.attention.mapped import Mapped, Whereabouts, attend_mapped
from ropex.attention.modules import attention_modules
from ropex.attention.turns import Turn
from ropex.errors import UnsupportedModel
from ropex.model.attributes import set_attribute
from ropex.patching.verify import probe_logits

_TOKENS = 8
Seen = dict[nn.Module, list[tuple[Tensor, Tensor]]]


def capture(
    function: Any, module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """A step of attention: keep what it is given."""
    kept: list[tuple[Tensor, Tensor]] = module.ropex_seen  # type: ignore[assignment]
    kept.append((query.detach(), key.detach()))
    return function(module, query, key, *args, **kwargs)


def turns(
    model: Any, modules: tuple[nn.Module, ...], tables: list[Tensor]
) -> dict[nn.Module, Turn]:
    """How each attention module holds rotated states, found by two runs.

    Raises:
        UnsupportedModel: What a module is given differs by no turn.
    """
    before, after = _seen(model, modules, 1), _seen(model, modules, 1 + STEP)
    found, known = {}, {}
    for module in modules:
        if not before[module]:
            continue  # it does not run in a plain pass
        pairs = zip(before[module][0], after[module][0], strict=True)
        query, key = (fit(one, other, tables) for one, other in pairs)
        if query is None or key is None:
            raise UnsupportedModel(
                f"{type(module).__name__} changes queries or keys after it rotated them, so they "
                "cannot be turned to other positions"
            )
        name = (
            [table is query.inv_freq for table in tables].index(True) if len(query.inv_freq) else -1
        )
        found[module] = known.setdefault((name, query.layout, query.start, query.sign), query)
    return found


def _seen(model: Any, modules: tuple[nn.Module, ...], first: int) -> Seen:
    places = {"position_ids": torch.arange(first, first + _TOKENS)[None]}
    with ExitStack() as undo:
        for module in modules:
            set_attribute(module, "ropex_seen", [], undo)
            route(module, capture, undo)
        probe_logits(model, places, _TOKENS)
        return {module: list(module.ropex_seen) for module in modules}  # type: ignore[call-overload]


def install_map(patch: Any, decoders: Any, undo: ExitStack) -> None:
    modules = attention_modules(patch.model, patch.configs)
    if not modules:
        raise UnsupportedModel(
            f"{patch.model.config.model_type} does not call transformers' attention interface, so its positions cannot be mapped"
        )
    layers = sum(1 for module in modules if getattr(module, "layer_idx", None) is not None)
    where = Whereabouts(str(patch.strategy), patch.plan.positions, layers)
    tables = [each.plan.inv_freq for each in patch.planned]
    for module, turn in turns(patch.model, modules, tables).items():
        if window(module) is not None and window(module) <= patch.rope.trained_length:
            continue
        set_attribute(module, "ropex_mapped", Mapped(where, turn), undo)
        route(module, attend_mapped, undo)
    for decoder in decoders:
        undo.callback(decoder.register_forward_pre_hook(where.before, with_kwargs=True).remove)
        undo.callback(decoder.register_forward_hook(where.after, with_kwargs=True).remove)


def window(module: Any) -> int | None:
    kinds = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    config, layer = module.config, getattr(module, "layer_idx", None)
    types = getattr(config, "layer_types", None)
    if types and layer is not None:
        name = kinds.get(types[layer])
        return getattr(config, name, None) if name else None
    found = getattr(module, "sliding_window", None) or getattr(config, "sliding_window", None)
    return found if isinstance(found, int) else None

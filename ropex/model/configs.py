"""A patched model's own copies of its configs, and what happens to edits of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from torch import nn

from ropex.config.entry import read_entry
from ropex.model.attributes import set_attribute

# What a patch writes, or transformers on saving because of it; never an edit of the user.
_OURS = frozenset({
    "rope_parameters", "rope_scaling", "rope_theta", "max_position_embeddings",
    "original_max_position_embeddings",
})  # fmt: skip

Copies = tuple[tuple[Any, Any], ...]
"""Pairs of a config and the copy that the model has in its place."""


def own_configs(model: nn.Module, undo: ExitStack) -> Copies:
    """Give the modules of `model` copies of their configs, which other models may share."""
    memo: dict[int, Any] = {}
    copies: dict[int, tuple[Any, Any]] = {}
    for module in model.modules():
        config = vars(module).get("config")
        if hasattr(config, "model_type"):
            copies[id(config)] = config, copy.deepcopy(config, memo)
            set_attribute(module, "config", copies[id(config)][1], undo)
    return tuple(copies.values())


def keep_edits(copies: Copies, undo: ExitStack) -> None:
    """Let edits that the user makes from now on (a resized vocabulary) outlive the copies.

    Call it when the patch has made its own changes; what it changed comes back as it was.
    """
    patched = [copy.deepcopy(vars(mine)) for _, mine in copies]

    def carry_back() -> None:
        for (original, mine), then in zip(copies, patched, strict=True):
            for key, now in vars(mine).items():
                old = vars(original).get(key)
                theirs = (
                    not hasattr(now, "model_type") and then.get(key) == old and key not in _OURS
                )
                if theirs and now != old:
                    original.__dict__[key] = now

    undo.callback(carry_back)


def homes_of(model: nn.Module, config: Any, layer_type: str) -> tuple[Any, ...]:
    """The configs that are saved with `model` and describe what `config` does.

    It is one of them itself, unless a module has a copy of its own (Granite with windows).
    """
    roots = [m.config for m in model.modules() if hasattr(m, "save_pretrained")]
    saved = list({id(each): each for root in roots for each in _tree(root)}.values())
    if any(each is config for each in saved):
        return (config,)
    entry = read_entry(config, layer_type)
    return tuple(each for each in saved if type(each) is type(config) and read_entry(each) == entry)


def is_adapter(model: Any) -> bool:
    """Whether it is what PEFT puts around a model, and saves without the model's config."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def _tree(config: Any) -> Iterator[Any]:
    """A config and its parts."""
    yield config
    for part in vars(config).values():
        if hasattr(part, "model_type"):
            yield from _tree(part)

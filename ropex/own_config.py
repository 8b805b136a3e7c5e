"""A patched model's own copies of its configs, and what becomes of edits to them."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from typing import Any

from torch import nn

from ropex.install import set_attribute

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
                theirs = not hasattr(now, "model_type") and then.get(key) == old
                if theirs and now != old:
                    original.__dict__[key] = now

    undo.callback(carry_back)

"""Whether the installed transformers makes a model of a config."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LAYERS = 2  # enough, since a rotary module is not in a layer, or is in each
_COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")


def why_not(config: dict[str, Any]) -> str | None:
    """Why transformers makes no model of a config; None if it does.

    The model has no memory, its layers are few, and no code of a checkpoint's own is run.
    """
    import torch
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        with _quiet(), torch.device("meta"):
            kind = CONFIG_MAPPING[config["model_type"]]
            made: Any = kind.from_dict(_shortened(config))
            if type(made) in AutoModel._model_mapping:
                AutoModel.from_config(made, trust_remote_code=False)
    except Exception as error:  # families refuse configs with exceptions of many kinds
        return f"{type(error).__name__}: {error}"
    return None


def _shortened(config: dict[str, Any]) -> dict[str, Any]:
    """A copy with few layers in each part, so that any number of them is built at once."""
    short = copy.deepcopy(config)
    for part in (short, *(each for each in short.values() if isinstance(each, dict))):
        for key in _COUNTS:
            if isinstance(part.get(key), int) and part[key] > _LAYERS:
                part[key] = _LAYERS
                kinds = part.get("layer_types")
                part |= {"layer_types": kinds[:_LAYERS]} if isinstance(kinds, list) else {}
    return short


@contextmanager
def _quiet() -> Iterator[None]:
    """No messages of transformers, for the length of the block."""
    from transformers.utils.logging import get_verbosity, set_verbosity

    before = get_verbosity()
    set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        set_verbosity(before)

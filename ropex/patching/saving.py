"""What `save_pretrained` of a patched model does."""

from __future__ import annotations

import copy
import json
import re
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from ropex.config.entry import read_entries
from ropex.config.notations import (
    by_layer_type,
    each_entry,
    is_nested,
    misread_by_4,
    version_5,
    with_magnitude,
    written,
)
from ropex.files.writing import write_json
from ropex.model.attributes import set_attribute
from ropex.model.configs import is_adapter
from ropex.patching.record import write_record

_LATENT = ("kv_lora_rank", "qk_rope_head_dim")  # of configs with latent attention


def install_saving(
    model: nn.Module, configs: tuple[Any, ...], refused: str | None, undo: ExitStack
) -> None:
    """Let every part of `model` that can be saved write what it computes, or refuse to.

    Args:
        model: The patched model.
        configs: What its rotary modules read.
        refused: The strategy's text, if no config can say what it does.
        undo: Where the way back is written.
    """
    for module in model.modules():
        if not hasattr(module, "save_pretrained"):
            continue
        if refused is None or is_adapter(module):
            saving: Any = SaveBothNotations(module, configs)
        else:
            saving = RefuseSaving(refused)
        set_attribute(module, "save_pretrained", saving, undo)


class RefuseSaving:
    """Stands in for `save_pretrained` where no config can say what the model computes.

    Args:
        strategy: The strategy's text, for the message.
    """

    def __init__(self, strategy: str) -> None:
        self.strategy = strategy

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Raise a ValueError."""
        raise ValueError(
            f"{self.strategy} cannot be written into a config, so the saved model would compute "
            "something else; save it inside `with patch.suspended():` and patch it after loading"
        )


class SaveBothNotations:
    """`save_pretrained`, whose config transformers 4 and 5 read alike.

    transformers 5 alone writes `rope_parameters`, which 4 ignores without a word.

    Args:
        model: What is saved.
        configs: Those of its configs that a patch has changed.
    """

    def __init__(self, model: Any, configs: tuple[Any, ...]) -> None:
        self.model, self.configs = model, configs

    def __call__(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does, then complete the config."""
        type(self.model).save_pretrained(self.model, save_directory, *args, **kwargs)
        if not kwargs.get("is_main_process", True):
            return
        write_record(self.model, Path(save_directory))
        path = Path(save_directory) / "config.json"
        if path.is_file() and not _is_of_trainer(path.parent):
            raw = json.loads(path.read_text(encoding="utf-8"))
            raw = completed(raw, self.model.config, self.configs)
            write_json(path, raw, sort_keys=True)


def complete_config(folder: Path) -> None:
    """Let transformers 4 read a config that 5 has written of a model without a patch in it.

    What code of a checkpoint's own reads, and a folder that `Trainer` goes on from, stay as they
    are.
    """
    path = folder / "config.json"
    if not version_5() or not path.is_file() or _is_of_trainer(folder):
        return
    raw = json.loads(path.read_text(encoding="utf-8"))
    if "auto_map" in raw or "rope_theta" in raw or not raw.get("rope_parameters"):
        return
    from transformers import AutoConfig

    raw = both_notations(raw, AutoConfig.from_pretrained(folder))
    write_json(path, raw, sort_keys=True)


def _is_of_trainer(folder: Path) -> bool:
    """Whether `Trainer` is to go on from this folder, which that of transformers 5 reads by itself.

    It builds a config of no family from the file, and fails on `rope_theta` beside a `rope_scaling`
    of a type that states the trained length (`_load_from_checkpoint`, 5.23).
    """
    return re.fullmatch(r"checkpoint-\d+", folder.name) is not None and version_5()


def completed(raw: dict[str, Any], config: Any, patched: tuple[Any, ...]) -> dict[str, Any]:
    """The JSON of a config with both notations of its patched parts.

    Args:
        raw: The JSON of the checkpoint that `config` was read from.
        config: The same config, changed by a patch; it may have others as parts.
        patched: Those that were changed.
    """
    parts = {key: part for key, part in vars(config).items() if hasattr(part, "model_type")}
    raw = {**raw, **{k: completed(raw[k], parts[k], patched) for k in parts.keys() & raw.keys()}}
    return both_notations(raw, config) if any(config is each for each in patched) else raw


def both_notations(raw: dict[str, Any], config: Any) -> dict[str, Any]:
    """The JSON of a config with the rotary part of `config`, for transformers 4 and 5 alike.

    Args:
        raw: The JSON of the checkpoint that `config` was read from.
        config: The same config, with the rotary part that is to be written.
    """
    entries = read_entries(config)
    if not is_nested(entries) and not entries["rope_theta"]:  # RoFormer, whose table is a weight
        return raw
    entries = by_layer_type(entries, config)
    if not any(hasattr(config, name) for name in _LATENT) and not is_nested(entries):
        entries = with_magnitude(entries)
    each = each_entry(entries)
    if misread := misread_by_4(entries, config.model_type):
        warnings.warn(
            f"transformers 4 {misread}; load this checkpoint with transformers 5", stacklevel=2
        )
    result = {**copy.deepcopy(raw), **written(entries, config.model_type)}
    if hasattr(config, "max_position_embeddings"):  # Recurrent Gemma has none
        result["max_position_embeddings"] = config.max_position_embeddings
    for key in ("head_dim", "sliding_window", "use_sliding_window"):
        value = vars(config).get(key)
        if key in raw or (key == "head_dim" and value is not None):
            result[key] = value
    key = "original_max_position_embeddings"
    # Read at the root by transformers 4 (longrope) and by converters (llama3).
    read_there = [entry for entry in each if entry["rope_type"] in ("llama3", "longrope")]
    lengths = [entry.get(key, getattr(config, key, None)) for entry in read_there]
    if lengths or key in raw:
        result[key] = lengths[0] if lengths else each[0].get(key, raw.get(key))
    return result

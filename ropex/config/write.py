"""Write the rotary part of a model's config, in the notation of transformers 4 or 5."""

from __future__ import annotations

from typing import Any

from ropex.config.entry import read_entry
from ropex.config.notations import version_4, version_5
from ropex.config.values import ORIGINAL, PARAMETERS

_TYPE_KEYS = {"type", ORIGINAL, *PARAMETERS}
# Rope types whose factor multiplies `max_position_embeddings`, which must stay as trained.
_MULTIPLIES_MAX = ("linear", "dynamic")


def write_entry(
    config: Any, entry: dict[str, Any], trained: int, target: int, layer_type: str = ""
) -> None:
    """Put `entry` and the lengths that belong to it into `config`, in place.

    Args:
        config: A config of either version; keys of other uses in its old entry are kept.
        entry: The new rope entry; `rope_theta` stays as it was if it is left out.
        trained: Tokens that the model was trained at.
        target: Tokens that it will reach.
        layer_type: Of which layers, in a config with an entry for each type.
    """
    old = read_entry(config, layer_type)
    entry = {**{key: old[key] for key in old.keys() - _TYPE_KEYS}, **entry}
    if "llama_4_scaling_beta" in old:  # Ministral 3 reads the original length at every call
        entry.setdefault(ORIGINAL, old[ORIGINAL])
    config.max_position_embeddings = trained if entry["rope_type"] in _MULTIPLIES_MAX else target
    # transformers 4 hands a head_dim of None to YaRN, dynamic and longrope, and 5 for Mixtral.
    # Not by getattr, which some families refuse where layers differ in it (Gemma 4).
    if vars(config).get("head_dim", 0) is None:
        config.head_dim = config.hidden_size // config.num_attention_heads
    original = entry.get(ORIGINAL)
    # At the root it overrules the entry, and is all that transformers 4 reads for longrope.
    read_there = hasattr(config, ORIGINAL) or not version_5()
    if original is not None and read_there:
        config.original_max_position_embeddings = original
    if layer_type:
        config.rope_parameters = {**config.rope_parameters, layer_type: entry}
    elif version_5() or hasattr(config, "rope_parameters"):
        config.rope_parameters = entry  # version 4 keeps it too, from a file with both notations
    if not version_5():
        for key, value in version_4(entry, config.model_type).items():
            setattr(config, key, value)


def carrier(ratios: list[float], attention_scale: float, length: int) -> dict[str, Any]:
    """A `longrope` entry that carries any static frequencies exactly.

    Args:
        ratios: Unscaled frequency over wanted one, of each pair.
        attention_scale: What cos and sin are multiplied by.
        length: Tokens that the model will reach; written as the switch point, so that both
            lists, which are equal, mean the same in every engine.
    """
    return {
        "rope_type": "longrope",
        "short_factor": ratios,
        "long_factor": ratios,
        "factor": 1.0,
        "attention_factor": attention_scale,
        ORIGINAL: length,
    }

"""The rotary part of a model's config, in the notations of transformers 4 and 5.

An *entry* is one dict with `rope_type`, `rope_theta` and the parameters of the type: what
transformers 5 stores as `rope_parameters`, and transformers 4 as `rope_theta` and `rope_scaling`.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

from ropex.errors import UnsupportedModel

# Parameters of one rope type; they go when another type is written.
# fmt: off
_TYPE_KEYS = frozenset({
    "type", "factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
    "truncate", "low_freq_factor", "high_freq_factor", "short_factor", "long_factor",
    "short_mscale", "long_mscale", "original_max_position_embeddings", "alpha",
})
# fmt: on
# Names that transformers 4 has for two keys in some families; it reads no other.
_VERSION_4_NAMES = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "gpt_neox_japanese": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
}
# Families whose rotary module reads no scaling in transformers 4.
_UNSCALED_IN_4 = frozenset({"nemotron", "dbrx", "recurrent_gemma"})
# Rope types whose factor multiplies `max_position_embeddings`, which must stay as trained.
_MULTIPLIES_MAX = ("linear", "dynamic")


def read_entry(config: Any) -> dict[str, Any]:
    """The rope entry of a config of either version, as a new dict.

    Raises:
        UnsupportedModel: The config has one entry per layer type.
        ValueError: The config does not say what the base is.
    """
    if _version_5() and isinstance(getattr(config, "rope_parameters", None), dict):
        entry = dict(config.rope_parameters)
        if any(isinstance(value, dict) for value in entry.values()):
            raise UnsupportedModel(
                f"{config.model_type} has one rotary embedding per layer type "
                f"({', '.join(entry)}); ropex patches models with one for all layers"
            )
    else:
        entry = dict(getattr(config, "rope_scaling", None) or {})
        entry["rope_theta"] = getattr(config, "rope_theta", None)
    entry.setdefault("rope_type", entry.get("type", "default"))
    if not entry.get("rope_theta"):
        raise ValueError(f"the config of {config.model_type} does not say its rope_theta; add it")
    return entry


def reach(config: Any, entry: dict[str, Any]) -> int | None:
    """Tokens that a model is made for by its config, its own scaling included; None if unsaid.

    `max_position_embeddings` stays at the length before scaling in the `linear` type, and in many
    files of the `yarn` type, as model cards and engines read them.
    """
    length: int | None = getattr(config, "max_position_embeddings", None)
    if length is None:
        return None
    factor = float(entry.get("factor") or 1)
    if entry["rope_type"] == "linear":
        return round(length * factor)
    if entry["rope_type"] == "yarn":
        original = entry.get("original_max_position_embeddings") or length
        return max(length, round(original * factor))
    return length


def scaling_of(config: Any) -> str | None:
    """The type and factor of a config's own scaling, in words.

    `llama3` is None as well: Llama 3.1 was trained with it at its full length.
    """
    entry = read_entry(config)
    kind, factor = entry["rope_type"], entry.get("factor")
    if kind in ("default", "llama3"):
        return None
    return f"{kind}, factor {factor:g}" if factor else str(kind)


def write_entry(config: Any, entry: dict[str, Any], trained: int, target: int) -> None:
    """Put `entry` and the lengths that belong to it into `config`, in place.

    Args:
        config: A config of either version; keys of other uses in its old entry are kept.
        entry: The new rope entry; `rope_theta` stays as it was if it is left out.
        trained: Tokens that the model was trained at.
        target: Tokens that it is to reach.
    """
    old = read_entry(config)
    entry = {**{key: old[key] for key in old.keys() - _TYPE_KEYS}, **entry}
    if "llama_4_scaling_beta" in old:  # Ministral 3 reads the original length at every call
        entry.setdefault(
            "original_max_position_embeddings", old["original_max_position_embeddings"]
        )
    config.max_position_embeddings = trained if entry["rope_type"] in _MULTIPLIES_MAX else target
    # transformers 4 hands a head_dim of None to YaRN, dynamic and longrope, and 5 for Mixtral.
    if getattr(config, "head_dim", 0) is None:
        config.head_dim = config.hidden_size // config.num_attention_heads
    original = entry.get("original_max_position_embeddings")
    # At the root it overrules the entry, and is all that transformers 4 reads for longrope.
    read_there = hasattr(config, "original_max_position_embeddings") or not _version_5()
    if original is not None and read_there:
        config.original_max_position_embeddings = original
    if _version_5() or hasattr(config, "rope_parameters"):
        config.rope_parameters = entry  # version 4 keeps it too, from a file with both notations
    if not _version_5():
        _set_version_4(config, entry)


def both_notations(raw: dict[str, Any], config: Any) -> dict[str, Any]:
    """The JSON of a config with the rotary part of `config`, for transformers 4 and 5 alike.

    Args:
        raw: The JSON of the checkpoint that `config` was read from.
        config: The same config, with the rotary part that is to be written.
    """
    entry = read_entry(config)
    if config.model_type in _UNSCALED_IN_4 and entry["rope_type"] != "default":
        warnings.warn(
            f"transformers 4 ignores any scaling of {config.model_type}, without a word; load this "
            "checkpoint with transformers 5",
            stacklevel=2,
        )
    written = copy.deepcopy(raw)
    written["rope_parameters"] = entry
    written.update(_version_4(entry, config.model_type))
    written["max_position_embeddings"] = config.max_position_embeddings
    for key in ("head_dim", "sliding_window", "use_sliding_window"):
        value = getattr(config, key, None)
        if key in raw or (key == "head_dim" and value is not None):
            written[key] = value
    # Read at the root by transformers 4 (longrope) and by converters (llama3).
    if entry["rope_type"] in ("llama3", "longrope"):
        written["original_max_position_embeddings"] = entry["original_max_position_embeddings"]
    elif "original_max_position_embeddings" in raw:
        written["original_max_position_embeddings"] = entry.get(
            "original_max_position_embeddings", raw["original_max_position_embeddings"]
        )
    return written


def carrier(ratios: list[float], attention_scale: float, length: int) -> dict[str, Any]:
    """A `longrope` entry that carries any static frequencies exactly.

    Args:
        ratios: Unscaled frequency over wanted one, of each pair.
        attention_scale: What cos and sin are multiplied by.
        length: Tokens that the model is to reach; written as the switch point, so that both
            lists, which are equal, mean the same in every engine.
    """
    return {
        "rope_type": "longrope",
        "short_factor": ratios,
        "long_factor": ratios,
        "factor": 1.0,
        "attention_factor": attention_scale,
        "original_max_position_embeddings": length,
    }


def fold_version_5(raw: dict[str, Any], config: Any) -> None:
    """Give a transformers 4 config, in place, what a version 5 file says in its notation alone.

    transformers 4 does not know `rope_parameters`, and would read such a file as an unscaled
    model with a base of 10000.
    """
    entry = raw.get("rope_parameters")
    if not _version_5() and isinstance(entry, dict) and "rope_theta" not in raw:
        _set_version_4(config, entry)


def _version_5() -> bool:
    import transformers

    return int(transformers.__version__.split(".")[0]) >= 5


def _set_version_4(config: Any, entry: dict[str, Any]) -> None:
    for key, value in _version_4(entry, config.model_type).items():
        setattr(config, key, value)


def _version_4(entry: dict[str, Any], model_type: str) -> dict[str, Any]:
    """`entry` as transformers 4 has it: base, scaling and rotated share at the root."""
    separate = ("rope_theta", "partial_rotary_factor")
    scaling = {key: value for key, value in entry.items() if key not in separate}
    unscaled = entry.get("rope_type", "default") == "default"
    root = {key: entry[key] for key in separate if key in entry}
    names = _VERSION_4_NAMES.get(model_type, {})
    root.update({names[key]: value for key, value in root.items() if key in names})
    return {**root, "rope_scaling": None if unscaled else scaling}

"""Read and write the rotary part of a model's config, in transformers 4 and 5.

An *entry* is one dict with `rope_type`, `rope_theta` and the parameters of the type: what
transformers 5 stores as `rope_parameters`, and transformers 4 as `rope_theta` and `rope_scaling`.
"""

from __future__ import annotations

from typing import Any

from ropex.config.notations import is_nested, version_4, version_5
from ropex.errors import UnsupportedModel

# Parameters of one rope type; they go when another type is written.
# fmt: off
_TYPE_KEYS = frozenset({
    "type", "factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
    "truncate", "low_freq_factor", "high_freq_factor", "short_factor", "long_factor",
    "short_mscale", "long_mscale", "original_max_position_embeddings", "alpha",
})
# fmt: on
# Numbers of an entry: above the first, at most the second, and how that is said.
_BOUNDS = {
    "rope_theta": (1.0, 1e30, "a number above 1"),
    "factor": (0.0, 1e30, "a number above 0"),
    "partial_rotary_factor": (0.0, 1.0, "a number above 0 and at most 1"),
}
# Rope types whose factor multiplies `max_position_embeddings`, which must stay as trained.
_MULTIPLIES_MAX = ("linear", "dynamic")


def read_entry(config: Any, layer_type: str = "") -> dict[str, Any]:
    """The rope entry of a config of either version, as a new dict.

    Args:
        config: A config of either version.
        layer_type: Of which layers, in a config with an entry for each type.

    Raises:
        UnsupportedModel: The config has one entry per layer type, and none was named.
        ValueError: The config does not say what the base is, or a number in it is none.
    """
    entry = read_entries(config)
    if layer_type:
        entry = dict(entry[layer_type])
    elif is_nested(entry):
        raise UnsupportedModel(
            f"{config.model_type} has one rotary embedding per layer type ({', '.join(entry)}), "
            "and a rotary module of it has one for all layers"
        )
    entry.setdefault("rope_type", entry.get("type", "default"))
    if not entry.get("rope_theta"):
        raise ValueError(f"the config of {config.model_type} does not say its rope_theta; add it")
    for key, (above, most, allowed) in _BOUNDS.items():
        value = entry.get(key, getattr(config, key, None))
        if value is not None and not (isinstance(value, (int, float)) and above < value <= most):
            raise ValueError(
                f"the config of {config.model_type} says {key} {value!r}; it must be {allowed}"
            )
    return entry


def read_entries(config: Any) -> dict[str, Any]:
    """The rope entry of a config, or the dict of one for each layer type, as it stands there."""
    if version_5() and isinstance(getattr(config, "rope_parameters", None), dict):
        return dict(config.rope_parameters)
    entry = dict(getattr(config, "rope_scaling", None) or {})
    entry.setdefault("rope_type", entry.get("type", "default"))
    return {**entry, "rope_theta": getattr(config, "rope_theta", None)}


def reach(config: Any, entry: dict[str, Any]) -> int | None:
    """Tokens that a model is made for by its config, its own scaling included; None if unsaid.

    `max_position_embeddings` stays at the length before scaling in the `linear` type, and in many
    files of the `yarn` and `longrope` types, as model cards and engines read them.
    """
    length: int | None = getattr(config, "max_position_embeddings", None)
    if length is None:
        return None
    factor = float(entry.get("factor") or 1)
    if entry["rope_type"] == "linear":
        return round(length * factor)
    if entry["rope_type"] in ("yarn", "longrope"):
        original = entry.get("original_max_position_embeddings") or length
        return max(length, round(original * factor))
    return length


def switch_of(config: Any, entry: dict[str, Any]) -> int:
    """Tokens up to which a model with a `longrope` entry takes its short list."""
    said = getattr(config, "original_max_position_embeddings", None)
    if version_5():
        said = entry.get("original_max_position_embeddings") or said
    return int(said or config.max_position_embeddings)


def scaling_of(entry: dict[str, Any]) -> str | None:
    """The type and factor of a model's own scaling, in words.

    `llama3` is None as well: Llama 3.1 was trained with it at its full length.
    """
    kind, factor = entry["rope_type"], entry.get("factor")
    if kind in ("default", "llama3") or (kind == "proportional" and not factor):
        return None
    return f"{kind}, factor {factor:g}" if factor else str(kind)


def write_entry(
    config: Any, entry: dict[str, Any], trained: int, target: int, layer_type: str = ""
) -> None:
    """Put `entry` and the lengths that belong to it into `config`, in place.

    Args:
        config: A config of either version; keys of other uses in its old entry are kept.
        entry: The new rope entry; `rope_theta` stays as it was if it is left out.
        trained: Tokens that the model was trained at.
        target: Tokens that it is to reach.
        layer_type: Of which layers, in a config with an entry for each type.
    """
    old = read_entry(config, layer_type)
    entry = {**{key: old[key] for key in old.keys() - _TYPE_KEYS}, **entry}
    if "llama_4_scaling_beta" in old:  # Ministral 3 reads the original length at every call
        entry.setdefault(
            "original_max_position_embeddings", old["original_max_position_embeddings"]
        )
    config.max_position_embeddings = trained if entry["rope_type"] in _MULTIPLIES_MAX else target
    # transformers 4 hands a head_dim of None to YaRN, dynamic and longrope, and 5 for Mixtral.
    # Not by getattr, which some families refuse where layers differ in it (Gemma 4).
    if vars(config).get("head_dim", 0) is None:
        config.head_dim = config.hidden_size // config.num_attention_heads
    original = entry.get("original_max_position_embeddings")
    # At the root it overrules the entry, and is all that transformers 4 reads for longrope.
    read_there = hasattr(config, "original_max_position_embeddings") or not version_5()
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

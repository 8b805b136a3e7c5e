"""How transformers 4 and 5 write the same rope entry into a config.json."""

from __future__ import annotations

import math
from typing import Any

# Names that transformers 4 has for two keys in some families; it reads no other.
_NAMES_IN_4 = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "gpt_neox_japanese": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "modernbert": {"rope_theta": "global_rope_theta"},
    "modernbert-decoder": {"rope_theta": "global_rope_theta"},
}
# Families with an entry per layer type in transformers 5, which 4 knows as well: how 4 calls the
# base of the layers with a window, if it has one of its own.
_LOCAL_BASE_IN_4 = {
    "gemma3_text": "rope_local_base_freq",
    "gemma3n_text": "rope_local_base_freq",
    "modernbert": "local_rope_theta",
    "modernbert-decoder": "local_rope_theta",
    "olmo3": None,
}
# Those of them whose layers all have the base of the full attention in transformers 4.
_ONE_BASE_IN_4 = frozenset({"modernbert-decoder", "olmo3"})
# Families that take only these types of scaling, and no keys but `type` and these.
_KEYS_IN_4 = {
    "olmo": (("linear", "dynamic"), ("factor",)),
    "olmo2": (("linear", "dynamic"), ("factor",)),
    "phi3": (("longrope",), ("short_factor", "long_factor")),
    "phi4_multimodal": (("longrope",), ("short_factor", "long_factor")),
}
# Families whose rotary module reads no scaling in transformers 4.
_UNSCALED_IN_4 = frozenset({"nemotron", "dbrx", "recurrent_gemma", "modernbert-decoder"})
# One that reads a scaling there for all layers, those with a window included; none is written.
_SCALED_ALIKE_IN_4 = frozenset({"modernbert"})
# Types that families refuse there.
_REFUSED_IN_4 = {"hunyuan_v1_dense": ("dynamic",), "hunyuan_v1_moe": ("dynamic",)}
# Families that read any scaling as one of this type, and fail where its parameters are not there.
_ONE_TYPE_IN_4 = {"llama4_text": "llama3"}


def version_5() -> bool:
    """Whether the installed transformers is of version 5 or later."""
    import transformers

    return int(transformers.__version__.split(".")[0]) >= 5


def is_nested(entries: dict[str, Any]) -> bool:
    """Whether this is no entry, but a dict of one for each layer type."""
    return any(isinstance(value, dict) for value in entries.values())


def each_entry(entries: dict[str, Any]) -> list[dict[str, Any]]:
    """The entry, or that of each layer type which rotates."""
    if not is_nested(entries):
        return [entries]
    return [entry for entry in entries.values() if isinstance(entry, dict)]


def version_4(entry: dict[str, Any], model_type: str) -> dict[str, Any]:
    """`entry` as transformers 4 has it: base, scaling and rotated share at the root."""
    separate = ("rope_theta", "partial_rotary_factor")
    root = {key: entry[key] for key in separate if key in entry}
    names = _NAMES_IN_4.get(model_type, {})
    root.update({names[key]: value for key, value in root.items() if key in names})
    # 5 would scale all layers of these by it, as 4 does in the one; 4 reads none in the other.
    if model_type in ("modernbert", "modernbert-decoder"):
        return root
    scaling = {key: value for key, value in entry.items() if key not in separate}
    kind = entry.get("rope_type", "default")
    if _fits_keys(entry, model_type):
        scaling = {"type": kind, **{key: entry[key] for key in _KEYS_IN_4[model_type][1]}}
    # There the axes of positions (Qwen2-VL) are said beside the scaling, or what would be one.
    unscaled = kind == "default" and not any(key.startswith("mrope_") for key in scaling)
    return {**root, "rope_scaling": None if unscaled else scaling}


def misread_by_4(entries: dict[str, Any], model_type: str) -> str | None:
    """What transformers 4 does with these entries, in words, where it is not what 5 does."""
    for entry in each_entry(entries):
        kind = entry.get("rope_type", "default")
        if kind == "default":
            continue
        if model_type in _UNSCALED_IN_4:
            return f"ignores any scaling of {model_type}, without a word"
        if model_type in _SCALED_ALIKE_IN_4:
            return f"has one scaling for all layers of {model_type}, and reads none of this file"
        if kind != _ONE_TYPE_IN_4.get(model_type, kind):
            return f"cannot build {model_type} with this {kind} entry"
        misfit = model_type in _KEYS_IN_4 and not _fits_keys(entry, model_type)
        if misfit or kind in _REFUSED_IN_4.get(model_type, ()):
            return f"refuses to load {model_type} with this {kind} entry"
    bases = {entry["rope_theta"] for entry in each_entry(entries)}
    if len(bases) > 1 and one_base_in_4(model_type):
        return f"has one base for all layers of {model_type}"
    return None


def one_base_in_4(model_type: str) -> bool:
    """Whether transformers 4 gives all layers one base, and 5 each layer type its own."""
    return model_type in _ONE_BASE_IN_4


def keeps_base(model_type: str) -> bool:
    """Whether full attention alone gets another base by a list of factors in both versions.

    transformers 4 has one base for all layers, and reads lists of factors for these alone.
    """
    return model_type in _ONE_BASE_IN_4 - _UNSCALED_IN_4


def misread_by_5(entry: dict[str, Any], model_type: str) -> bool:
    """Whether transformers 5 makes another table of this entry than 4 does.

    It looks for `truncate` beside the entries of the layer types, where there is none.
    """
    return model_type in _LOCAL_BASE_IN_4 and entry.get("truncate") is False


def by_layer_type(entry: dict[str, Any], config: Any) -> dict[str, Any]:
    """The entries of transformers 5 for what 4 computes, in families that have several there.

    Args:
        entry: As transformers 4 has it; in other families it stays as it is.
        config: Of transformers 4.
    """
    kind = config.model_type
    if is_nested(entry) or kind not in _LOCAL_BASE_IN_4:
        return entry
    name = None if one_base_in_4(kind) else _LOCAL_BASE_IN_4[kind]
    base = (name and getattr(config, name)) or entry["rope_theta"]
    local = {"rope_type": "default", "rope_theta": base}
    return {"full_attention": entry, "sliding_attention": local}


def _fits_keys(entry: dict[str, Any], model_type: str) -> bool:
    """Whether a family that takes only some types and keys can say this entry with them."""
    types, _ = _KEYS_IN_4.get(model_type, ((), ()))
    return entry.get("rope_type") in types and entry.get("attention_factor", 1.0) == 1.0


def written(entries: dict[str, Any], model_type: str) -> dict[str, Any]:
    """The keys of a config.json that say the same to transformers 4 and 5.

    Args:
        entries: The entry; or that of each layer type, None where layers do not rotate.
        model_type: Of the config.
    """
    per_layer_type = is_nested(entries)
    if not per_layer_type and model_type in _LOCAL_BASE_IN_4:  # read by 4, which has no such keys
        return version_4(entries, model_type)
    keys = {"rope_parameters": entries}
    if not per_layer_type:
        return {**keys, **version_4(entries, model_type)}
    if model_type in _LOCAL_BASE_IN_4:
        keys.update(version_4(entries["full_attention"], model_type))
        if local := _LOCAL_BASE_IN_4[model_type]:
            keys[local] = entries["sliding_attention"]["rope_theta"]
    return keys


def with_magnitude(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry whose `attention_factor` is said in the other ways that engines read it.

    vLLM and SGLang take `short_mscale` and `long_mscale` of a longrope entry; SGLang, MLX and
    TensorRT-LLM the quotient of two temperatures of a yarn entry, `mscale` and `mscale_all_dim`.
    transformers reads neither where there is an `attention_factor`. Not for latent attention, whose
    softmax `mscale_all_dim` scales as well.
    """
    factor = entry.get("attention_factor")
    if factor is None:
        return entry
    if entry.get("rope_type") == "longrope" and factor != 1:
        return {**entry, "short_mscale": factor, "long_mscale": factor}
    stretch = float(entry.get("factor") or 1)
    if entry.get("rope_type") == "yarn" and stretch > 1 and "mscale" not in entry:
        mscale = (factor - 1) / (0.1 * math.log(stretch))
        return {**entry, "mscale": mscale, "mscale_all_dim": 0.0}
    return entry


def fold_version_5(raw: dict[str, Any], config: Any) -> None:
    """Give a transformers 4 config, in place, what a version 5 file says in its notation alone.

    transformers 4 does not know `rope_parameters`, and would read such a file as an unscaled
    model with a base of 10000.
    """
    entries = raw.get("rope_parameters")
    if version_5() or not isinstance(entries, dict) or "rope_theta" in raw:
        return
    keys = written(entries, config.model_type)
    keys.pop("rope_parameters", None)
    for key, value in keys.items():
        setattr(config, key, value)

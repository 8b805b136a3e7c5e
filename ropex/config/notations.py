"""How transformers 4 and 5 write the same rope entry into a config.json."""

from __future__ import annotations

from typing import Any

from ropex.config.families import (
    BASE_IN_4,
    BY_LAYER,
    KEYS_IN_4,
    NAMES_IN_4,
    ONE_TYPE_IN_4,
    REFUSED_IN_4,
    SCALED_ALIKE_IN_4,
    UNSCALED_IN_4,
)
from ropex.config.parts import Part
from ropex.config.values import positive
from ropex.strategies.attention_factors import mscale_of


def version_5() -> bool:
    """Whether the installed transformers is of version 5 or later."""
    import transformers

    return int(transformers.__version__.split(".")[0]) >= 5


def is_nested(entries: dict[str, Any]) -> bool:
    """Whether this is no entry, but a dict of one for each layer type."""
    typed = "rope_type" in entries or "type" in entries
    return not typed and any(isinstance(value, dict) for value in entries.values())


def layers_in(entries: dict[str, Any], model_type: str) -> dict[str, Any]:
    """What transformers 5 reads of `rope_parameters`: families by layer ignore an entry beside."""
    by_layer = model_type in BY_LAYER and any(isinstance(each, dict) for each in entries.values())
    if not by_layer:
        return entries
    return {key: each for key, each in entries.items() if each is None or isinstance(each, dict)}


def each_entry(entries: dict[str, Any]) -> list[dict[str, Any]]:
    """The entry, or that of each layer type which rotates."""
    if not is_nested(entries):
        return [entries]
    return [entry for entry in entries.values() if isinstance(entry, dict)]


def version_4(entry: dict[str, Any], model_type: str) -> dict[str, Any]:
    """`entry` as transformers 4 has it: base, scaling and rotated share at the root."""
    separate = ("rope_theta", "partial_rotary_factor")
    root = {key: entry[key] for key in separate if key in entry}
    names = NAMES_IN_4.get(model_type, {})
    root.update({names[key]: value for key, value in root.items() if key in names})
    # 5 would scale all layers of these by it, as 4 does in the one; 4 reads none in the other.
    if model_type in ("modernbert", "modernbert-decoder"):
        return root
    scaling = {key: value for key, value in entry.items() if key not in separate}
    kind = entry.get("rope_type", "default")
    if _fits_keys(entry, model_type):
        scaling = {"type": kind, **{key: entry[key] for key in KEYS_IN_4[model_type][1]}}
    # There the axes of positions (Qwen2-VL) are said beside the scaling, or what would be one.
    unscaled = kind == "default" and not any(key.startswith("mrope_") for key in scaling)
    return {**root, "rope_scaling": None if unscaled else scaling}


def misread_by_4(entries: dict[str, Any], model_type: str) -> str | None:
    """What transformers 4 does with these entries, in words, where it is not what 5 does."""
    for entry in each_entry(entries):
        kind = entry.get("rope_type", "default")
        if kind == "default":
            continue
        if model_type in UNSCALED_IN_4:
            return f"ignores any scaling of {model_type}, without a word"
        if model_type in SCALED_ALIKE_IN_4:
            return f"has one scaling for all layers of {model_type}, and reads none of this file"
        if kind != ONE_TYPE_IN_4.get(model_type, kind):
            return f"cannot build {model_type} with this {kind} entry"
        misfit = model_type in KEYS_IN_4 and not _fits_keys(entry, model_type)
        if misfit or kind in REFUSED_IN_4.get(model_type, ()):
            return f"refuses to load {model_type} with this {kind} entry"
    bases = {entry["rope_theta"] for entry in each_entry(entries)}
    if len(bases) > 1 and _one_base_in_4(model_type):
        return f"has one base for all layers of {model_type}"
    return None


def keeps_base(model_type: str) -> bool:
    """Whether full attention alone gets another base by a list of factors in both versions.

    transformers 4 has one base for all layers, and reads lists of factors for these alone.
    """
    return _one_base_in_4(model_type) and model_type not in UNSCALED_IN_4


def _one_base_in_4(model_type: str) -> bool:
    return model_type in BY_LAYER and BY_LAYER[model_type].one_base


def _by_layer_in_5(model_type: str) -> bool:
    """Whether a family that transformers 4 knows has an entry for each layer type in 5."""
    return model_type in BY_LAYER and BY_LAYER[model_type].in_4


def misread_by_5(entry: dict[str, Any], model_type: str) -> bool:
    """Whether transformers 5 makes another table of this entry than 4 does.

    It looks for `truncate` beside the entries of the layer types, where there is none.
    """
    return _by_layer_in_5(model_type) and entry.get("truncate") is False


def by_layer_type(entry: dict[str, Any], config: Any) -> dict[str, Any]:
    """The entries of transformers 5 for what 4 computes, in families that have several there.

    Args:
        entry: As transformers 4 has it; in other families it stays as it is.
        config: Of transformers 4.
    """
    kind = config.model_type
    if is_nested(entry) or not _by_layer_in_5(kind):
        return entry
    name = None if _one_base_in_4(kind) else BY_LAYER[kind].local_key
    base = (name and getattr(config, name)) or entry["rope_theta"]
    local = {"rope_type": "default", "rope_theta": base}
    return {"full_attention": entry, "sliding_attention": local}


def _fits_keys(entry: dict[str, Any], model_type: str) -> bool:
    """Whether a family that takes only some types and keys can say this entry with them."""
    types, _ = KEYS_IN_4.get(model_type, ((), ()))
    return entry.get("rope_type") in types and entry.get("attention_factor", 1.0) == 1.0


def written(entries: dict[str, Any], model_type: str) -> dict[str, Any]:
    """The keys of a config.json that say the same to transformers 4 and 5.

    Args:
        entries: The entry; or that of each layer type, None where layers do not rotate.
        model_type: Of the config.
    """
    per_layer_type = is_nested(entries)
    if not per_layer_type and _by_layer_in_5(model_type):  # read by 4, which has no such keys
        return version_4(entries, model_type)
    keys = {"rope_parameters": entries}
    if not per_layer_type:
        return {**keys, **version_4(entries, model_type)}
    if _by_layer_in_5(model_type):
        keys.update(version_4(entries["full_attention"], model_type))
        if local := BY_LAYER[model_type].local_key:
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
        return {**entry, "mscale": mscale_of(factor, stretch), "mscale_all_dim": 0.0}
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


def keys_in_4(part: Part) -> dict[str, Any] | None:
    """The keys that say `rope_parameters` to transformers 4; None where 4 has no use for any.

    None also where `rope_parameters` is too broken to answer; other rules report that.
    """
    entries = part.raw.get("rope_parameters")
    if part.model_type not in BASE_IN_4 or not isinstance(entries, dict) or part.remote:
        return None
    if is_nested(entries) != (part.model_type in BY_LAYER):  # which another rule reports
        return None
    entries = _filled(part, entries)
    each = entries.values() if is_nested(entries) else [entries]
    if not all(isinstance(entry, dict) and _readable(entry) for entry in each):
        return None
    if is_nested(entries) and not {"full_attention", "sliding_attention"} <= entries.keys():
        return None
    keys = written(entries, part.model_type)
    unread = {"rope_parameters", *NAMES_IN_4.get(part.model_type, ())}
    return {key: value for key, value in keys.items() if key not in unread}


def _filled(part: Part, entries: dict[str, Any]) -> dict[str, Any]:
    """The entries with the base that transformers 5 takes from the root where they have none."""
    root = part.raw.get("rope_theta")
    if is_nested(entries) or root is None:
        return entries
    return {"rope_theta": root, **entries}


def _readable(entry: dict[str, Any]) -> bool:
    """Whether an entry has a base, and what its type cannot do without."""
    kind = entry.get("rope_type", "default")
    if not isinstance(kind, str) or not positive(entry, "rope_theta"):
        return False
    if kind == "longrope":
        return {"short_factor", "long_factor"} <= entry.keys()
    return kind not in ("linear", "dynamic") or "factor" in entry

"""What transformers 4 would have to find in a config that has the notation of version 5."""

from __future__ import annotations

from typing import Any

from ropex.config.notations import is_nested, written
from ropex.doctor.layer_types import by_layer
from ropex.doctor.parts import Part
from ropex.doctor.values import positive

# The base that transformers 4.57 takes for each family that it knows, where a config has none.
_FAMILIES_BY_BASE = {
    1e4: (
        "arcee aria_text code_llama cohere cohere2 deepseek_v2 deepseek_v3 diffllama doge dots1 "
        "exaone4 falcon gemma gemma2 glm glm4 glm4_moe gpt_neox gpt_neox_japanese granite "
        "granitemoe granitemoehybrid granitemoeshared hunyuan_v1_dense hunyuan_v1_moe jetmoe llama "
        "ministral mistral moshi nemotron olmo olmo2 olmo3 olmoe phi phi3 phi4_multimodal qwen2 "
        "qwen2_moe qwen3 qwen3_moe qwen3_next recurrent_gemma seed_oss stablelm starcoder2 "
        "vaultgemma zamba2"
    ),
    2.5e4: "fuyu persimmon",
    1e5: "falcon_h1 helium",
    1.5e5: "gpt_oss",
    5e5: "bitnet ernie4_5 ernie4_5_moe flex_olmo llama4_text",
    1e6: ("gemma3_text gemma3n_text lfm2 minimax mixtral phimoe qwen2_5_vl_text qwen2_vl_text"),
    2e6: "smollm3",
    5e6: "qwen3_vl_moe_text qwen3_vl_text",
    1e7: "longcat_flash",
    1.2e7: "apertus",
}
# The rotated share that it takes, where that is not all of a head.
_SHARE_IN_4 = {
    **dict.fromkeys(("fuyu", "glm", "glm4", "glm4_moe", "nemotron", "persimmon", "phi"), 0.5),
    **dict.fromkeys(("gpt_neox", "qwen3_next", "stablelm"), 0.25),
    "recurrent_gemma": 0.5,
}
BASE_IN_4 = {
    family: base for base, families in _FAMILIES_BY_BASE.items() for family in families.split()
}


def defaults_in_4(model_type: str) -> dict[str, Any]:
    """What transformers 4 takes for keys that a config lacks."""
    share = _SHARE_IN_4.get(model_type, 1.0)
    base = BASE_IN_4.get(model_type)
    return {
        "rope_theta": base,
        "rotary_emb_base": base,
        "rope_local_base_freq": 1e4,
        "partial_rotary_factor": share,
        "rotary_pct": share,
    }


def keys_in_4(part: Part) -> dict[str, Any] | None:
    """The keys that say `rope_parameters` to transformers 4; None where 4 has no use for any.

    None as well where `rope_parameters` is too broken for an answer; other rules tell that.
    """
    entries = part.raw.get("rope_parameters")
    if part.model_type not in BASE_IN_4 or not isinstance(entries, dict) or part.remote:
        return None
    if is_nested(entries) != by_layer(part.model_type):  # which is another rule's
        return None
    entries = _filled(part, entries)
    each = entries.values() if is_nested(entries) else [entries]
    if not all(isinstance(entry, dict) and positive(entry, "rope_theta") for entry in each):
        return None
    if is_nested(entries) and not {"full_attention", "sliding_attention"} <= entries.keys():
        return None
    if any(_lists_missing(entry) for entry in each):
        return None
    keys = written(entries, part.model_type)
    unread = {"rope_parameters"}
    unread |= {"rope_theta"} if "rotary_emb_base" in keys else set()
    unread |= {"partial_rotary_factor"} if "rotary_pct" in keys else set()
    return {key: value for key, value in keys.items() if key not in unread}


def _filled(part: Part, entries: dict[str, Any]) -> dict[str, Any]:
    """The entries with the base that transformers 5 takes from the root where they have none."""
    root = part.raw.get("rope_theta")
    if is_nested(entries) or root is None:
        return entries
    return {"rope_theta": root, **entries}


def _lists_missing(entry: dict[str, Any]) -> bool:
    lists = {"short_factor", "long_factor"} <= entry.keys()
    factor = "factor" in entry
    kind = entry.get("rope_type", "default")
    return (kind == "longrope" and not lists) or (kind in ("linear", "dynamic") and not factor)

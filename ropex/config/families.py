"""What is special to single families: names of keys, defaults, refusals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Names that transformers 4 has for two keys in some families; it reads no other.
_NEOX = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
_MODERNBERT = {"rope_theta": "global_rope_theta"}
NAMES_IN_4 = {
    "gpt_neox": _NEOX,
    "gpt_neox_japanese": _NEOX,
    "modernbert": _MODERNBERT,
    "modernbert-decoder": _MODERNBERT,
}


@dataclass(frozen=True)
class Layered:
    """A family with an entry for each layer type in transformers 5.

    Attributes:
        in_4: Whether transformers 4 knows it.
        local_key: What 4 calls the base of the layers with a window, if it has one of its own.
        local_base: That base where a config has none; None where they have that of the others.
        one_base: Whether all layers have the base of full attention in 4.
        stops: Whether no model is built from one entry for all, which others ignore.
    """

    in_4: bool = False
    local_key: str | None = None
    local_base: float | None = None
    one_base: bool = False
    stops: bool = False


_GEMMA_3 = Layered(in_4=True, local_key="rope_local_base_freq", local_base=1e4)
BY_LAYER = {
    "gemma3_text": _GEMMA_3,
    "gemma3n_text": _GEMMA_3,
    "t5gemma2_text": Layered(local_base=1e4),
    "t5gemma2_decoder": Layered(local_base=1e4),
    "olmo3": Layered(in_4=True, one_base=True),
    "modernbert": Layered(in_4=True, local_key="local_rope_theta", stops=True),
    "modernbert-decoder": Layered(in_4=True, local_key="local_rope_theta", one_base=True,
        stops=True),
    **dict.fromkeys(
        (
            "diffusion_gemma_text", "embedding_gemma2_text", "gemma4_text", "gemma4_unified_text",
            "laguna", "lfm3", "mellum", "mimo_v2_flash", "neomme", "ultrabert",
        ),
        Layered(stops=True),
    ),
}  # fmt: skip

SHARES = ("partial_rotary_factor", _NEOX["partial_rotary_factor"])
"""Keys of the rotated share of a head."""
_BASES = ("rope_theta", _NEOX["rope_theta"], _MODERNBERT["rope_theta"])
BASES = (*_BASES, *dict.fromkeys(each.local_key for each in BY_LAYER.values() if each.local_key))
"""Keys of a base."""
BASES_BY_LAYER = "layer_rope_theta"
"""What Granite calls a list of bases, one for each layer; it makes a module of each."""

# Families that take only these types in transformers 4, and no keys but `type` and these.
_LISTS = (("longrope",), ("short_factor", "long_factor"))
_PLAIN = (("linear", "dynamic"), ("factor",))
KEYS_IN_4 = {"olmo": _PLAIN, "olmo2": _PLAIN, "phi3": _LISTS, "phi4_multimodal": _LISTS}
# Families whose rotary module reads no scaling in transformers 4.
UNSCALED_IN_4 = frozenset({"nemotron", "dbrx", "recurrent_gemma", "modernbert-decoder"})
# One that reads a scaling there for all layers, those with a window included; none is written.
SCALED_ALIKE_IN_4 = frozenset({"modernbert"})
# Types that families refuse there.
REFUSED_IN_4 = {"hunyuan_v1_dense": ("dynamic",), "hunyuan_v1_moe": ("dynamic",)}
# Families that read any scaling as one of this type, and fail where its parameters are not there.
ONE_TYPE_IN_4 = {"llama4_text": "llama3"}
# Families that hand a head_dim of null to YaRN, dynamic and longrope, in transformers 4.57 or 5.23.
NULL_HEADS = ("mistral", "mixtral", "minimax")
# Families whose window, where they have one, is that of every layer.
UNIFORM_WINDOW = ("mistral", "mixtral", "phi3", "phimoe", "starcoder2")

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
BASE_IN_4 = {
    family: base for base, families in _FAMILIES_BY_BASE.items() for family in families.split()
}
# The rotated share that transformers takes, where that is not all of a head.
_SHARE = {
    **dict.fromkeys(("fuyu", "glm", "glm4", "glm4_moe", "nemotron", "persimmon", "phi"), 0.5),
    **dict.fromkeys(("gpt_neox", "qwen3_next", "stablelm"), 0.25),
    "recurrent_gemma": 0.5,
}


def usual_share(model_type: str) -> float:
    """The rotated share of a head where a config says none."""
    return _SHARE.get(model_type, 1.0)


def defaults_in_4(model_type: str) -> dict[str, Any]:
    """What transformers 4 takes for keys that a config lacks."""
    base, share = BASE_IN_4.get(model_type), usual_share(model_type)
    local = dict.fromkeys(BASES[len(_BASES) :], 1e4)
    return {**dict.fromkeys(_BASES, base), **local, **dict.fromkeys(SHARES, share)}

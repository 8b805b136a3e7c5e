"""The two tables that drive most tests: strategies and families of models."""

from __future__ import annotations

import re

# Lists for the eight pairs of the models below.
_LONG = "long_factor=1/1/1.5/2/2.5/3/4/4"
_SHORT = "short_factor=1/1/1.5/2/2.5/3/4/4"

# Every strategy of the registry, with factors that are and are not powers of two.
STATIC = (
    "linear:4", "linear:1.7", "ntk:4", "ntk_fixed:4", "ntk_mixed:4", "ntk_by_parts:4",
    "theta:500000", "theta:base=500000,length=128", "theta_scale:4", "yarn:4",
    "yarn:factor=3,beta_fast=16,truncate=false", "yarn:factor=4,attention_factor=1.25",
    "yarn:factor=4,mscale=1,mscale_all_dim=0.5", "yarn:factor=4,ramp=rotations",
    "yarn:factor=4,blend=wavelength", "yarn:factor=4,clamp=pairs,range_length=64", "yarn_pose:4",
    "yarn_log:4", "mrrope:4", "mrrope:factor=4,radix=degressive", "mrrope_uni:4", "llama3:4",
    f"longrope:factor=4,{_LONG},{_SHORT}", "proportional", "proportional:0.5", "clip:4",
    "clip:pairs=4,hard=true", "ntk:2+clip:3", "giraffe_power:0.1", "giraffe_truncated:40", "drope",
    "drope:length=128", "drope+temperature:1.07", "resonance", "linear:2+resonance:10",
    "temperature:1.07", "yarn:4+temperature:1.1", "dynamic:length=128", "dynamic_linear:length=128",
    "dynamic_yarn:length=128", "linear:2+ntk:2", "linear:1.5+yarn:2",
)  # fmt: skip
# Those that depend on the length, and of which a config says so.
BY_LENGTH_IN_CONFIG = ("dynamic", "dynamic:4", f"longrope:factor=4,{_LONG}")
BY_LENGTH = (
    *BY_LENGTH_IN_CONFIG, "dynamic_linear", "dynamic_yarn", "dynamic_qwen:logn=false",
    "ntk:2+dynamic_yarn",
)  # fmt: skip
QUERY = (
    "logn", "yarn:4+logn", "logn:16", "llama4_temperature:16", "ministral_temperature",
    "eabf:skip_layers=1",
)  # fmt: skip
# Those that map positions.
MAPPED = (
    "rerope", "leaky_rerope:4", "self_extend", "self_extend:4", "jet_long", "stretch", "dca",
    "dca+yarn:4", "string:near=2", "dpe:2/4/8", "lampe", "ms_poe", "lm_infinite", "streaming",
    "rerope+logn",
)  # fmt: skip
ALL = (*STATIC, *BY_LENGTH, *QUERY, *MAPPED, "dynamic:2+logn", "dynamic_qwen")


def fitted(text: str, pairs: int) -> str:
    """A text of the lists above for a rope of more pairs, and a trained length of thousands."""
    text = text.replace("length=128", "length=16k").replace(
        "giraffe_truncated:40", "giraffe_truncated:2k"
    )
    for name in ("long", "short"):
        text = re.sub(f"{name}_factor=[0-9./]+", f"{name}_factor=" + _ladder(pairs), text)
    return text


def _ladder(pairs: int) -> str:
    return "/".join(f"{1 + 3 * i / (pairs - 1):.4f}".rstrip("0").rstrip(".") for i in range(pairs))


# Half-split and interleaved pairs, partial rotation, query norms, windows, odd head sizes, tied
# heads: one rotary module each, or one a layer.
FAMILIES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "olmo2", "granite", "starcoder2",
    "cohere", "glm", "gpt_neox", "stablelm", "mixtral", "phi3",
)  # fmt: skip

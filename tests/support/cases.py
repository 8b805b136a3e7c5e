"""The two tables that drive most tests: strategies and families of models."""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

TRAINED = 32
LONG = 100  # tokens; beyond what every factor below reaches from `TRAINED`, but for a few
VOCABULARY = 64

# Lists for the eight pairs of the models below.
_LONG = "long_factor=1/1/1.5/2/2.5/3/4/4"
_SHORT = "short_factor=1/1/1.5/2/2.5/3/4/4"

# Every strategy of the registry, with factors that are and are not powers of two.
STATIC = (
    "linear:4",
    "linear:1.7",
    "ntk:4",
    "ntk_fixed:4",
    "ntk_mixed:4",
    "ntk_by_parts:4",
    "theta:500000",
    "theta:base=500000,length=128",
    "theta_scale:4",
    "yarn:4",
    "yarn:factor=3,beta_fast=16,truncate=false",
    "yarn:factor=4,attention_factor=1.25",
    "yarn:factor=4,mscale=1,mscale_all_dim=0.5",
    "yarn:factor=4,ramp=rotations",
    "yarn:factor=4,blend=wavelength",
    "yarn:factor=4,clamp=pairs,range_length=64",
    "yarn_pose:4",
    "yarn_log:4",
    "mrrope:4",
    "mrrope:factor=4,radix=degressive",
    "mrrope_uni:4",
    "llama3:4",
    f"longrope:factor=4,{_LONG},{_SHORT}",
    "proportional",
    "proportional:0.5",
    "clip:4",
    "clip:pairs=4,hard=true",
    "ntk:2+clip:3",
    "giraffe_power:0.1",
    "giraffe_truncated:40",
    "drope",
    "drope:length=128",
    "drope+temperature:1.07",
    "resonance",
    "linear:2+resonance:10",
    "temperature:1.07",
    "yarn:4+temperature:1.1",
    "dynamic:length=128",
    "dynamic_linear:length=128",
    "dynamic_yarn:length=128",
    "linear:2+ntk:2",
    "linear:1.5+yarn:2",
)
# Those that depend on the length, and of which a config says so.
BY_LENGTH_IN_CONFIG = ("dynamic", "dynamic:4", f"longrope:factor=4,{_LONG}")
BY_LENGTH = (
    *BY_LENGTH_IN_CONFIG,
    "dynamic_linear",
    "dynamic_yarn",
    "dynamic_qwen:logn=false",
    "ntk:2+dynamic_yarn",
)
QUERY = (
    "logn",
    "yarn:4+logn",
    "logn:16",
    "llama4_temperature:16",
    "ministral_temperature",
    "eabf:skip_layers=1",
)
ALL = (*STATIC, *BY_LENGTH, *QUERY, "dynamic:2+logn", "dynamic_qwen")


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
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "olmo2",
    "granite",
    "starcoder2",
    "cohere",
    "glm",
    "gpt_neox",
    "stablelm",
    "mixtral",
    "phi3",
)
_SETTINGS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "phi3": {"original_max_position_embeddings": TRAINED},
}


def rope_settings(base: float = 1e4, **entry: Any) -> dict[str, Any]:
    """Settings of a config with this rope entry, in the notation of the installed transformers."""
    if int(transformers.__version__.split(".")[0]) >= 5:
        return {"rope_parameters": {"rope_type": "default", **entry, "rope_theta": base}}
    return {"rope_theta": base, "rope_scaling": entry or None}


def tiny_config(family: str = "llama", **changes: Any) -> Any:
    """A config of a family with two layers and four heads of 16."""
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": TRAINED,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **_SETTINGS.get(family, {}),
        **changes,
    }
    return AutoConfig.for_model(family, **settings)


def tiny_model(family: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """A model with weights large enough that positions matter."""
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(tiny_config(family, **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(5.0)
    return model.eval()


def tokens(length: int = LONG, rows: int = 1, seed: int = 0) -> Tensor:
    """Token ids, `(rows, length)`, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (rows, length), generator=generator)


@torch.no_grad()
def logits(model: Any, ids: Tensor, **inputs: Any) -> Tensor:
    """Logits, `(rows, length, vocabulary)`."""
    result: Tensor = model(ids, **{"use_cache": False, **inputs}).logits
    return result


def tiny_t5gemma() -> Any:
    """An encoder and a decoder that both rotate."""
    from transformers import T5GemmaConfig, T5GemmaForConditionalGeneration

    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": TRAINED, "initializer_range": 0.1,
    }  # fmt: skip
    config = T5GemmaConfig(encoder=sizes, decoder={**sizes, "use_cache": True}, vocab_size=64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return T5GemmaForConditionalGeneration(config).eval()

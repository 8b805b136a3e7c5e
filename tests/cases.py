"""The two tables that drive most tests: strategies and families of models."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

TRAINED = 32
LONG = 100  # tokens; beyond what every factor below reaches from `TRAINED`, but for a few
VOCABULARY = 64

# Every strategy of the registry, with factors that are and are not powers of two.
STATIC = (
    "linear:4",
    "linear:1.7",
    "ntk:4",
    "dynamic:length=128",
    "ntk_by_parts:4",
    "yarn:4",
    "yarn:factor=3,beta_fast=16,truncate=false",
    "yarn:factor=4,attention_factor=1.25",
    "llama3:4",
    "linear:2+ntk:2",
    "linear:1.5+yarn:2",
)
BY_LENGTH = ("dynamic", "dynamic:4")
QUERY = ("logn", "yarn:4+logn", "logn:16")
ALL = (*STATIC, *BY_LENGTH, *QUERY, "dynamic:2+logn")

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

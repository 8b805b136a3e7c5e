"""A plain Llama around a rotary embedding, to ask about a strategy without a checkpoint."""

from __future__ import annotations

from typing import Any

from ropex.config.notations import written
from ropex.engines.wanted import Wanted, of_model
from ropex.rope import Rope
from ropex.strategies.base import Strategy


def wanted_in_llama(rope: Rope, strategy: str | Strategy) -> Wanted:
    """What a strategy makes of a Llama with this rotary embedding, one layer and no weights.

    Args:
        rope: An unscaled one.
        strategy: A strategy, or its text.

    Raises:
        ValueError: The strategy does not fit.
    """
    from accelerate import init_empty_weights
    from transformers import LlamaConfig, LlamaForCausalLM

    raw: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8,
        "hidden_size": rope.dim, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "max_position_embeddings": rope.trained_length,
        **written({"rope_type": "default", "rope_theta": rope.base}, "llama"),
    }  # fmt: skip
    with init_empty_weights(include_buffers=False):
        model = LlamaForCausalLM(LlamaConfig(**raw))
    return of_model(model, raw, [strategy])

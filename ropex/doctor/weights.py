"""Names and shapes of the weights of families that are built like Llama, from a config alone."""

from __future__ import annotations

from typing import Any, TypeAlias

from ropex.config.limits import MOST_LAYERS

Shapes: TypeAlias = dict[str, tuple[int, ...]]

_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers",
          "vocab_size")  # fmt: skip


def wanted_tensors(config: dict[str, Any]) -> Shapes:
    """What a model of a config is loaded from; nothing where that is not known.

    Other families, quantised weights and code of a checkpoint's own are not known.
    """
    sizes = [config.get(name) for name in _SIZES]
    width, inner, heads, layers, words = (size if type(size) is int else 0 for size in sizes)
    own = config.get("quantization_config") or config.get("auto_map")
    if (
        config.get("model_type") not in _FAMILIES
        or own
        or min(width, inner, heads, layers, words) < 1
    ):
        return {}
    keys = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or width // heads
    if layers > MOST_LAYERS or not (type(keys) is type(head) is int):
        return {}
    layer = _layer(config, heads * head, keys * head, head)
    found: Shapes = {"model.embed_tokens.weight": (words, width), "model.norm.weight": (width,)}
    for number in range(layers):
        found |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    kinds = config.get("architectures") or ["ForCausalLM"]
    if "ForCausalLM" in str(kinds) and not config.get("tie_word_embeddings"):
        found["lm_head.weight"] = (words, width)
    return found


def _layer(config: dict[str, Any], queries: int, keys: int, head: int) -> Shapes:
    width, inner, kind = config["hidden_size"], config["intermediate_size"], config["model_type"]
    found: Shapes = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (queries, width),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width),
        "self_attn.o_proj.weight": (width, queries),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
    }
    if kind == "qwen2":
        found |= {"self_attn.q_proj.bias": (queries,), "self_attn.k_proj.bias": (keys,),
                  "self_attn.v_proj.bias": (keys,)}  # fmt: skip
    if kind == "qwen3":
        found |= {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
    return found

"""The one factory of tiny models, their tokenizer and their checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
)

TRAINED = 32
LONG = 100  # tokens; beyond what most factors of the tests reach from `TRAINED`
VOCABULARY = 64
BOS = "<s>"

_SETTINGS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "phi3": {"original_max_position_embeddings": TRAINED},
}
# A model that reads bytes, small enough to be measured in a moment.
_READER = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8,
    "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def rope_settings(base: float = 1e4, **entry: Any) -> dict[str, Any]:
    """Settings of a config with this rope entry, in the notation of the installed transformers."""
    if int(transformers.__version__.split(".")[0]) >= 5:
        return {"rope_parameters": {"rope_type": "default", **entry, "rope_theta": base}}
    return {"rope_theta": base, "rope_scaling": entry or None}


def tiny_config(family: str = "llama", **changes: Any) -> Any:
    """A config of a family with two layers and four heads of 16."""
    settings = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": TRAINED, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, **_SETTINGS.get(family, {}), **changes,
    }  # fmt: skip
    if family == "falcon":  # works it out
        del settings["head_dim"]
    return AutoConfig.for_model(family, **settings)


def build(config: Any, auto: Any = AutoModelForCausalLM, seed: int = 0) -> Any:
    """A random model of a config."""
    torch.manual_seed(seed)
    return auto.from_config(config).eval()


def tiny_model(family: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """A model with weights large enough that positions matter."""
    model = build(tiny_config(family, **changes), seed=seed)
    return _scaled(model, lambda name: 1.0 if "embed" in name else 5.0)


def tiny_causal(family: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """A model for `tiny_tokenizer`, whose logits are large and depend on positions."""
    model = build(tiny_config(family, **{**_READER, **changes}), seed=seed)
    return _scaled(model, lambda name: 20.0 if "embed" in name or "head" in name else 8.0)


@torch.no_grad()
def _scaled(model: Any, gain: Callable[[str], float]) -> Any:
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            parameter.mul_(gain(name))
    return model


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


def tiny_multimodal(kind: str = "qwen2_vl") -> Any:
    """A model of pictures and text, whose tokens have positions in time, height and width."""
    text = {**tiny_config("qwen2").to_dict(), "model_type": f"{kind}_text"}
    entry = {"rope_type": "default", "mrope_section": [2, 3, 3]}
    key = "rope_parameters" if hasattr(tiny_config(), "rope_parameters") else "rope_scaling"
    text = {**text, key: {**text.get("rope_parameters", {}), **entry}}
    sight = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2}
    config: Any = AutoConfig.for_model(
        kind, text_config=text, vision_config=sight, image_token_id=3
    )
    return build(config, AutoModelForImageTextToText)


def tiny_gpt2() -> Any:
    """A model that rotates nothing."""
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 300}
    return build(AutoConfig.for_model("gpt2", **sizes))


def tiny_tokenizer(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte; like Llama's, it puts BOS in front unless `bos` is false."""
    vocabulary = [BOS, "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if not bos:
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token="</s>")


def save_checkpoint(folder: Path, *, bos: bool = True, seed: int = 0) -> Path:
    """Write the tiny reader of bytes and its tokenizer."""
    return save_with_tokenizer(tiny_causal(seed=seed), folder, bos=bos)


def save_with_tokenizer(model: Any, folder: Path, *, bos: bool = True) -> Path:
    """Write a model and the tokenizer of the tiny readers."""
    model.save_pretrained(folder)
    tiny_tokenizer(bos=bos).save_pretrained(folder)
    return folder


def plain(folder: Path) -> Any:
    """What transformers loads, without ropex."""
    auto: Any = AutoModelForCausalLM
    return auto.from_pretrained(folder).eval()


def tokens(length: int = LONG, rows: int = 1, seed: int = 0) -> Tensor:
    """Token ids, `(rows, length)`, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (rows, length), generator=generator)


@torch.no_grad()
def logits(model: Any, ids: Tensor, **inputs: Any) -> Tensor:
    """Logits, `(rows, length, vocabulary)`."""
    result: Tensor = model(ids, **{"use_cache": False, **inputs}).logits
    return result

"""The corpus of the doctor: rotary parts of published configs, and mutations of them."""

from __future__ import annotations

import copy
from typing import Any

Config = dict[str, Any]


def config_of(model_type: str, longest: int, base: float | None = None, **more: Any) -> Config:
    theta = {} if base is None else {"rope_theta": base}
    return {"model_type": model_type, "max_position_embeddings": longest, **theta, **more}


def sizes(hidden: int, layers: int, heads: int, vocabulary: int) -> Config:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
    }


def yarn(factor: float, original: int, **more: Any) -> Config:
    lengths = {"factor": factor, "original_max_position_embeddings": original}
    return {**({} if "type" in more else {"rope_type": "yarn"}), **lengths, **more}


def llama3(factor: float, low: float = 1.0, high: float = 4.0) -> Config:
    return {
        "factor": factor,
        "high_freq_factor": high,
        "low_freq_factor": low,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }


def lists(pairs: int, kind: str = "longrope", **more: Any) -> Config:
    long = [1.0 + index / 4 for index in range(pairs)]
    return {"long_factor": long, "short_factor": [1.0] * pairs, "type": kind, **more}


_AUTO: Config = {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
_DEEPSEEK = {"beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0, "type": "yarn"}
_LLAMA_2, _LLAMA_3 = sizes(4096, 32, 32, 32000), sizes(4096, 32, 32, 128256)
_QWEN, _QWEN_3 = sizes(3584, 28, 28, 152064), sizes(4096, 36, 32, 151936)
_PHI_3, _PHI_4 = sizes(3072, 32, 32, 32064), sizes(3072, 32, 24, 200064)
_MISTRAL = sizes(4096, 32, 32, 32000)
_UNUSED_WINDOW = {"sliding_window": 131072, "use_sliding_window": False}
_PHI_128K = {"original_max_position_embeddings": 4096, "sliding_window": 262144}
_GEMMA_3 = {"sliding_window": 512, "rope_local_base_freq": 10000}
_MINISTRAL = yarn(
    16.0, 16384, rope_type="yarn", type="yarn", beta_fast=32.0, beta_slow=1.0, mscale=1.0,
    mscale_all_dim=1.0, llama_4_scaling_beta=0.1, rope_theta=1e6,
)  # fmt: skip
_HUNYUAN = {
    "alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0,
    "mscale_all_dim": 1.0, "type": "dynamic",
}  # fmt: skip
_MROPE = {"mrope_section": [16, 24, 24]}
_TWO_THETAS = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}

GOOD: dict[str, Config] = {
    "Llama 2 7B": config_of("llama", 4096, rope_scaling=None, **_LLAMA_2),
    "Llama 3 8B": config_of("llama", 8192, 5e5, rope_scaling=None, **_LLAMA_3),
    "Llama 3.1 8B": config_of("llama", 131072, 5e5, rope_scaling=llama3(8.0), **_LLAMA_3),
    "Llama 3.2 1B": config_of("llama", 131072, 5e5, rope_scaling=llama3(32.0), head_dim=64,
        **sizes(2048, 16, 32, 128256)),
    "Llama 4 Scout": {
        "model_type": "llama4",
        "text_config": config_of("llama4_text", 10485760, 5e5, rope_scaling=llama3(16.0, 1.0, 1.0)),
    },
    "Llama 3 8B Gradient": config_of("llama", 1048576, 3580165449.0, rope_scaling=None, **_LLAMA_3),
    "Code Llama 7B": config_of("llama", 16384, 1000000, rope_scaling=None,
        **sizes(4096, 32, 32, 32016)),
    "Vicuna 7B 16k": config_of("llama", 4096, rope_scaling={"factor": 4.0, "type": "linear"},
        **_LLAMA_2),
    "DeepSeek Coder 6.7B": config_of("llama", 16384, 100000,
        rope_scaling={"factor": 4.0, "type": "linear"}, **sizes(4096, 32, 32, 32256)),
    "Yarn Llama 2 7B 64k": config_of("llama", 65536,
        rope_scaling=yarn(16.0, 4096, type="yarn", finetuned=True), **_LLAMA_2),
    "Yarn Mistral 7B 128k": config_of("mistral", 32768, 10000.0, max_sequence_length=131072,
        sliding_window=131072, rope_scaling=yarn(16.0, 8192, type="yarn", finetuned=True), **_AUTO,
        **_MISTRAL),
    "Yi 6B": config_of("llama", 4096, 5000000.0, rope_scaling=None, **sizes(4096, 32, 32, 64000)),
    "Yi 34B 200k": config_of("llama", 200000, 10000000.0, **sizes(7168, 60, 56, 64000)),
    "Mistral 7B v0.1": config_of("mistral", 32768, 10000.0, sliding_window=4096, **_MISTRAL),
    "Mistral 7B v0.2": config_of("mistral", 32768, 1000000.0, sliding_window=None, **_MISTRAL),
    "Mistral 7B v0.3": config_of("mistral", 32768, 1000000.0, **sizes(4096, 32, 32, 32768)),
    "Mistral Nemo": config_of("mistral", 131072, 1000000.0, head_dim=128, sliding_window=None,
        **sizes(5120, 40, 32, 131072)),
    "Mixtral 8x7B": config_of("mixtral", 32768, 1e6, sliding_window=None, **_MISTRAL),
    "Qwen2.5 7B": config_of("qwen2", 32768, 1000000.0, **_UNUSED_WINDOW, **_QWEN),
    "Qwen2.5 7B, YaRN of its card": config_of("qwen2", 32768, 1000000.0,
        rope_scaling=yarn(4.0, 32768, type="yarn"), **_UNUSED_WINDOW, **_QWEN),
    "Qwen2.5 14B 1M": config_of("qwen2", 1010000, 1e7, **sizes(5120, 48, 40, 152064)),
    "Qwen2.5 Math 7B": config_of("qwen2", 4096, 10000.0, **_QWEN),
    "R1 Distill Qwen 7B": config_of("qwen2", 131072, 10000, **_QWEN),
    "Qwen3 8B": config_of("qwen3", 40960, 1000000, rope_scaling=None, **_QWEN_3),
    "Qwen3 8B, YaRN of its card": config_of("qwen3", 40960, 1000000, rope_scaling=yarn(4.0, 32768),
        head_dim=128, **_QWEN_3),
    "Qwen3 Next": config_of("qwen3_next", 262144, 1e7, partial_rotary_factor=0.25),
    "Qwen2 VL": config_of("qwen2_vl", 32768, 1e6, rope_scaling={"type": "mrope", **_MROPE}),
    "DeepSeek V3": config_of("deepseek_v3", 163840, 10000, kv_lora_rank=512, qk_rope_head_dim=64,
        rope_scaling=yarn(40, 4096, **_DEEPSEEK), **_AUTO),
    "DeepSeek V2 Lite": config_of("deepseek_v2", 163840, 10000, kv_lora_rank=512,
        rope_scaling=yarn(40, 4096, **_DEEPSEEK | {"mscale": 0.707, "mscale_all_dim": 0.707})),
    "Kimi K2": config_of("kimi_k2", 131072, 50000.0, kv_lora_rank=512, **_AUTO,
        rope_scaling=yarn(32.0, 4096, **_DEEPSEEK | {"beta_fast": 1.0, "beta_slow": 1.0})),
    "Phi 2": config_of("phi", 2048, 10000.0, partial_rotary_factor=0.4, rope_scaling=None),
    "Phi 3 mini 4k": config_of("phi3", 4096, 10000.0, rope_scaling=None, sliding_window=2047,
        original_max_position_embeddings=4096, **_PHI_3),
    "Phi 3 mini 128k": config_of("phi3", 131072, 10000.0, rope_scaling=lists(48, "su"), **_PHI_128K,
        **_PHI_3),
    "Phi 3.5 mini": config_of("phi3", 131072, 10000.0, rope_scaling=lists(48), **_AUTO, **_PHI_128K,
        **_PHI_3),
    "Phi 3.5 MoE": config_of(
        "phimoe", 131072, 10000.0, hidden_size=4096, num_attention_heads=32, **_AUTO,
        sliding_window=131072, rope_scaling=lists(
            64, short_mscale=1.243163121016122, long_mscale=1.243163121016122,
            original_max_position_embeddings=4096,
        ),
    ),
    "Phi 4": config_of("phi3", 16384, 250000, rope_scaling=None, **sizes(5120, 40, 40, 100352)),
    "Phi 4 mini": config_of("phi3", 131072, 10000.0, partial_rotary_factor=0.75,
        rope_scaling=lists(48), **_PHI_128K, **_PHI_4),
    "MiniCPM3 4B": config_of("minicpm3", 32768, hidden_size=2560, num_attention_heads=40,
        qk_rope_head_dim=32, **_AUTO,
        rope_scaling=lists(16, original_max_position_embeddings=32768)),
    "MiniCPM3 4B, without its code": config_of("minicpm3", 32768, hidden_size=2560,
        num_attention_heads=40, qk_rope_head_dim=32,
        rope_scaling=lists(16, original_max_position_embeddings=32768)),
    "Gemma 7B": config_of("gemma", 8192, 10000.0, head_dim=256, rope_scaling=None),
    "Gemma 2 9B": config_of("gemma2", 8192, 10000.0, sliding_window=4096, head_dim=256),
    "Gemma 3 1B": config_of("gemma3_text", 32768, 1000000, rope_scaling=None,
        **sizes(1152, 26, 4, 262144), **_GEMMA_3),
    "Gemma 3 4B": {
        "model_type": "gemma3",
        "text_config": {"hidden_size": 2560, "model_type": "gemma3_text", "sliding_window": 1024,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    },
    "Gemma 3 1B, both notations": config_of("gemma3_text", 32768, 1e6, rope_scaling=None,
        rope_parameters=_TWO_THETAS, **sizes(1152, 26, 4, 262144), **_GEMMA_3),
    "Gemma 3 4B, with its sizes": {"model_type": "gemma3",
        "text_config": config_of("gemma3_text", 131072, **sizes(2560, 34, 8, 262208))},
    "Gemma 4": config_of(
        "gemma4_text", 131072, sliding_window=512,
        rope_parameters=_TWO_THETAS | {"full_attention": {
            "rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25,
        }},
    ),
    "gpt-oss 20B": config_of("gpt_oss", 131072, 150000, initial_context_length=4096, head_dim=64,
        sliding_window=128, layer_types=["sliding_attention", "full_attention"],
        **sizes(2880, 24, 64, 201088),
        rope_scaling=yarn(32.0, 4096, beta_fast=32.0, beta_slow=1.0, truncate=False)),
    "GLM 4 9B": config_of("glm4", 32768, 10000.0, partial_rotary_factor=0.5, head_dim=128),
    "GLM 4.5": config_of("glm4_moe", 131072, 1e6, partial_rotary_factor=0.5, rope_scaling=None),
    "OLMo 2 7B": config_of("olmo2", 4096, 500000, rope_scaling=None, **sizes(4096, 32, 32, 100352)),
    "OLMo 3 7B": config_of(
        "olmo3", 65536, 500000, sliding_window=4096, rope_scaling=yarn(
            8.0, 8192, attention_factor=1.2079441541679836, beta_fast=32.0, beta_slow=1.0
        ),
        layer_types=["sliding_attention", "full_attention"],
    ),
    "Granite 3.1 8B": config_of("granite", 131072, 10000000.0, rope_scaling=None),
    "Command R": config_of("cohere", 131072, 8000000.0, rope_scaling=None),
    "Falcon 7B": {"model_type": "falcon", "alibi": False, "hidden_size": 4544},
    "StableLM 2": config_of("stablelm", 4096, 10000, partial_rotary_factor=0.25),
    "Pythia": config_of("gpt_neox", 2048, rotary_emb_base=10000, rotary_pct=0.25),
    "Pythia, saved by transformers 5": config_of("gpt_neox", 2048, rope_parameters={
        "rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.25,
    }),
    "InternLM 2.5 7B": config_of("internlm2", 32768, 1000000,
        rope_scaling={"factor": 2.0, "type": "dynamic"}, **_AUTO),
    "HunYuan 7B": config_of("hunyuan_v1_dense", 262144, 10000.0, rope_scaling=_HUNYUAN),
    "SmolLM 3": config_of("smollm3", 65536, 5000000.0, rope_scaling=None),
    "EXAONE 4 32B": config_of("exaone4", 131072, 1000000, rope_scaling=llama3(16.0)),
    "StarCoder 2 7B": config_of("starcoder2", 16384, 1000000, sliding_window=4096),
    "Seed OSS": config_of("seed_oss", 524288, 1e7, rope_scaling={"rope_type": "default"}),
    "Minitron": config_of("nemotron", 4096, 10000, partial_rotary_factor=0.5),
    "Step 3.5, its own code": config_of("step3p5", 262144, **_AUTO) | {"rope_theta": [5e6, 1e4]},
    "GPT-2, without rotary embedding": {"model_type": "gpt2", "n_positions": 1024},
}  # fmt: skip
"""Published, or as their cards say; nothing is wrong with them."""

NOTED: dict[str, Config] = {
    "Ministral 3": {"model_type": "mistral3",
        "text_config": config_of("ministral3", 262144, rope_parameters=_MINISTRAL)},
    "Qwen2.5 VL, saved by transformers 4": config_of("qwen2_5_vl", 128000, 1e6,
        rope_scaling={"type": "default", "rope_type": "default"} | _MROPE),
}  # fmt: skip
"""Published with two keys for the type, which say the same."""


def mutated(name: str, *path: str, to: Any = None, remove: Any = False, **more: Any) -> Config:
    """A good config with a value changed or taken away, and with some keys at the root."""
    config = copy.deepcopy(GOOD[name]) | more
    inner = config
    for key in path[:-1]:
        inner = inner[key]
    if remove:
        del inner[path[-1]]
    elif path:
        inner[path[-1]] = to
    return config


def scaled(**entry: Any) -> Config:
    """Llama 2 with an entry in the notation of transformers 4."""
    return mutated("Llama 2 7B", "rope_scaling", to=entry)

"""More published configs, told by their sizes, and what such configs lose or have misplaced."""

from __future__ import annotations

import copy
from typing import Any

from tests.support.doctor_configs import (  # fmt: skip
    Config,
    config_of,
    lists,
    llama3,
    mutated,
    sizes,
    yarn,
)

LLAMA_1, LLAMA_13B, LLAMA_70B = (
    sizes(*shape, 32000) for shape in ((4096, 32, 32), (5120, 40, 40), (8192, 80, 64))
)
QWEN_SMALL, QWEN_LARGE = sizes(1536, 28, 12, 151936), sizes(8192, 80, 64, 152064)
QWEN = sizes(3584, 28, 28, 152064)
LLAMA_3_70B, LLAMA_3_3B = sizes(8192, 80, 64, 128256), sizes(3072, 28, 24, 128256)
MIXTRAL = sizes(4096, 32, 32, 32000)
EQUAL = {"beta_fast": 1.0, "beta_slow": 1.0}

PUBLISHED: dict[str, Config] = {
    "Llama 1 7B": config_of("llama", 2048, **LLAMA_1),
    "Llama 2 13B": config_of("llama", 4096, rope_scaling=None, **LLAMA_13B),
    "Llama 2 70B": config_of("llama", 4096, rope_scaling=None, **LLAMA_70B),
    "TinyLlama 1.1B": config_of("llama", 2048, 10000.0, **sizes(2048, 22, 32, 32000)),
    "SOLAR 10.7B": config_of("llama", 4096, 10000.0, **sizes(4096, 48, 32, 32000)),
    "Code Llama 13B": config_of("llama", 16384, 1000000, **sizes(5120, 40, 40, 32016)),
    "Code Llama 34B": config_of("llama", 16384, 1000000, **sizes(8192, 48, 64, 32000)),
    "Llama 3 70B": config_of("llama", 8192, 5e5, rope_scaling=None, **LLAMA_3_70B),
    "Llama 3.1 70B": config_of("llama", 131072, 5e5, rope_scaling=llama3(8.0), **LLAMA_3_70B),
    "Llama 3.1 405B": config_of("llama", 131072, 5e5, rope_scaling=llama3(8.0),
        **sizes(16384, 126, 128, 128256)),
    "Llama 3.2 3B": config_of("llama", 131072, 5e5, rope_scaling=llama3(32.0), **LLAMA_3_3B),
    "Llama 4 Maverick": {"model_type": "llama4",
        "text_config": config_of("llama4_text", 1048576, 5e5, rope_scaling=None)},
    "Qwen2.5 7B, base model": config_of("qwen2", 131072, 1e6, **QWEN),
    "Qwen2.5 1.5B": config_of("qwen2", 32768, 1e6, **QWEN_SMALL),
    "Qwen2.5 Math 1.5B": config_of("qwen2", 4096, 10000, **QWEN_SMALL),
    "R1 Distill Qwen 1.5B": config_of("qwen2", 131072, 10000, **QWEN_SMALL),
    "Qwen2.5 72B": config_of("qwen2", 32768, 1e6, **QWEN_LARGE),
    "Qwen2.5 Math 72B": config_of("qwen2", 4096, 10000, **QWEN_LARGE),
    "Qwen2.5 7B 1M": config_of("qwen2", 1010000, 1e7, **QWEN),
    "Qwen2.5 VL 7B": config_of("qwen2_5_vl", 128000, 1e6, **QWEN,
        rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]}),
    "Qwen3 4B 2507": config_of("qwen3", 262144, 5000000, **sizes(2560, 36, 32, 151936)),
    "Qwen3 30B A3B": config_of("qwen3_moe", 40960, 1e6, **sizes(2048, 48, 32, 151936)),
    "Zephyr 7B": config_of("mistral", 32768, 10000.0, sliding_window=4096, **MIXTRAL),
    "Mixtral 8x7B, with its experts": config_of("mixtral", 32768, 1e6, num_local_experts=8,
        **MIXTRAL),
    "Mixtral 8x22B": config_of("mixtral", 65536, 1e6, num_local_experts=8,
        **sizes(6144, 56, 48, 32000)),
    "Four Mistral 7B v0.1 in a mixture": config_of("mixtral", 32768, 10000.0, num_local_experts=4,
        **MIXTRAL),
    "Gemma 2 2B": config_of("gemma2", 8192, 10000.0, sliding_window=4096, head_dim=256,
        **sizes(2304, 26, 8, 256000)),
    "SmolLM 135M": config_of("llama", 2048, 10000.0, **sizes(576, 30, 9, 49152)),
    "SmolLM2 135M": config_of("llama", 8192, 100000, **sizes(576, 30, 9, 49152)),
    "SmolLM2 1.7B": config_of("llama", 8192, 130000, **sizes(2048, 24, 32, 49152)),
    "Kimi K2, without its code": config_of("deepseek_v3", 131072, 50000.0, kv_lora_rank=512,
        rope_scaling=yarn(32.0, 4096, mscale=1.0, mscale_all_dim=1.0, type="yarn", **EQUAL)),
    "Phi 3 medium 128k": config_of("phi3", 131072, 10000.0, original_max_position_embeddings=4096,
        sliding_window=131072, rope_scaling=lists(64, "su"), **sizes(5120, 40, 40, 32064)),
    "OLMo 7B": config_of("olmo", 2048, 10000.0, rope_scaling=None, **sizes(4096, 32, 32, 50304)),
}  # fmt: skip
"""Published; nothing is wrong with them."""


def lost(name: str, *path: str, to: Any = None, remove: Any = False, **more: Any) -> Config:
    """One of these with a value changed or taken away, and with some keys at the root."""
    config = copy.deepcopy(PUBLISHED[name]) | more
    if remove:
        del config[path[0]]
    elif path:
        config[path[0]] = to
    return config


BASE, FACTOR, LENGTH = ("published-base",), ("published-factor",), ("published-length",)

# Name, config, the rules that it breaks.
UNPUBLISHED: tuple[tuple[str, Config, tuple[str, ...]], ...] = (
    ("base of Qwen2.5 7B at 10000", mutated("Qwen2.5 7B", rope_theta=1e4), BASE),
    ("base of Qwen2.5 7B lost", mutated("Qwen2.5 7B", "rope_theta", remove=True), BASE),
    ("base of Qwen2.5 7B lost, at 128k",
     lost("Qwen2.5 7B, base model", "rope_theta", remove=True), BASE),
    ("base of Qwen2.5 72B at 10000", lost("Qwen2.5 72B", rope_theta=10000), BASE),
    ("base of Code Llama lost", mutated("Code Llama 7B", "rope_theta", remove=True), BASE),
    ("base of Code Llama 34B at 10000", lost("Code Llama 34B", rope_theta=1e4), BASE),
    ("base of Mistral v0.3 lost", mutated("Mistral 7B v0.3", "rope_theta", remove=True), BASE),
    ("base of Mistral v0.3 at 10000", mutated("Mistral 7B v0.3", rope_theta=1e4), BASE),
    ("base of Mixtral at 10000", mutated("Mixtral 8x7B", rope_theta=1e4), BASE),
    ("base of Mixtral 8x22B lost", lost("Mixtral 8x22B", "rope_theta", remove=True), BASE),
    ("factor of Llama 3.2 in Llama 3.1",
     mutated("Llama 3.1 8B", rope_scaling=llama3(32.0)), FACTOR),
    ("factor of Llama 3.1 in Llama 3.2", lost("Llama 3.2 3B", rope_scaling=llama3(8.0)), FACTOR),
    ("dynamic beside the scaled length of Llama 2",
     lost("Llama 2 13B", rope_scaling={"rope_type": "dynamic", "factor": 4.0},
          max_position_embeddings=16384), LENGTH),
    ("linear beside the scaled length of Mistral",
     mutated("Mistral 7B v0.2", rope_scaling={"type": "linear", "factor": 2.0},
             max_position_embeddings=65536), LENGTH),
    ("no ramp", mutated("Qwen2.5 7B", rope_scaling=yarn(4.0, 32768, **EQUAL)), ("no-ramp",)),
    ("beta_fast as beta_slow is anyway",
     mutated("Qwen2.5 7B", rope_scaling=yarn(4.0, 32768, beta_fast=1)), ("no-ramp",)),
    ("lists of ones", lost("Phi 3 medium 128k", rope_scaling={
        "type": "longrope", "short_factor": [1.0] * 64, "long_factor": [1] * 64,
    }), ("idle-lists",)),
)  # fmt: skip

LINEAR = {"rope_type": "linear", "factor": 8.0}
FLAT = LINEAR | {"rope_theta": 1e6}
TEXT = {"model_type": "gemma3_text", "hidden_size": 2560}
TWO = {"full_attention": FLAT, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}

MISPLACED: tuple[tuple[str, Config, tuple[str, ...]], ...] = (
    ("misspelt rope_scaling",
     mutated("Vicuna 7B 16k", "rope_scaling", remove=True, rope_scalling=LINEAR),
     ("misspelt-root-key",)),
    ("rope-scaling beside null", mutated("Llama 2 7B", **{"rope-scaling": LINEAR}),
     ("misspelt-root-key",)),
    ("rope_scaling in capitals", mutated("Llama 2 7B", Rope_Scaling=LINEAR),
     ("misspelt-root-key",)),
    ("misspelt length",
     lost("Llama 1 7B", "max_position_embeddings", remove=True, max_position_embedding=2048),
     ("misspelt-root-key",)),
    ("two lengths, one misspelt", lost("Llama 1 7B", max_position_embedding=4096),
     ("misspelt-root-key",)),
    ("misspelt base", lost("SmolLM2 135M", "rope_theta", remove=True, rope_theat=100000),
     ("misspelt-root-key",)),
    ("misspelt entry of transformers 5",
     lost("OLMo 7B", rope_parameter={"rope_type": "default", "rope_theta": 10000.0}),
     ("misspelt-root-key",)),
    ("misspelt in a part", {"model_type": "llava", "text_config": mutated(
        "Llama 2 7B", rope_scalling=LINEAR)}, ("misspelt-root-key",)),
    ("scaling of Gemma 3 at the root",
     {"model_type": "gemma3", "text_config": TEXT, "rope_scaling": LINEAR}, ("outer-entry",)),
    ("scaling of Llama 4 at the root, and another inside",
     mutated("Llama 4 Scout", rope_scaling=LINEAR), ("outer-entry",)),
    ("misspelt, and at the root",
     {"model_type": "gemma3", "text_config": TEXT, "rope_scalling": LINEAR},
     ("misspelt-root-key",)),
    ("one entry for all layers of Gemma 3", TEXT | {"rope_parameters": FLAT}, ("ignored-entry",)),
    ("one entry beside those of layers", TEXT | {"rope_parameters": FLAT | TWO},
     ("ignored-entry",)),
    ("one entry for all layers of Gemma 4", {"model_type": "gemma4_text", "rope_parameters": FLAT},
     ("ignored-entry",)),
    ("entries by layer on Llama", mutated("Llama 2 7B", rope_parameters=TWO), ("layers-of-one",)),
    ("equal entries by layer on Llama", lost("Llama 1 7B", rope_parameters={
        "full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"},
    }), ("layers-of-one",)),
    ("entries by layer in rope_scaling",
     mutated("Qwen3 8B", rope_scaling={"full_attention": LINEAR}), ("layers-of-one",)),
)  # fmt: skip

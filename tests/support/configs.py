"""Configs that are written by hand, and entries as a reader of transformers' documents has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers

from tests.support.models import TRAINED, VOCABULARY, rope_settings

ORIGINAL = {"original_max_position_embeddings": TRAINED}
YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, **ORIGINAL}
RATIOS = [1.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 4.0]
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "factor": 4.0,
    "long_factor": RATIOS,
    "short_factor": [1.0] * 8,
    **ORIGINAL,
}
LISTED = "longrope:factor=4,long_factor=1/1/1.5/2/2.5/3/4/4"
# Text to the config entry that a reader of transformers' documentation would write.
NATIVE: dict[str, dict[str, Any]] = {
    "linear:4": {"rope_type": "linear", "factor": 4.0},
    "linear:1.7": {"rope_type": "linear", "factor": 1.7},
    "dynamic": {"rope_type": "dynamic", "factor": 1.0},
    "dynamic:4": {"rope_type": "dynamic", "factor": 4.0},
    "yarn:4": YARN,
    "yarn:factor=3,beta_fast=16,truncate=false": {**YARN, "factor": 3.0, "beta_fast": 16.0,
        "truncate": False},
    "yarn:4,beta_slow=2,attention_factor=1.25": {**YARN, "beta_slow": 2.0,
        "attention_factor": 1.25},
    "yarn:4,mscale=0.7,mscale_all_dim=1.3": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
    "llama3:4": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, **ORIGINAL},
    LISTED: LONGROPE,
    f"{LISTED},attention_factor=1.2": {**LONGROPE, "attention_factor": 1.2},
}  # fmt: skip
if int(transformers.__version__.split(".")[0]) >= 5:
    NATIVE["proportional:0.5"] = {"rope_type": "proportional", "partial_rotary_factor": 0.5}


def settings_of(entry: dict[str, Any]) -> dict[str, Any]:
    """Settings of a config with this entry; transformers 4 reads one of its keys at the root."""
    settings = rope_settings(**entry)
    if "rope_scaling" in settings and entry["rope_type"] == "longrope":
        return {**settings, **ORIGINAL, "max_position_embeddings": 4 * TRAINED}
    return settings


def write_config(folder: Path, **changes: Any) -> Path:
    """A config of a tiny Llama in both notations, so that every version reads the same."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": TRAINED,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder

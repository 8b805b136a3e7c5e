"""Patched models are equal to models that transformers scales itself, to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import ropex
from ropex.model.tables import close
from tests.support.cases import (
    LONG,
    STATIC,
    TRAINED,
    fitted,
    logits,
    rope_settings,
    tiny_model,
    tokens,
)

IDS = tokens()


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
    "yarn:factor=3,beta_fast=16,truncate=false": {
        **YARN,
        "factor": 3.0,
        "beta_fast": 16.0,
        "truncate": False,
    },
    "yarn:4,beta_slow=2,attention_factor=1.25": {
        **YARN,
        "beta_slow": 2.0,
        "attention_factor": 1.25,
    },
    "yarn:4,mscale=0.7,mscale_all_dim=1.3": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
    "llama3:4": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        **ORIGINAL,
    },
    LISTED: LONGROPE,
    f"{LISTED},attention_factor=1.2": {**LONGROPE, "attention_factor": 1.2},
}
if int(transformers.__version__.split(".")[0]) >= 5:
    NATIVE["proportional:0.5"] = {"rope_type": "proportional", "partial_rotary_factor": 0.5}


def settings_of(entry: dict[str, Any]) -> dict[str, Any]:
    """Settings of a config with this entry; transformers 4 reads one of its keys at the root."""
    settings = rope_settings(**entry)
    if "rope_scaling" in settings and entry["rope_type"] == "longrope":
        return {**settings, **ORIGINAL, "max_position_embeddings": 4 * TRAINED}
    return settings


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("text", NATIVE)
def test_equal_to_a_model_that_transformers_scales(kind: str, text: str) -> None:
    model = tiny_model(kind)
    native = tiny_model(kind, **settings_of(NATIVE[text]))
    assert not torch.equal(logits(model, IDS), logits(native, IDS))
    with ropex.patch(model, text):
        for length in (LONG, TRAINED):  # the longer one first: nothing depends on it
            ids = IDS[:, :length]
            if "dynamic" in text and length == TRAINED:  # which transformers forgets to reset
                native = tiny_model(kind, **settings_of(NATIVE[text]))
            assert torch.equal(logits(model, ids), logits(native, ids))


def test_ntk_is_equal_to_a_model_with_the_larger_base() -> None:
    native = tiny_model("llama", **rope_settings(10000.0 * 4 ** (16 / 14)))
    model = tiny_model("llama")
    with ropex.patch(model, "ntk:4"):
        assert torch.equal(logits(model, IDS), logits(native, IDS))


@pytest.mark.parametrize("text", STATIC)
@pytest.mark.parametrize("base", [1e4, 5e5, 1e7])
def test_the_stored_table_is_the_float64_plan(text: str, base: float) -> None:
    model = tiny_model("llama", head_dim=64, **rope_settings(base))
    with ropex.patch(model, fitted(text, 32)) as patch:
        table = model.model.rotary_emb.inv_freq
        assert table.dtype == torch.float32
        assert close(table, patch.plan.inv_freq)
        assert patch.in_config

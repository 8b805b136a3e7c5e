"""Patched models are equal to models that transformers scales itself, to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import STATIC, TRAINED, fitted, logits, rope_settings, tiny_model, tokens

import ropex
from ropex.native import close

IDS = tokens()


def native_entry(text: str) -> dict[str, Any]:
    """The config entry that a reader of transformers' documentation would write."""
    return {
        "linear:4": {"rope_type": "linear", "factor": 4.0},
        "linear:1.7": {"rope_type": "linear", "factor": 1.7},
        "dynamic": {"rope_type": "dynamic", "factor": 1.0},
        "dynamic:4": {"rope_type": "dynamic", "factor": 4.0},
        "yarn:4": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": TRAINED,
        },
        "yarn:factor=3,beta_fast=16,truncate=false": {
            "rope_type": "yarn",
            "factor": 3.0,
            "beta_fast": 16.0,
            "truncate": False,
            "original_max_position_embeddings": TRAINED,
        },
        "llama3:4": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": TRAINED,
        },
    }[text]


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "text",
    [
        "linear:4",
        "linear:1.7",
        "dynamic",
        "dynamic:4",
        "yarn:4",
        "yarn:factor=3,beta_fast=16,truncate=false",
        "llama3:4",
    ],
)
def test_equal_to_a_model_that_transformers_scales(kind: str, text: str) -> None:
    model = tiny_model(kind)
    native = tiny_model(kind, **rope_settings(**native_entry(text)))
    assert not torch.equal(logits(model, IDS), logits(native, IDS))
    with ropex.patch(model, text):
        assert torch.equal(logits(model, IDS), logits(native, IDS))


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

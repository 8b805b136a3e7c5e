"""Patched models are equal to models that transformers scales itself, to the last bit."""

from __future__ import annotations

import pytest
import torch

import ropex
from ropex.model.tables import close
from tests.support.cases import STATIC, fitted
from tests.support.configs import NATIVE, settings_of
from tests.support.models import LONG, TRAINED, logits, rope_settings, tiny_model, tokens

IDS = tokens()


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

"""`Patch.verify` passes on what is right, of whatever shape, and fails on what is broken."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import FalconForSequenceClassification, FalconForTokenClassification

import ropex
from ropex.model.rotary import sites
from tests.support.models import tiny_config, tiny_model, tiny_t5gemma

# Factors that begin far beyond twice the trained length, at it, and with the first token.
QUERY = ["llama4_temperature", "llama4_temperature:64k", "logn:length=32k", "logn:16", "logn"]


@pytest.mark.parametrize("trained", [512, 2048, 8192])
@pytest.mark.parametrize("text", [*QUERY, "ministral_temperature", "yarn:4+logn:32k"])
def test_scaled_queries_are_seen_where_they_begin(trained: int, text: str) -> None:
    model = tiny_model("llama", max_position_embeddings=trained)
    with ropex.patch(model, text) as patch:
        assert patch.verify().logit_change > 1e-3


@pytest.mark.parametrize("text", QUERY)
def test_queries_that_are_not_scaled_are_told(llama: Any, text: str) -> None:
    with ropex.patch(llama, text) as patch:
        for layer in llama.model.layers:
            del layer.self_attn.ropex_query_scale
        with pytest.raises(RuntimeError, match=r"moved by 0\.0, but the plan changes something"):
            patch.verify()


def falcon(head: Any) -> Any:
    config = tiny_config("falcon", alibi=False, initializer_range=0.1)
    torch.manual_seed(0)
    return head(config).eval()


def moe() -> Any:
    """Its first output is a loss of the router."""
    return tiny_model("mixtral", num_local_experts=2, output_router_logits=True)


SHAPES: dict[str, Callable[[], Any]] = {
    "tokens": lambda: falcon(FalconForTokenClassification),
    "sequences": lambda: falcon(FalconForSequenceClassification),
    "encoder and decoder": tiny_t5gemma,
    "router": moe,
}


@pytest.mark.parametrize("text", ["yarn:4", "dynamic"])
@pytest.mark.parametrize("shape", ["tokens", "router"])
def test_attention_that_rotates_by_a_table_of_its_own_is_told(shape: str, text: str) -> None:
    model = SHAPES[shape]()
    own = copy.deepcopy(sites(model)[0].module)
    with ropex.patch(model, text) as patch:
        patch.sites[0].module.register_forward_hook(
            lambda _, args, kwargs, __: own(*args, **kwargs), with_kwargs=True
        )
        with pytest.raises(RuntimeError, match=r"moved by 0\.0, but the plan changes something"):
            patch.verify()


@pytest.mark.parametrize("text", ["none", "yarn:4", "dynamic"])
@pytest.mark.parametrize("shape", SHAPES)
def test_models_of_other_shapes_are_run(shape: str, text: str) -> None:
    """Heads that take no positions, a decoder with inputs of its own, a loss before the logits."""
    with ropex.patch(SHAPES[shape](), text) as patch:
        assert (patch.verify().logit_change > 0) == (text != "none")

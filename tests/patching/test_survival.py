"""Patches survive what happens to models: casts, copies, files, compilation, offloading."""

from __future__ import annotations

import io
import warnings
from typing import Any

import pytest
import torch

import ropex
from tests.support.models import TRAINED, logits, tiny_model, tokens
from tests.support.rounding import assert_alike

IDS = tokens()


@pytest.mark.parametrize("text", ["yarn:4", "linear:1.7"])
@pytest.mark.parametrize("cast", ["bfloat16", "half", "rebuilt"])
def test_tables_survive_casts_and_re_initialisation(llama: Any, text: str, cast: str) -> None:
    rotary = llama.model.rotary_emb
    with ropex.patch(llama, text) as patch:
        wanted = rotary.inv_freq.clone()
        if cast == "rebuilt":
            llama.to_empty(device="cpu")
        else:
            getattr(llama, cast)()
        llama.float()
        logits(llama, IDS)
        assert torch.equal(rotary.inv_freq, wanted)
        assert rotary.inv_freq.dtype == torch.float32
        assert patch.in_config


def test_a_later_re_initialisation_reproduces_the_patch(llama: Any) -> None:
    rotary = llama.model.rotary_emb
    with ropex.patch(llama, "yarn:4"):
        rebuilt = type(rotary)(rotary.config)
        assert torch.equal(rebuilt.inv_freq, rotary.inv_freq)
        assert rebuilt.rope_type == rotary.rope_type
        assert rebuilt.attention_scaling == rotary.attention_scaling


def enable_checkpointing(model: Any) -> None:
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})


@pytest.mark.parametrize("text", ["yarn:4", "dynamic:4", "logn"])
def test_gradient_checkpointing_computes_the_same_gradients(text: str) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = tiny_model("llama").double().train()
        ropex.patch(model, text)
        if checkpointed:
            enable_checkpointing(model)
        model(IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad)
    assert_alike(gradients[0], gradients[1])


@pytest.mark.parametrize("text", ["yarn:4", "dynamic:4", "yarn:4+logn"])
def test_compiles_to_one_graph(text: str) -> None:
    llama = tiny_model("llama", num_hidden_layers=1).double()

    class Counting:
        graphs = 0

        def __call__(self, graph: Any, inputs: Any) -> Any:
            self.graphs += 1
            return graph

    counting = Counting()
    ropex.patch(llama, text)
    wanted = logits(llama, IDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, while it traces
        compiled: Any = torch.compile(llama, backend=counting, fullgraph=True)
        with torch.no_grad():
            output = compiled(IDS, use_cache=False).logits
    assert counting.graphs == 1
    assert_alike(output, wanted)


@pytest.mark.parametrize("text", ["yarn:4", "ntk_by_parts:4", "dynamic:4", "ntk:2+dynamic:2"])
def test_initialising_the_weights_again_leaves_the_tables_alone(llama: Any, text: str) -> None:
    with ropex.patch(llama, text):
        wanted = logits(llama, IDS)
        llama._init_weights(llama.model.rotary_emb)  # transformers 5 writes tables in place
        assert torch.equal(logits(llama, IDS), wanted)


@pytest.mark.parametrize("text", ["yarn:4", "dynamic:4", "ntk:2+dynamic:2", "yarn:4+logn"])
def test_a_patched_model_can_be_pickled(llama: Any, text: str) -> None:
    file = io.BytesIO()
    with ropex.patch(llama, text):
        torch.save(llama, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
        assert torch.equal(logits(twin, IDS), logits(llama, IDS))


@pytest.mark.parametrize("text", ["yarn:4", "dynamic:4", "ntk:2+dynamic:2", "yarn:4+logn"])
def test_a_compiled_model_can_be_patched_and_restored(text: str) -> None:
    torch._dynamo.reset()
    llama = tiny_model("llama", num_hidden_layers=1).double()
    compiled: Any = torch.compile(llama, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, while it traces
        plain = logits(compiled, IDS)
        with ropex.patch(llama, text):
            assert_alike(logits(compiled, IDS), logits(llama, IDS))
        assert_alike(logits(compiled, IDS), plain)


def test_edits_of_the_config_outlive_the_patch(llama: Any) -> None:
    patch = ropex.patch(llama, "yarn:4")
    llama.resize_token_embeddings(80, mean_resizing=False)
    llama.config.use_cache = False
    patch.verify()
    assert llama.config.vocab_size == 80
    patch.remove()
    assert (llama.config.vocab_size, llama.config.use_cache) == (80, False)
    assert llama.config.max_position_embeddings == TRAINED

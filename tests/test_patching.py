"""The contract of patching, clause by clause, over families and strategies."""

from __future__ import annotations

import copy
import gc
import warnings
from typing import Any

import pytest
import torch
from cases import (
    ALL,
    BY_LENGTH,
    FAMILIES,
    LONG,
    QUERY,
    STATIC,
    TRAINED,
    logits,
    tiny_config,
    tiny_model,
    tokens,
)
from torch import Tensor, nn

import ropex
from ropex.native import close

IDS = tokens()


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Any:
    return tiny_model(request.param)


@pytest.fixture
def llama() -> Any:
    return tiny_model("llama")


def state_of(model: Any) -> list[Any]:
    """Everything about a model that a patch may touch, by identity where it is an object."""
    tables = [(name, buffer.clone()) for name, buffer in model.named_buffers()]
    modules = []
    for name, module in model.named_modules():
        attributes = {
            key: value if isinstance(value, (int, float, str, bool)) else id(value)
            for key, value in vars(module).items()
            if key != "ropex_patches" and not isinstance(value, dict)
        }
        hooks = (len(module._forward_pre_hooks), len(module._forward_hooks))
        modules.append((name, attributes, hooks))
    return [tables, modules, model.config.to_dict()]


def same(left: list[Any], right: list[Any]) -> bool:
    tables = zip(left[0], right[0], strict=True)
    return left[1:] == right[1:] and all(a == b and torch.equal(x, y) for (a, x), (b, y) in tables)


# 1. `none` moves nothing; removal restores everything, by any road.


def test_none_moves_no_bit(family: Any) -> None:
    plain = logits(family, IDS)
    before = state_of(family)
    with ropex.patch(family, "none") as patch:
        assert torch.equal(logits(family, IDS), plain)
        assert same(state_of(family), before)
        assert patch.verify().logit_change == 0


@pytest.mark.parametrize("text", ["linear:1.7", "yarn:4", "dynamic:4", "linear:2+ntk:2"])
def test_patched_moves_and_removed_is_bit_identical(family: Any, text: str) -> None:
    plain, before = logits(family, IDS), state_of(family)
    patch = ropex.patch(family, text)
    assert not torch.equal(logits(family, IDS), plain)
    assert patch.verify().logit_change > 0
    patch.remove()
    assert torch.equal(logits(family, IDS), plain)
    assert same(state_of(family), before)


@pytest.mark.parametrize("text", ALL)
def test_every_strategy_moves_llama_and_is_undone(llama: Any, text: str) -> None:
    plain, before = logits(llama, IDS), state_of(llama)
    with ropex.patch(llama, text) as patch:
        assert not torch.equal(logits(llama, IDS), plain)
        assert patch.verify().logit_change > 0
    assert torch.equal(logits(llama, IDS), plain)
    assert same(state_of(llama), before)
    assert repr(patch) == f"Patch({text}, removed)"


def test_an_exception_inside_the_block_restores(llama: Any) -> None:
    before = state_of(llama)
    with pytest.raises(KeyError), ropex.patch(llama, "yarn:4+logn"):
        raise KeyError
    assert same(state_of(llama), before)


def test_a_failed_patch_leaves_nothing_behind(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state_of(llama)
    monkeypatch.setattr("ropex.patching.write_entry", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ropex.patch(llama, "yarn:4")
    assert same(state_of(llama), before)


def test_patches_nest_and_leave_last_first(llama: Any) -> None:
    plain = logits(llama, IDS)
    outer = ropex.patch(llama, "linear:2")
    alone = logits(llama, IDS)
    inner = ropex.patch(llama, "ntk:2")
    with ropex.patch(tiny_model("llama"), "linear:2+ntk:2") as composed:
        together = logits(composed.model, IDS)
    torch.testing.assert_close(logits(llama, IDS), together, rtol=0, atol=1e-4)
    with pytest.raises(RuntimeError, match="remove ntk:2 before linear:2"):
        outer.remove()
    inner.remove()
    assert torch.equal(logits(llama, IDS), alone)
    outer.remove()
    outer.remove()
    assert torch.equal(logits(llama, IDS), plain)


@pytest.mark.parametrize(
    ("outer", "inner"), [("dynamic", "linear:2"), ("logn", "logn:16"), ("dynamic:2", "logn")]
)
def test_a_patch_that_another_cannot_start_from_is_refused(
    llama: Any, outer: str, inner: str
) -> None:
    with ropex.patch(llama, outer):
        patched, before = logits(llama, IDS), state_of(llama)
        with pytest.raises(ValueError, match=f"patched with {outer}, and {inner} cannot"):
            ropex.patch(llama, inner)
        ropex.patch(llama, "none").remove()
        assert torch.equal(logits(llama, IDS), patched)
        assert same(state_of(llama), before) or outer.startswith("dynamic")


def test_a_patch_over_one_that_no_config_holds_is_not_in_the_config(llama: Any) -> None:
    with ropex.patch(llama, "logn"), ropex.patch(llama, "yarn:4") as inner:
        assert not inner.in_config
        both = logits(llama, IDS)
    with ropex.patch(llama, "yarn:4+logn:32"):
        torch.testing.assert_close(logits(llama, IDS), both, rtol=0, atol=1e-5)


def test_a_patch_outlives_its_handle(llama: Any) -> None:
    ropex.patch(llama, "yarn:4")
    patched = logits(llama, IDS)
    gc.collect()
    assert torch.equal(logits(llama, IDS), patched)


# 2. Only this instance changes.


def test_no_other_model_changes_even_one_with_the_same_config() -> None:
    config = tiny_config("llama")
    first, second = (type(tiny_model("llama"))(config).eval() for _ in range(2))
    plain, before = logits(second, IDS), config.to_dict()
    with ropex.patch(first, "yarn:4+logn"):
        assert torch.equal(logits(second, IDS), plain)
        assert config.to_dict() == before
        assert first.config is not config


def test_a_copy_of_a_patched_model_stays_patched_on_its_own(llama: Any) -> None:
    plain = logits(llama, IDS)
    with ropex.patch(llama, "yarn:4"):
        twin = copy.deepcopy(llama)
        patched = logits(llama, IDS)
    assert torch.equal(logits(twin, IDS), patched)
    assert torch.equal(logits(llama, IDS), plain)


# 3. Never a silent no-op.


def test_a_patch_says_what_it_changed(llama: Any) -> None:
    text = repr(ropex.patch(llama, "yarn:4"))
    assert text.splitlines() == [
        "Patch(yarn:4): trained at 32 tokens, target 128",
        "  model.rotary_emb (LlamaRotaryEmbedding): 7 of 8 pairs changed, cos and sin x 1.1386",
    ]


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bloom", "mamba"])
def test_a_model_without_rotary_embeddings_is_refused(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "hidden_size": 32, "num_hidden_layers": 1}
    opt = {"word_embed_proj_dim": 32, "ffn_dim": 32, "num_attention_heads": 2}
    config = AutoConfig.for_model(kind, vocab_size=32, **sizes, **opt)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ropex.UnsupportedModel, match=rf"{kind}.*looked for.*inv_freq.*found none"):
        ropex.patch(model, "yarn:4")


def test_rotary_embeddings_that_differ_by_layer_are_refused() -> None:
    model = tiny_model("gemma3_text", sliding_window=8)
    with pytest.raises(ropex.UnsupportedModel, match="gemma3_text"):
        ropex.patch(model, "yarn:4")


def test_query_scales_need_the_attention_interface() -> None:
    class Alone(nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.config, self.inner = inner.config, inner

    with pytest.raises(ropex.UnsupportedModel, match="attention interface"):
        ropex.patch(Alone(tiny_model("llama")), "logn")


def test_verify_catches_a_second_rotary_module(llama: Any) -> None:
    rotary = llama.model.rotary_emb
    patch = ropex.patch(llama, "yarn:4")
    kept = rotary._forward_pre_hooks.copy()
    rotary._forward_pre_hooks.clear()
    rotary.to(torch.bfloat16)
    with pytest.raises(RuntimeError, match="does not hold the planned frequencies"):
        patch.verify()
    rotary._forward_pre_hooks.update(kept)
    patch.verify()


def test_verify_after_removal_is_an_error(llama: Any) -> None:
    patch = ropex.patch(llama, "yarn:4")
    patch.remove()
    with pytest.raises(RuntimeError, match="removed"):
        patch.verify()


def test_the_trained_length_is_never_guessed() -> None:
    model = tiny_model("llama")
    vars(model.config)["max_position_embeddings"] = None  # version 5 refuses to set it so
    with pytest.raises(ValueError, match="give it as trained_length"):
        ropex.patch(model, "yarn:4")
    assert ropex.patch(model, "yarn:4", trained_length=16).rope.trained_length == 16


def test_rope_of_reads_what_the_model_was_built_with() -> None:
    from ropex.rope import Rope

    rope = ropex.rope_of(tiny_model("gpt_neox"))  # rotates a quarter of the head
    wanted = Rope.standard(4, 1e4, TRAINED)
    assert (rope.dim, rope.base, rope.trained_length) == (4, 1e4, TRAINED)
    torch.testing.assert_close(rope.inv_freq, wanted.inv_freq, rtol=1e-6, atol=0)


# 4. Equal to transformers' own implementation, to the last bit.


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
    entry = native_entry(text)
    config = tiny_config(kind)
    if hasattr(config, "rope_parameters"):
        native = tiny_model(kind, rope_parameters={**entry, "rope_theta": 10000.0})
    else:
        native = tiny_model(kind, rope_scaling=entry)
    assert not torch.equal(logits(model, IDS), logits(native, IDS))
    with ropex.patch(model, text):
        assert torch.equal(logits(model, IDS), logits(native, IDS))


def test_ntk_is_equal_to_a_model_with_the_larger_base() -> None:
    base = 10000.0 * 4 ** (16 / 14)
    config = tiny_config("llama")
    if hasattr(config, "rope_parameters"):
        entry = {"rope_type": "default", "rope_theta": base}
        native = tiny_model("llama", rope_parameters=entry)
    else:
        native = tiny_model("llama", rope_theta=base)
    model = tiny_model("llama")
    with ropex.patch(model, "ntk:4"):
        assert torch.equal(logits(model, IDS), logits(native, IDS))


@pytest.mark.parametrize("text", STATIC)
@pytest.mark.parametrize("base", [1e4, 5e5, 1e7])
def test_the_stored_table_is_the_float64_plan(text: str, base: float) -> None:
    settings: dict[str, Any] = {"rope_theta": base}
    if hasattr(tiny_config(), "rope_parameters"):
        settings = {"rope_parameters": {"rope_type": "default", "rope_theta": base}}
    model = tiny_model("llama", head_dim=64, **settings)
    with ropex.patch(model, text) as patch:
        table = model.model.rotary_emb.inv_freq
        assert table.dtype == torch.float32
        assert close(table, patch.plan.inv_freq)
        assert patch.in_config


# 5. Tables survive what happens to models.


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


def test_rounding_before_patching_does_not_reach_the_plan(llama: Any) -> None:
    exact = ropex.rope_of(llama).inv_freq
    llama.to(torch.bfloat16)
    assert torch.equal(ropex.rope_of(llama).inv_freq, exact)


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
        model = tiny_model("llama").train()
        ropex.patch(model, text)
        if checkpointed:
            enable_checkpointing(model)
        model(IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("text", ["yarn:4", "dynamic:4", "yarn:4+logn"])
def test_compiles_to_one_graph(llama: Any, text: str) -> None:
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
    torch.testing.assert_close(output, wanted, rtol=0, atol=1e-5)


# 6. Prefill equals decode.


@torch.no_grad()
def in_steps(model: Any, ids: Tensor, steps: list[int], mask: Tensor | None = None) -> Tensor:
    """Logits of `ids` fed in pieces through the key-value cache."""
    outputs, cache, done = [], None, 0
    for step in steps:
        inputs: dict[str, Any] = {}
        if mask is not None:
            seen = mask[:, : done + step]
            positions = (seen.cumsum(1) - 1).clamp(min=0)[:, done:]
            inputs = {"attention_mask": seen, "position_ids": positions}
        piece = ids[:, done : done + step]
        result = model(piece, past_key_values=cache, use_cache=True, **inputs)
        outputs.append(result.logits)
        cache, done = result.past_key_values, done + step
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("text", ["none", *STATIC, *QUERY])
@pytest.mark.parametrize("steps", [[40, *[1] * 10], [16, 16, 16, 2]])
def test_decoding_equals_prefill(llama: Any, text: str, steps: list[int]) -> None:
    ids = IDS[:, :50]
    with ropex.patch(llama, text):
        torch.testing.assert_close(
            in_steps(llama, ids, steps), logits(llama, ids), rtol=0, atol=2e-5
        )


@pytest.mark.parametrize("text", ["yarn:4", "yarn:4+logn", *BY_LENGTH])
def test_left_padding_changes_nothing(llama: Any, text: str) -> None:
    long, short = tokens(60, seed=1), tokens(45, seed=2)
    batch = torch.cat([long, torch.cat([torch.zeros(1, 15, dtype=torch.long), short], 1)])
    mask = torch.ones_like(batch)
    mask[1, :15] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with ropex.patch(llama, text):
        both = logits(llama, batch, attention_mask=mask, position_ids=positions)
        torch.testing.assert_close(both[:1], logits(llama, long), rtol=0, atol=2e-5)
        torch.testing.assert_close(both[1:, 15:], logits(llama, short), rtol=0, atol=2e-5)


@pytest.mark.parametrize("text", BY_LENGTH)
def test_dynamic_does_not_depend_on_what_the_model_saw_before(llama: Any, text: str) -> None:
    lengths = (LONG, TRAINED, TRAINED + 1, 60, LONG, 8)
    with ropex.patch(llama, text):
        seen = [logits(llama, IDS[:, :n]) for n in lengths]
    for length, output in zip(lengths, seen, strict=True):
        with ropex.patch(tiny_model("llama"), text) as fresh:
            assert torch.equal(logits(fresh.model, IDS[:, :length]), output)


@pytest.mark.parametrize("text", [*BY_LENGTH, "dynamic:4+logn"])
def test_dynamic_refuses_a_cache_that_it_cannot_continue(llama: Any, text: str) -> None:
    with ropex.patch(llama, text):
        within = in_steps(llama, IDS[:, :TRAINED], [20, *[1] * 12])
        torch.testing.assert_close(within, logits(llama, IDS[:, :TRAINED]), rtol=0, atol=2e-5)
        with pytest.raises(RuntimeError, match=r"fix the length .dynamic:length=32k. or pass"):
            in_steps(llama, IDS[:, : TRAINED + 1], [20, 13])
        with pytest.raises(RuntimeError, match="use_cache=False"):
            llama.generate(IDS[:, :20], max_new_tokens=20, do_sample=False)
        llama.generate(IDS[:, :20], max_new_tokens=20, do_sample=False, use_cache=False)


@pytest.mark.parametrize("text", ["yarn:4", "dynamic:length=128", "yarn:4+logn"])
def test_generation_is_the_same_with_and_without_a_cache(llama: Any, text: str) -> None:
    with ropex.patch(llama, text):
        cached, plain = (
            llama.generate(IDS[:, :20], max_new_tokens=30, do_sample=False, use_cache=use)
            for use in (True, False)
        )
    assert torch.equal(cached, plain)


# transformers uses parts of torch that torch deprecates, to set flex attention up.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_logn_scales_queries_under_each_attention(attention: str) -> None:
    model = tiny_model("llama", head_dim=16)
    model.set_attn_implementation(attention)
    reference = tiny_model("llama")
    scale = (torch.arange(1, LONG + 1).float().log() / torch.log(torch.tensor(32.0))).clamp(min=1)
    for layer in reference.model.layers:  # a linear map commutes with rotation
        layer.self_attn.q_proj.register_forward_hook(lambda _m, _i, out: out * scale[None, :, None])
    with ropex.patch(model, "logn"):
        torch.testing.assert_close(logits(model, IDS), logits(reference, IDS), rtol=0, atol=5e-5)


# Sliding windows.


def test_a_window_shorter_than_the_target_warns_and_can_be_lifted() -> None:
    model = tiny_model("mistral", sliding_window=40)
    plain = logits(model, IDS)
    with pytest.warns(UserWarning, match="only the last 40 tokens .* target of 128"):
        ropex.patch(model, "yarn:4").remove()
    with ropex.patch(model, "yarn:4", lift_sliding_window=True):
        lifted = logits(model, IDS)
    without = tiny_model("mistral", sliding_window=None)
    with ropex.patch(without, "yarn:4"):
        assert torch.equal(logits(without, IDS), lifted)
    assert torch.equal(logits(model, IDS), plain)


def test_a_window_that_reaches_the_target_is_quiet() -> None:
    ropex.patch(tiny_model("mistral", sliding_window=128), "yarn:4")


def test_lifting_what_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="no sliding window"):
        ropex.patch(tiny_model("llama"), "yarn:4", lift_sliding_window=True)

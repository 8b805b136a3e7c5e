"""The contract of patching, clause by clause, over families and strategies."""

from __future__ import annotations

import copy
import gc
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForMaskedLM

import ropex
from ropex.config.notations import version_5
from ropex.model.rotary import sites
from ropex.model.window import near_only
from ropex.patching.stack import stack
from ropex.train import RopeGuard
from tests.support.cases import ALL, FAMILIES
from tests.support.models import (
    TRAINED,
    build,
    logits,
    rope_settings,
    tiny_config,
    tiny_model,
    tiny_multimodal,
    tokens,
)
from tests.support.rounding import assert_alike

IDS = tokens()
LAYER_TYPES = ["sliding_attention", "full_attention"]


THREE_AXES = ("qwen2_vl", "qwen2_5_vl", "glm4v")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Any:
    return tiny_model(request.param)


def state_of(model: Any, but: str = "") -> list[Any]:
    """Everything about a model that a patch may touch, by identity where it is an object."""
    tables = [(name, buffer.clone()) for name, buffer in model.named_buffers()]
    modules = []
    for name, module in model.named_modules():
        attributes = {
            key: value if isinstance(value, (int, float, str, bool)) else id(value)
            for key, value in vars(module).items()
            if key != but and not isinstance(value, dict)
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
        assert same(state_of(family, but="ropex_patches"), before)
        assert patch.verify().logit_change == 0
    assert same(state_of(family), before)


def test_reading_what_is_in_place_writes_nothing(family: Any) -> None:
    before = state_of(family)
    assert stack(sites(family)) == ()
    RopeGuard(family).check()
    assert same(state_of(family), before)


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
    monkeypatch.setattr("ropex.model.sites.buffers.write_entry", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ropex.patch(llama, "yarn:4")
    assert same(state_of(llama), before)


def test_patches_nest_and_leave_last_first(llama: Any) -> None:
    plain = logits(llama.double(), IDS)
    outer = ropex.patch(llama, "linear:2")
    alone = logits(llama, IDS)
    inner = ropex.patch(llama, "ntk:2")
    with ropex.patch(tiny_model("llama").double(), "linear:2+ntk:2") as composed:
        together = logits(composed.model, IDS)
    assert_alike(logits(llama, IDS), together)
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
    llama.double()
    with ropex.patch(llama, "logn"), ropex.patch(llama, "yarn:4") as inner:
        assert not inner.in_config
        both = logits(llama, IDS)
    with ropex.patch(llama, "yarn:4+logn:32"):
        assert_alike(logits(llama, IDS), both)


def test_leaving_a_block_ends_the_patches_made_inside(llama: Any) -> None:
    plain = logits(llama, IDS)
    with ropex.patch(llama, "linear:2") as outer:
        scaled = logits(llama, IDS)
        with outer.suspended():
            ropex.patch(llama, "ntk:2")
            assert not torch.equal(logits(llama, IDS), plain)
        assert torch.equal(logits(llama, IDS), scaled)
        inner = ropex.patch(llama, "ntk:2")
    assert torch.equal(logits(llama, IDS), plain)
    assert repr(inner) == "Patch(ntk:2, removed)"


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
    with ropex.patch(twin, "ntk:2"):
        assert not torch.equal(logits(twin, IDS), patched)
    assert torch.equal(logits(twin, IDS), patched)
    assert torch.equal(logits(llama, IDS), plain)


# 3. Never a silent no-op.


def test_a_patch_says_what_it_changed(llama: Any) -> None:
    text = repr(ropex.patch(llama, "yarn:4"))
    assert text.splitlines() == [
        "Patch(yarn:4): trained at 32 tokens, target 128",
        "  model.rotary_emb (LlamaRotaryEmbedding): 7 of 8 pairs changed, cos and sin x 1.1386",
    ]


def test_a_patch_says_how_it_computes(llama: Any) -> None:
    patch = ropex.patch(llama, "yarn:4", precision="exact", cache="unrotated")
    assert repr(patch).endswith("phases in float64, un-rotated keys in caches")
    assert str(patch.verify()).startswith("verified: 1 table is as planned, and logits")


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bloom", "mamba"])
def test_a_model_without_rotary_embeddings_is_refused(kind: str) -> None:
    model = build(tiny_config(kind, word_embed_proj_dim=64, ffn_dim=32))
    with pytest.raises(ropex.UnsupportedModel, match=rf"{kind}.*looked for.*inv_freq.*found none"):
        ropex.patch(model, "yarn:4")


def test_rotary_modules_that_nobody_calls_are_refused() -> None:
    with pytest.raises(ropex.UnsupportedModel, match="falcon is built with ALiBi"):
        ropex.patch(build(tiny_config("falcon", alibi=True)), "yarn:4")


def test_layers_without_a_number_are_scaled_as_well() -> None:
    model = tiny_model("hunyuan_v1_dense")
    assert ropex.patch(model, "logn").verify().logit_change > 0


@torch.no_grad()
def test_rows_with_three_positions_a_token_have_lengths_of_their_own() -> None:
    model: Any = tiny_multimodal().double()
    ids = tokens(12, rows=2)
    far = torch.arange(12) * 9  # time, height and width of pictures need not agree
    places = torch.stack([torch.stack([far, far // 2]), torch.stack([far // 3, far // 4])] * 2)[:3]
    with ropex.patch(model, "dynamic:4") as patch:
        assert patch.sites[-1].name == "model.language_model.rotary_emb"
        assert patch.in_config
        decoder = model.model.language_model
        both = decoder(input_ids=ids, position_ids=places, use_cache=False).last_hidden_state
        for row in (0, 1):
            alone = decoder(
                input_ids=ids[row : row + 1], position_ids=places[:, row : row + 1], use_cache=False
            ).last_hidden_state
            assert_alike(both[row : row + 1], alone)


def test_three_positions_a_token_are_not_kept_unrotated() -> None:
    with pytest.raises(ropex.UnsupportedModel, match="three positions"):
        ropex.patch(tiny_multimodal(), "linear:2", cache="unrotated")
    with pytest.raises(ropex.UnsupportedModel, match="precision"):
        ropex.patch(tiny_multimodal(), "linear:2", precision="exact")


def test_layers_with_a_window_keep_their_frequencies() -> None:
    model = tiny_model("gemma3_text", sliding_window=8, layer_types=LAYER_TYPES)
    plain = logits(model, IDS)
    with ropex.patch(model, "yarn:4") as patch:
        kept = [each.site for each in patch.planned if each.kept]
        assert (len(kept), len(patch.sites)) == (1, 2)
        assert "kept, as its layers have a window" in repr(patch)
        assert patch.rope.base == 1e6
        assert patch.verify().logit_change > 0
    assert torch.equal(logits(model, IDS), plain)
    wide: Any = tiny_model("gemma3_text", sliding_window=2 * TRAINED, layer_types=LAYER_TYPES)
    assert not any(each.kept for each in ropex.patch(wide, "yarn:4").planned)


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


def test_verify_catches_an_attention_set_after_patching(llama: Any) -> None:
    patch = ropex.patch(llama, "yarn:4+logn")
    llama.set_attn_implementation("eager")
    with pytest.raises(RuntimeError, match="set to eager after patching"):
        patch.verify()
    with pytest.raises(RuntimeError, match="set to eager after patching"):
        logits(llama, IDS)


@pytest.mark.parametrize("part", ["headless", "gpt_oss"])
def test_verify_runs_models_of_other_shapes(part: str) -> None:
    model = tiny_model("llama").model
    if part == "gpt_oss":  # its attention sinks move the logits of position 0
        layers: dict[str, Any] = {"num_local_experts": 2, "layer_types": ["full_attention"] * 2}
        model = tiny_model("gpt_oss", num_experts_per_tok=1, **layers, **rope_settings())
    assert ropex.patch(model, "yarn:4").verify().logit_change > 0


def test_verify_after_removal_is_an_error(llama: Any) -> None:
    patch = ropex.patch(llama, "yarn:4")
    patch.remove()
    with pytest.raises(RuntimeError, match="removed"):
        patch.verify()


def test_the_trained_length_is_never_guessed() -> None:
    model = tiny_model("llama")
    vars(model.config)["max_position_embeddings"] = None  # version 5 refuses to set it so
    with pytest.raises(ValueError, match=r"give --trained-length N \(trained_length in Python"):
        ropex.patch(model, "yarn:4")
    assert ropex.patch(model, "yarn:4", trained_length=16).rope.trained_length == 16


def test_rope_of_reads_what_the_model_was_built_with() -> None:
    from ropex.rope import Rope

    rope = ropex.rope_of(tiny_model("gpt_neox"))  # rotates a quarter of the head
    wanted = Rope.standard(4, 1e4, TRAINED)
    assert (rope.dim, rope.base, rope.trained_length) == (4, 1e4, TRAINED)
    torch.testing.assert_close(rope.inv_freq, wanted.inv_freq, rtol=1e-6, atol=0)


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


NEAR: list[tuple[str, dict[str, Any]]] = [
    ("cohere2", {"sliding_window": 16, "layer_types": LAYER_TYPES}),
    ("exaone4", {"sliding_window": 16, "layer_types": LAYER_TYPES}),
    (
        "llama4_text",
        {
            "attention_chunk_size": 16, "layer_types": ["chunked_attention", "full_attention"],
            "no_rope_layers": [1, 0], "num_local_experts": 2, "intermediate_size_mlp": 64,
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "settings"), NEAR)
def test_a_model_whose_rotated_layers_see_no_new_distance_is_warned_of(
    kind: str, settings: dict[str, Any]
) -> None:
    model = tiny_model(kind, **settings)
    said = "every layer that rotates sees only the last 16 tokens, .* yarn:4 changes .* nothing"
    with pytest.warns(UserWarning, match=said), ropex.patch(model, "yarn:4"):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ropex.patch(model, "none").remove()
        ropex.patch(model, "logn").remove()
    assert near_only(model, sites(model), 8) is None  # 16 tokens are more than it was trained at


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *((kind, {"sliding_window": 16, "layer_types": LAYER_TYPES}) for kind in ("gemma2",)),
        ("gemma3_text", {"sliding_window": 16, "layer_types": LAYER_TYPES}),
        ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
        ("smollm3", {"no_rope_layers": [1, 0], "layer_types": ["full_attention"] * 2}),
        ("llama4_text", {**NEAR[2][1], "no_rope_layers": [1, 1]}),
    ],
)
def test_a_model_with_a_rotated_layer_that_sees_all_is_not(
    kind: str, settings: dict[str, Any]
) -> None:
    model = tiny_model(kind, **settings)
    assert near_only(model, sites(model), TRAINED) is None


def test_what_rotates_is_found_without_weights() -> None:
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = tiny_model("cohere2", **NEAR[0][1])
    assert near_only(model, sites(model), TRAINED) == 16


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch.compile imports it
def test_local_layers_of_modernbert_are_left_alone_in_both_versions(tmp_path: Path) -> None:
    config = tiny_config(
        "modernbert", num_hidden_layers=4, local_attention=16, reference_compile=False
    )
    auto: Any = AutoModelForMaskedLM
    model = build(config, auto)
    with ropex.patch(model, "ntk:4") as patch:
        patch.verify()
        bases = {
            each.kept: float(each.plan.inv_freq[1]) ** (-each.rope.dim / 2)
            for each in patch.planned
        }
        # Layers that see all have a base of 160000, of 8 pairs; those with a window one of 10000.
        assert bases == pytest.approx({False: 160000 * 4 ** (16 / 14), True: 10000}, rel=1e-5)
        wanted = model(IDS).logits
        model.save_pretrained(tmp_path)
    assert torch.equal(auto.from_pretrained(tmp_path).eval()(IDS).logits, wanted)
    said = json.loads((tmp_path / "config.json").read_text())
    read_by_4 = [said["global_rope_theta"], said["local_rope_theta"]]
    assert read_by_4 == pytest.approx([bases[False], 10000], rel=1e-5)
    if version_5():
        entries = [said["rope_parameters"][f"{kind}_attention"] for kind in ("full", "sliding")]
        assert [each["rope_theta"] for each in entries] == pytest.approx(read_by_4)
    with ropex.patch(model, "linear:2") as patch:  # transformers 4 scales all layers or none
        assert patch.in_config == version_5()
        if patch.in_config:
            with pytest.warns(UserWarning, match="has one scaling for all layers of modernbert"):
                model.save_pretrained(tmp_path)


# Checkpoints that are scaled already.


@pytest.mark.parametrize(
    ("entry", "trained", "scaled"),
    [
        ({"rope_type": "linear", "factor": 4.0}, 4 * TRAINED, "linear, factor 4"),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": TRAINED},
            4 * TRAINED,
            "yarn, factor 4",
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": TRAINED // 4},
            TRAINED,
            "yarn, factor 4",
        ),
        ({"rope_type": "dynamic", "factor": 2.0}, TRAINED, "dynamic, factor 2"),
    ],
)
def test_a_scaled_checkpoint_says_so(entry: dict[str, Any], trained: int, scaled: str) -> None:
    model = tiny_model("llama", **rope_settings(**entry))
    assert ropex.rope_of(model).trained_length == trained
    how = "takes its place" if "dynamic" in scaled else "comes on top"
    with pytest.warns(UserWarning, match=rf"scaled already \({scaled}\); ntk:2 {how}"):
        patch = ropex.patch(model, "ntk:2")
    assert patch.verify().logit_change > 0


@pytest.mark.parametrize("option", [{"precision": "exact"}, {"cache": "unrotated"}])
@pytest.mark.parametrize("text", ["none", "logn"])
def test_options_alone_do_not_replace_a_dynamic_checkpoint(
    text: str, option: dict[str, Any]
) -> None:
    model = tiny_model("llama", **rope_settings(rope_type="dynamic", factor=2.0))
    with pytest.raises(ValueError, match=f"changes its frequencies with the length, and {text}"):
        ropex.patch(model, text, **option)


def test_llama3_is_how_a_model_was_trained() -> None:
    entry: dict[str, Any] = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    settings = rope_settings(**entry, original_max_position_embeddings=8)
    model = tiny_model("llama", **settings)
    assert ropex.rope_of(model).trained_length == TRAINED
    ropex.patch(model, "ntk:2")


@pytest.mark.parametrize("kind", THREE_AXES)
def test_positions_with_three_axes_outlive_a_new_base(kind: str, tmp_path: Path) -> None:
    model, mask = tiny_multimodal(kind), torch.ones_like(IDS)
    with ropex.patch(model, "ntk:4") as patch:
        patch.verify()
        assert ropex.rope_of(model).inv_freq.shape == (8,)
        wanted = logits(model, IDS, attention_mask=mask)
        model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded, IDS, attention_mask=mask), wanted)
    said = json.loads((tmp_path / "config.json").read_text())["text_config"]
    assert said["rope_scaling"]["mrope_section"] == [2, 3, 3]  # what transformers 4 reads
    assert said["rope_parameters"]["mrope_section"] == [2, 3, 3] or not version_5()

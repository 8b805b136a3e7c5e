"""Attention under a patch: it keeps its name, and every branch of model code is its own."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
import transformers
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import ropex
from ropex.attention.gathered import GATHERED, Slices
from ropex.attention.modules import attention_modules, install
from ropex.attention.query_scale import factors
from ropex.attention.shifted import shift_attention
from ropex.families.tiny import causal_types, tiny_model
from ropex.model.probe import MOST, probe_size, unreached
from ropex.patching.verify import Verification
from ropex_eval.measure.context_parallel import _gather
from tests.support.models import logits, tokens
from tests.support.rounding import assert_alike

IDS = tokens(60)


def only(*families: str) -> list[Any]:
    """Families as parameters, those that the installed transformers lacks skipped."""
    absent = pytest.mark.skip(reason="this version of transformers has no such family")
    return [
        pytest.param(family, marks=() if family in causal_types() else absent)
        for family in families
    ]


def attention_of(model: Any) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__.endswith("Attention")]


@pytest.fixture
def plain(llama: Any) -> Tensor:
    return logits(llama, IDS)


# What model code asks for by name.


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", only("dots3_note_text", "minimax_m3_vl_text"))
def test_selected_keys_stay_selected_while_queries_are_scaled_by_one(
    family: str, attention: str
) -> None:
    """60 tokens of 64 that it was trained at, of which a query selects 8 or 16."""
    model = tiny_model(family, max_position_embeddings=64)
    model.set_attn_implementation(attention)
    before = logits(model, IDS)
    with ropex.patch(model, "logn"):
        assert torch.equal(logits(model, IDS), before)


@pytest.mark.parametrize("name", ["sdpa", "eager"])
@pytest.mark.parametrize("options", [("logn", "rotated"), ("yarn:4", "unrotated")])
def test_a_patched_model_asks_for_attention_by_its_own_name(
    llama: Any, name: str, options: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    llama.set_attn_implementation(name)
    tables = [dict(ALL_ATTENTION_FUNCTIONS), dict(ALL_MASK_ATTENTION_FUNCTIONS)]
    with ropex.patch(llama, options[0], cache=options[1]):
        assert llama.config._attn_implementation == name
        assert {module.config._attn_implementation for module in attention_of(llama)} == {name}
        assert tables == [dict(ALL_ATTENTION_FUNCTIONS), dict(ALL_MASK_ATTENTION_FUNCTIONS)]


def test_a_function_that_reads_the_name_gets_the_one_it_knows(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def kernel(module: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(module.config._attn_implementation)
        return sdpa_attention_forward(module, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", kernel)
    with ropex.patch(llama, "logn"):
        logits(llama, IDS)
    assert seen == ["sdpa"] * len(attention_of(llama))


@pytest.mark.parametrize("family", only("hy_v4", "minimax_m3_vl_text", "deepseek_v32", "axk2"))
def test_keys_that_are_selected_by_a_rotation_are_not_kept_unrotated(family: str) -> None:
    """However many are selected: no probe would be that long."""
    model = tiny_model(family, **{"index_topk": 2048} if family != "minimax_m3_vl_text" else {})
    before = logits(model, IDS)
    with pytest.raises(ropex.UnsupportedModel, match="selects keys by a rotation of its own"):
        ropex.patch(model, "yarn:4", cache="unrotated")
    assert torch.equal(logits(model, IDS), before)


@pytest.mark.parametrize("family", only("minimax_m3_vl_text"))
def test_attention_that_counts_its_positions_is_verified(family: str) -> None:
    with ropex.patch(tiny_model(family), "yarn:4") as patch:
        assert patch.verify().logit_change > 0


# What carries the way into attention.


def saved_and_loaded(model: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "made", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved_and_loaded]
)
def test_a_copy_is_patched_too_and_alone(llama: Any, plain: Tensor, made: Any) -> None:
    with ropex.patch(llama, "logn"):
        wanted = logits(llama, IDS)
        twin = made(llama)
    assert not torch.equal(wanted, plain)
    assert torch.equal(logits(twin, IDS), wanted)
    assert torch.equal(logits(llama, IDS), plain)


def test_only_this_model_changes_and_its_classes_come_back(llama: Any, plain: Tensor) -> None:
    other: Any = type(llama)(copy.deepcopy(llama.config)).eval()
    unpatched, classes = logits(other, IDS), [type(module) for module in llama.modules()]
    with ropex.patch(llama, "logn"):
        assert torch.equal(logits(other, IDS), unpatched)
        kinds = [type(module) for module in llama.modules()]
        assert [kind.__qualname__ for kind in kinds] == [kind.__qualname__ for kind in classes]
        assert all(isinstance(m, kind) for m, kind in zip(llama.modules(), classes, strict=True))
    assert [type(module) for module in llama.modules()] == classes
    assert torch.equal(logits(llama, IDS), plain)


def test_a_replica_computes_with_its_own_weights(llama: Any) -> None:
    """As `DataParallel` makes them: the attributes of a module, in a new one of its class."""
    layer = llama.model.layers[0].self_attn
    with ropex.patch(llama, "logn"):
        replica = layer._replicate_for_data_parallel()
        replica._modules = {name: copy.deepcopy(part) for name, part in layer._modules.items()}
        replica.o_proj.weight.data.zero_()
        states, positions = torch.randn(1, 60, 64, dtype=torch.float64), torch.arange(60)[None]
        turns = llama.model.rotary_emb(states, positions)
        given = {"position_embeddings": turns, "attention_mask": None, "position_ids": positions}
        assert not replica(states, **given)[0].any()
        assert layer(states, **given)[0].any()


class Counter(ModelHook):  # type: ignore[misc]
    """A hook of accelerate, which takes the place of a module's forward."""

    def __init__(self) -> None:
        self.calls = 0

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return args, kwargs


@pytest.mark.parametrize("first", ["hook", "patch"])
@pytest.mark.parametrize("hooked", [True, False])
def test_hooks_of_accelerate_come_and_go(
    llama: Any, plain: Tensor, first: str, hooked: bool
) -> None:
    """Before the patch or within it; there after it, or removed within it."""
    layers = attention_of(llama)
    with ropex.patch(llama, "logn"):
        wanted = logits(llama, IDS)
    counter = Counter()
    for layer in layers if first == "hook" else ():
        add_hook_to_module(layer, counter)
    with ropex.patch(llama, "logn"):
        for layer in layers if first == "patch" else ():
            add_hook_to_module(layer, counter)
        assert torch.equal(logits(llama, IDS), wanted)
        assert counter.calls == len(layers)
        for layer in layers if not hooked else ():
            remove_hook_from_module(layer)
        assert torch.equal(logits(llama, IDS), wanted)
    counter.calls = 0
    assert torch.equal(logits(llama, IDS), plain)
    assert counter.calls == (len(layers) if hooked else 0)
    with ropex.patch(llama, "logn"):
        assert torch.equal(logits(llama, IDS), wanted)


def test_attention_weights_are_returned_and_leave_no_trace(llama: Any, plain: Tensor) -> None:
    """transformers 4 wraps the forward of each attention module for that, and unwraps it."""
    llama.set_attn_implementation("eager")
    before = logits(llama, IDS)
    with torch.no_grad():
        weights = llama(IDS, use_cache=False, output_attentions=True).attentions
        for _ in range(2):
            with ropex.patch(llama, "logn", trained_length=16):
                wanted = logits(llama, IDS)
                scaled = llama(IDS, use_cache=False, output_attentions=True).attentions
                assert torch.equal(logits(llama, IDS), wanted)
            assert torch.equal(logits(llama, IDS), before)
            ratio = (scaled[0].log() / 1)[0, 0, 40, :40].diff() / weights[0].log()[
                0, 0, 40, :40
            ].diff()
            expected = math.log(41) / math.log(16)
            assert float(ratio.median()) == pytest.approx(expected, rel=1e-3)


def test_a_forward_that_was_replaced_is_refused(llama: Any, plain: Tensor) -> None:
    layer = llama.model.layers[1].self_attn
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    with pytest.raises(ropex.UnsupportedModel, match="LlamaAttention was replaced, so its att"):
        ropex.patch(llama, "logn")
    assert torch.equal(logits(llama, IDS), plain)


# Positions that are not those of the queries one by one.


@pytest.mark.parametrize("kept", [1, 3])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", only("gemma4_text"))
def test_layers_that_share_keys_scale_the_queries_they_keep(
    family: str, attention: str, kept: int
) -> None:
    kinds = ["sliding_attention", "full_attention"] * 2
    model = tiny_model(family, num_hidden_layers=4, layer_types=kinds, num_kv_shared_layers=2)
    model.set_attn_implementation(attention)
    with ropex.patch(model, "logn"), torch.no_grad():
        whole = model(IDS, use_cache=False).logits
        found = model(IDS, use_cache=False, logits_to_keep=kept).logits
        assert_alike(found, whole[:, -kept:])
        text = model.generate(IDS, max_new_tokens=4, do_sample=False)
        for place in range(60, 64):
            assert text[0, place] == model(text[:, :place]).logits[0, -1].argmax()


@pytest.mark.parametrize("axes", [(), (3,), (4,)])
def test_scale_goes_by_the_last_positions_and_the_furthest_axis(axes: tuple[int, ...]) -> None:
    positions = torch.arange(20)[None]
    if axes:
        positions = torch.stack([positions - shift for shift in range(*axes)])
    scale: Any = Tensor.double
    found = factors(nn.Identity(), scale, torch.zeros(1, 2, 5, 8), positions)
    assert found[0, 0, :, 0].tolist() == [15.0, 16.0, 17.0, 18.0, 19.0]


def test_three_positions_of_a_token_scale_its_query_once() -> None:
    """GLM-4.5V hands all three on to its attention."""
    key = "rope_scaling" if transformers.__version__.startswith("4.") else "rope_parameters"
    kind = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    sizes: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32, "vocab_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 32, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "first_k_dense_replace": 1,
        key: {**kind, "mrope_section": [2, 1, 1]}, "partial_rotary_factor": 0.5,
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2,
              "intermediate_size": 32}  # fmt: skip
    kind_of_config: Any = CONFIG_MAPPING["glm4v_moe"]
    config = kind_of_config(text_config=sizes, vision_config=vision)
    torch.manual_seed(0)
    model: Any = AutoModelForImageTextToText.from_config(config).eval()
    given = {"attention_mask": torch.ones_like(IDS)}
    before = logits(model, IDS, **given)
    with ropex.patch(model, "logn", trained_length=64):
        assert torch.equal(logits(model, IDS, **given), before)
    with ropex.patch(model, "logn", trained_length=32):
        after = logits(model, IDS, **given)
    assert_alike(after[:, :32], before[:, :32])
    assert float((after - before)[:, 32:].abs().max()) > 1e-4 * float(before.abs().max())


# How long a probe is.


@pytest.mark.parametrize(
    ("family", "changes", "size", "missed"),
    [
        ("llama", {}, 8, ()),
        ("gpt_oss", {}, 128 + 8, ()),
        ("mistral", {}, 8, ("sliding_window 4096",)),
        ("mistral", {"sliding_window": 512}, 520, ()),
        ("mistral", {"sliding_window": 513}, 8, ("sliding_window 513",)),
        ("llama4_text", {}, 8, ("attention_chunk_size 8192",)),
        ("deepseek_v32", {}, 8, ("index_topk 2048",)),
        ("minimax_m3_vl_text", {}, 128 + 8, ("index_topk_blocks 2048",)),
        ("deepseek_v4", {}, 520, ()),
        ("qwen2", {}, 8, ()),
    ],
)
def test_probe_reaches_beyond_what_the_config_counts(
    family: str, changes: dict[str, Any], size: int, missed: tuple[str, ...]
) -> None:
    if family not in CONFIG_MAPPING:
        pytest.skip("this version of transformers has no such family")
    config = CONFIG_MAPPING[family](**changes)
    assert (probe_size(config), unreached(config)) == (size, missed)
    assert probe_size(config) <= MOST + 8


def test_what_no_probe_reached_is_said() -> None:
    model = tiny_model("mistral", sliding_window=1000)
    with ropex.patch(model, "yarn:4") as patch:
        assert patch.verify().unreached == ("sliding_window 1000",)
        assert str(patch.verify()).endswith("(on a text too short for sliding_window 1000)")
    assert str(Verification(1, 0.5)) == (
        "verified: 1 table is as planned, and logits move by up to 0.5"
    )


def test_a_wrong_turn_beyond_the_window_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attention that is right on eight tokens, and rotates otherwise from 16 keys on."""
    model = tiny_model("mistral", sliding_window=16)

    def wrong(module: Any, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        key = key.flip(2) if key.shape[2] > 16 and hasattr(module, "ropex_unrotated") else key
        return sdpa_attention_forward(module, query, key, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", wrong)
    with pytest.raises(ropex.UnsupportedModel, match="cannot stay un-rotated"):
        ropex.patch(model, "yarn:4", cache="unrotated")


# A text split over processes.


def test_attention_with_a_mask_of_its_own_is_not_split_over_processes() -> None:
    states, module = torch.zeros(1, 1, 4, 8), nn.Identity()
    vars(module)["ropex_slices"] = Slices(alone, 0)
    mask = torch.ones(1, 1, 4, 4).bool()
    with pytest.raises(ropex.UnsupportedModel, match="attends with a mask of its own, so a text"):
        GATHERED.run(None, module, states, states, states, mask)


def alone(states: Tensor) -> Tensor:
    """What a text gathers that is one slice."""
    return states


@contextmanager
def gathering(model: Any) -> Iterator[None]:
    """Attention of a text that is one slice."""
    with ExitStack() as undo:
        modules = attention_modules(model, (model.config,))
        install(modules, GATHERED, Slices(alone, 0), undo)
        yield


@pytest.mark.parametrize("sharded", [True, False])
@pytest.mark.parametrize("patched_first", [True, False])
def test_queries_are_scaled_whichever_step_came_first(
    llama: Any, patched_first: bool, sharded: bool
) -> None:
    llama.double()
    patch = ropex.patch(llama, "logn", trained_length=16)
    for module in attention_of(llama) if sharded else ():
        module.__class__ = type(f"FSDP{type(module).__name__}", (type(module),), {})
    given = {"attention_mask": torch.ones_like(IDS)}  # else transformers 4 masks packed texts
    wanted = logits(llama, IDS, **given)
    with gathering(llama):
        found = logits(llama, IDS, **given)
        if not patched_first:
            patch.remove()
            with patch:
                found = logits(llama, IDS, **given)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_unrotated_keys_are_not_gathered(llama: Any) -> None:
    words = "gathered keys with un-rotated keys"
    with gathering(llama), pytest.raises(ropex.UnsupportedModel, match=words):
        ropex.patch(llama, "yarn:4", cache="unrotated")
    ropex.patch(llama, "yarn:4", cache="unrotated")
    with pytest.raises(ropex.UnsupportedModel, match=words), gathering(llama):
        pass


@pytest.mark.parametrize(("family", "words"), [("llama4_text", "in chunked_attention")])
def test_layers_of_other_kinds_are_not_split_over_processes(family: str, words: str) -> None:
    with pytest.raises(ropex.UnsupportedModel, match=words):
        _gather(tiny_model(family))


def test_attention_below_a_class_of_others_is_routed_once(llama: Any, plain: Tensor) -> None:
    patch = ropex.patch(llama, "logn")
    wanted = logits(llama, IDS)
    for module in attention_of(llama):  # as fully_shard of torch does
        module.__class__ = type(f"FSDP{type(module).__name__}", (type(module),), {})
    assert torch.equal(logits(llama, IDS), wanted)
    patch.remove()
    with shift_attention(llama):  # scaled queries are off, though their step is still below
        assert torch.equal(logits(llama, IDS), plain)
    assert torch.equal(logits(llama, IDS), plain)
    with patch:
        assert torch.equal(logits(llama, IDS), wanted)
    assert torch.equal(logits(llama, IDS), plain)

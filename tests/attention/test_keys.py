"""Keys in a cache are of one rotation: of this patch, of an equal one, or of none."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, StaticCache

import ropex
from ropex.families import tiny
from tests.support.models import TRAINED, logits, tiny_model, tiny_t5gemma, tokens
from tests.support.rounding import assert_alike

IDS = tokens()
BEFORE = "was not filled under this patch"
AFTER = "filled under yarn:4, which is removed since"
# How a patch can change keys: by frequencies, by their size, by rounding, not at all.
CHANGES = ["yarn:4", "linear:2", "temperature:1.2", "theta:5e5"]
KEEPS = ["none", "logn", "llama4_temperature:8"]


def read(model: Any, ids: Tensor, cache: Any = None) -> Any:
    """The cache after more tokens."""
    with torch.no_grad():
        return model(ids, past_key_values=cache, use_cache=True).past_key_values


@pytest.mark.parametrize("text", CHANGES)
def test_a_cache_from_before_a_patch_is_refused(llama: Any, text: str) -> None:
    cache = read(llama, IDS[:, :10])
    with ropex.patch(llama, text):
        with pytest.raises(RuntimeError, match=BEFORE):
            read(llama, IDS[:, 10:12], cache)
        read(llama, IDS[:, 10:12], read(llama, IDS[:, :10]))
    assert read(llama, IDS[:, 10:12], cache).get_seq_length() == 12  # as if nothing had been


@pytest.mark.parametrize("options", [{}, {"precision": "exact"}, {"cache": "unrotated"}])
def test_a_cache_from_under_a_patch_is_refused_once_it_is_removed(
    llama: Any, options: dict[str, Any]
) -> None:
    with ropex.patch(llama, "yarn:4", **options):
        cache = read(llama, IDS[:, :10])
        taken = copy.deepcopy(cache)
    later = copy.deepcopy(cache)
    for each in (cache, taken, later):
        with pytest.raises(RuntimeError, match=AFTER):
            read(llama, IDS[:, 10:12], each)
    assert isinstance(cache, DynamicCache)
    with (
        ropex.patch(llama, "linear:2"),
        pytest.raises(RuntimeError, match="cache was filled under yarn:4"),
    ):
        read(llama, IDS[:, 10:12], cache)


def test_a_cache_that_was_emptied_is_filled_anew(llama: Any) -> None:
    wanted = logits(llama, IDS[:, :20])
    with ropex.patch(llama, "yarn:4"):
        cache = read(llama, IDS[:, :10])
    cache.crop(-10)
    read(llama, IDS[:, :10], cache)
    assert type(cache) is DynamicCache
    with ropex.patch(llama, "yarn:4"), pytest.raises(RuntimeError, match=BEFORE):
        read(llama, IDS[:, 10:11], cache)
    output = llama(IDS[:, 10:20], past_key_values=cache).logits
    assert_alike(output, wanted[:, 10:])


@pytest.mark.parametrize("text", KEEPS)
def test_a_patch_that_leaves_keys_alone_takes_any_cache(llama: Any, text: str) -> None:
    cache = read(llama, IDS[:, :10])
    with ropex.patch(llama, text):
        read(llama, IDS[:, 10:12], cache)
    with ropex.patch(llama, "yarn:4"):
        scaled = read(llama, IDS[:, :10])
        with ropex.patch(llama, text):
            read(llama, IDS[:, 10:12], scaled)
        read(llama, IDS[:, 12:14], scaled)
    assert read(llama, IDS[:, 12:14], cache).get_seq_length() == 14


@pytest.mark.parametrize("text", ["yarn:4", "dynamic"])
def test_an_equal_patch_takes_the_cache(llama: Any, text: str) -> None:
    ids = IDS[:, :TRAINED]
    with ropex.patch(llama, text) as patch:
        wanted = logits(llama, ids)
        cache = read(llama, ids[:, :10])
        patch.verify()  # it suspends the patch for a while
        read(llama, ids[:, 10:15], cache)
        with patch.suspended(), pytest.raises(RuntimeError, match="is removed since"):
            read(llama, ids[:, 15:16], cache)
    with ropex.patch(llama, text):
        output = llama(ids[:, 15:], past_key_values=cache).logits
        assert_alike(output, wanted[:, 15:])
    with pytest.raises(RuntimeError, match="is removed since"):
        read(llama, ids[:, :1], cache)


def test_of_patches_over_patches_the_last_one_rotates(llama: Any) -> None:
    with ropex.patch(llama, "yarn:4"):
        below = read(llama, IDS[:, :10])
        with ropex.patch(llama, "linear:2"):
            with pytest.raises(RuntimeError, match="filled under yarn:4"):
                read(llama, IDS[:, 10:11], below)
            above = read(llama, IDS[:, 10:11], read(llama, IDS[:, :10]))
        with pytest.raises(RuntimeError, match="filled under linear:2"):
            read(llama, IDS[:, 11:12], above)
        read(llama, IDS[:, 10:11], below)


def test_patching_while_it_generates_is_refused(llama: Any) -> None:
    handles = []

    def meddle(ids: Tensor, scores: Tensor) -> Tensor:
        if ids.shape[1] == 15:
            handles.append(ropex.patch(llama, "yarn:4"))
        if ids.shape[1] == 25:
            handles.pop().remove()
        return scores

    settings: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False, "min_new_tokens": 20}
    with pytest.raises(RuntimeError, match=BEFORE):
        llama.generate(IDS[:, :10], logits_processor=[meddle], **settings)
    with pytest.raises(RuntimeError, match=AFTER):
        llama.generate(IDS[:, :20], logits_processor=[meddle], **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"cache_implementation": "static", "disable_compile": True},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 8},
        {"prompt_lookup_num_tokens": 3},
        {"num_return_sequences": 2, "do_sample": True},
    ],
    ids=str,
)
def test_every_way_to_generate_stays(llama: Any, settings: dict[str, Any]) -> None:
    common: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "min_new_tokens": 8}
    with ropex.patch(llama, "yarn:4"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = llama.generate(IDS[:, :20], **{**common, **settings})
        if "do_sample" not in settings:
            beams = settings.get("num_beams", 1)
            plain = llama.generate(IDS[:, :20], **common, use_cache=False, num_beams=beams)
            assert torch.equal(output, plain)


@pytest.mark.parametrize("family", ["bamba", "granitemoehybrid", "minimax"])
def test_layers_without_keys_are_no_tokens(family: str) -> None:
    model = tiny.tiny_model(family)
    settings: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    wanted = model.generate(IDS[:, :10], **settings)
    with ropex.patch(model, "dynamic", trained_length=TRAINED):
        assert torch.equal(model.generate(IDS[:, :10], **settings), wanted)
        with pytest.raises(RuntimeError, match="cannot be continued beyond the trained length"):
            model.generate(IDS[:, :TRAINED], **settings)
    with ropex.patch(model, "linear:2", trained_length=TRAINED):
        model.generate(IDS[:, :10], **settings)


@pytest.mark.filterwarnings("ignore:.*tokens:UserWarning")  # of windows
@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "t5gemma"])
def test_other_caches_are_guarded_too(family: str) -> None:
    """Of sliding windows, of layers of two kinds, of an encoder and a decoder."""
    model = MODELS[family]()
    given = {"input_ids": IDS[:, :5]} if family == "t5gemma" else {}
    key = "decoder_input_ids" if given else "input_ids"

    def fed(ids: Tensor, cache: Any = None) -> Any:
        with torch.no_grad():
            output = model(**given, **{key: ids}, past_key_values=cache, use_cache=True)
        return output.past_key_values

    before = fed(IDS[:, :10])
    with ropex.patch(model, "yarn:4"):
        with pytest.raises(RuntimeError, match=BEFORE):
            fed(IDS[:, 10:11], before)
        cache = fed(IDS[:, 10:11], fed(IDS[:, :10]))
    with pytest.raises(RuntimeError, match="yarn:4, which is removed since"):
        fed(IDS[:, 11:12], cache)


MODELS: dict[str, Callable[[], Any]] = {
    "mistral": lambda: tiny_model("mistral", sliding_window=8),
    "gemma3_text": lambda: tiny_model("gemma3_text", sliding_window=8),
    "t5gemma": tiny_t5gemma,
}


def test_a_fixed_cache_is_used_again_once_it_is_reset(llama: Any) -> None:
    cache = StaticCache(config=llama.config, max_cache_len=40)
    wanted = logits(llama, IDS[:, :20])
    for text in ("yarn:4", "linear:2", "none", "dynamic"):
        with ropex.patch(llama, text):
            read(llama, IDS[:, :20], cache)
        cache.reset()
    output = llama(IDS[:, :20], past_key_values=cache).logits
    assert_alike(output, wanted)


def test_a_cache_is_marked_where_outputs_are_tuples(llama: Any) -> None:
    with ropex.patch(llama, "yarn:4"), torch.no_grad():
        _, cache = llama(IDS[:, :10], use_cache=True, return_dict=False)
        llama(IDS[:, 10:11], past_key_values=cache, return_dict=False)
    with pytest.raises(RuntimeError, match=AFTER):
        llama(IDS[:, 11:12], past_key_values=cache)


def test_a_patched_model_is_copied_with_its_guard(llama: Any) -> None:
    with ropex.patch(llama, "yarn:4"):
        twins = copy.deepcopy(llama), pickle.loads(pickle.dumps(llama))
        cache = read(llama, IDS[:, :10])
    for twin in twins:
        read(twin, IDS[:, 10:11], copy.deepcopy(cache))
        with pytest.raises(RuntimeError, match=BEFORE):
            read(twin, IDS[:, 10:11], read(llama, IDS[:, :10]))


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_a_spent_cache_is_copied_as_spent(llama: Any, twin: Callable[[Any], Any]) -> None:
    with ropex.patch(llama, "yarn:4"):
        cache = read(llama, IDS[:, :10])
    copied = twin(cache)
    assert copied.get_seq_length() == 10
    for each in (cache, copied):
        with pytest.raises(RuntimeError, match=AFTER):
            read(llama, IDS[:, 10:12], each)


def test_no_cache_is_kept_alive(llama: Any) -> None:
    import gc
    import weakref

    gc.collect()
    gc.disable()
    try:
        with ropex.patch(llama, "yarn:4"):
            cache = read(llama, IDS[:, :10])
            known = weakref.ref(cache)
            del cache
            assert known() is None
    finally:
        gc.enable()


def test_a_compiled_model_keeps_one_graph() -> None:
    from torch._dynamo import testing

    llama = tiny_model("llama", num_hidden_layers=1).double()

    torch._dynamo.reset()
    counter = testing.CompileCounter()
    with ropex.patch(llama, "yarn:4"), torch.no_grad():
        wanted = logits(llama, IDS[:, :14])
        compiled: Any = torch.compile(llama, backend=counter, fullgraph=True, dynamic=True)
        for _ in range(2):
            cache = compiled(IDS[:, :10], use_cache=True).past_key_values
        first = counter.frame_count
        assert first == 1
        for place in range(10, 14):
            output = compiled(IDS[:, place : place + 1], past_key_values=cache)
        assert_alike(output.logits, wanted[:, -1:])
        assert counter.frame_count <= first + 2
    with pytest.raises(RuntimeError, match=AFTER):
        read(llama, IDS[:, 20:21], cache)


def test_a_compiled_model_fills_a_fixed_cache_in_as_many_graphs_as_unpatched() -> None:
    from torch._dynamo import testing

    torch._dynamo.reset()
    model, counter = tiny_model("llama", num_hidden_layers=1).double(), testing.CompileCounter()
    name = "cache_position" if transformers.__version__.startswith("4.") else "position_ids"
    compiled: Any = torch.compile(model, backend=counter, fullgraph=True)
    cache = StaticCache(config=model.config, max_cache_len=16)
    with ropex.patch(model, "yarn:4"), torch.no_grad():
        wanted = logits(model, IDS[:, :12])[:, -1:]
        for first, last in ((0, 10), (10, 11), (11, 12)):
            places = torch.arange(first, last)
            given = {name: places if name == "cache_position" else places[None]}
            output = compiled(IDS[:, first:last], past_key_values=cache, **given)
    assert_alike(output.logits, wanted)
    assert counter.frame_count == 2  # of a prompt, and of one token
    with pytest.raises(RuntimeError, match=AFTER):
        read(model, IDS[:, 12:13], cache)

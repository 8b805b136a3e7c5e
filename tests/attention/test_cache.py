"""Key-value caches: prefill equals decoding for every strategy, whatever the cache holds."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import ropex
from tests.support.cases import ALL, BY_LENGTH, FAMILIES, MAPPED, QUERY, STATIC
from tests.support.models import TRAINED, logits, tiny_model, tokens
from tests.support.rounding import assert_alike

IDS = tokens()


Policy = Literal["rotated", "unrotated"]


@torch.no_grad()
def continued(model: Any, ids: Tensor, *steps: int) -> Tensor:
    """Logits of `ids` fed in pieces through one cache."""
    outputs, cache = [], None
    for piece in torch.split(ids, [*steps, ids.shape[1] - sum(steps)], dim=1):
        result = model(piece, past_key_values=cache, use_cache=True)
        outputs.append(result.logits)
        cache = result.past_key_values
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("policy", ["rotated", "unrotated"])
@pytest.mark.parametrize("text", ["none", *ALL])
def test_one_more_token_is_the_same_at_once_or_through_the_cache(text: str, policy: Policy) -> None:
    model, ids = tiny_model("llama").double(), IDS[:, : TRAINED + 1]
    if text in MAPPED and policy == "unrotated":
        with pytest.raises(ropex.UnsupportedModel, match="mapped positions with un-rotated keys"):
            ropex.patch(model, text, cache=policy)
        return
    with ropex.patch(model, text, cache=policy):
        if text in (*BY_LENGTH, "dynamic:2+logn", "dynamic_qwen") and policy == "rotated":
            with pytest.raises(RuntimeError, match='patch with cache="unrotated"'):
                continued(model, ids, TRAINED)
            return
        at_once = logits(model, ids)[:, -1]
        one_more = continued(model, ids, TRAINED)[:, -1]
    assert_alike(one_more, at_once)


@pytest.mark.parametrize("text", ["none", *STATIC, *QUERY])
def test_unrotated_keys_change_no_logit(llama: Any, text: str) -> None:
    with ropex.patch(llama, text):
        wanted = logits(llama, IDS)
    with ropex.patch(llama, text, cache="unrotated") as patch:
        assert_alike(logits(llama, IDS), wanted)
        assert (patch.verify().logit_change > 1e-3) == (text != "none")


@pytest.mark.parametrize(
    ("family", "text"),
    [
        *(("llama", text) for text in (*BY_LENGTH, "dynamic_qwen")),
        *((family, "dynamic_yarn") for family in FAMILIES),
    ],
)
def test_each_token_is_read_at_the_length_the_sequence_has_there(family: str, text: str) -> None:
    """With one layer, that is the last token of every shorter sequence, read by itself."""
    model = tiny_model(family, num_hidden_layers=1)
    if family != "mixtral":  # whose router is in float32
        model.double()
    if family == "stablelm":
        with pytest.raises(ropex.UnsupportedModel, match="does not call transformers' attention"):
            ropex.patch(model, text, cache="unrotated")
        return
    places = [0, 7, TRAINED - 1, TRAINED, TRAINED + 1, 50, 99]
    with ropex.patch(model, text):
        wanted = torch.cat([logits(model, IDS[:, : n + 1])[:, -1:] for n in places], 1)
    with ropex.patch(model, text, cache="unrotated") as patch:
        assert_alike(logits(model, IDS)[:, places], wanted)
        assert patch.verify().logit_change > 1e-3


@pytest.mark.parametrize("text", [*BY_LENGTH, "dynamic_qwen"])
@pytest.mark.parametrize("steps", [[20, 1, 30], [40, 10], [1, 1, 90]])
def test_it_makes_no_difference_how_a_sequence_is_cut(text: str, steps: list[int]) -> None:
    model: Any = tiny_model("llama").double()
    with ropex.patch(model, text, cache="unrotated"):
        whole = logits(model, IDS)
        assert_alike(continued(model, IDS, *steps), whole)


def test_a_switched_cache_is_continued_beyond_the_trained_length(llama: Any) -> None:
    text = "longrope:factor=4,long_factor=1/1/1.5/2/2.5/3/4/4"
    with ropex.patch(llama, text):
        wanted = logits(llama, IDS)
        output = continued(llama, IDS, TRAINED + 1, 10)
        assert_alike(output, wanted)
        with pytest.raises(RuntimeError, match="cannot be continued beyond the trained length"):
            continued(llama, IDS, TRAINED)


def padded(*lengths: int) -> tuple[Tensor, Tensor]:
    """A left-padded batch of texts, and its attention mask."""
    longest = max(lengths)
    rows = [tokens(n, seed=n) for n in lengths]
    empty = [torch.zeros(1, longest - n, dtype=torch.long) for n in lengths]
    batch = torch.cat([torch.cat(pair, 1) for pair in zip(empty, rows, strict=True)])
    return batch, (batch > 0).long()


# What generates: greedily, by beams, with a cache of fixed size, in turns.
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("text", ["dynamic", "dynamic_yarn", "dynamic_qwen", "yarn:4+logn"])
def test_generation_is_right_in_batches_of_any_lengths(llama: Any, text: str, way: str) -> None:
    batch, mask = padded(40, 25, 6)
    settings: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False, "min_new_tokens": 20}
    with ropex.patch(llama, text, cache="unrotated"):
        together = llama.generate(batch, attention_mask=mask, **settings, **WAYS[way])
        options = {**settings, "use_cache": False, "num_beams": WAYS[way].get("num_beams", 1)}
        for row, length in enumerate((40, 25, 6)):
            alone = llama.generate(tokens(length, seed=length), **options)
            assert torch.equal(together[row, -20 - length :], alone[0])


@pytest.mark.parametrize("text", ["dynamic", "dynamic_linear"])
def test_a_conversation_goes_on_with_its_cache(llama: Any, text: str) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False, "min_new_tokens": 10}
    with ropex.patch(llama, text, cache="unrotated"):
        cache = DynamicCache()
        first = llama.generate(IDS[:, :25], past_key_values=cache, **settings)
        question = torch.cat([first, tokens(15, seed=7)], 1)
        second = llama.generate(question, past_key_values=cache, **settings)
        assert torch.equal(llama.generate(question, use_cache=False, **settings), second)


@pytest.mark.parametrize("text", ["none", "yarn:4", "yarn:4+logn"])
def test_without_positions_they_are_counted_as_transformers_does(llama: Any, text: str) -> None:
    batch, mask = padded(40, 25)
    mask[0, 5] = 0  # a hole
    with ropex.patch(llama, text):
        wanted = logits(llama, batch, attention_mask=mask)
    with ropex.patch(llama, text, cache="unrotated"):
        output = logits(llama, batch, attention_mask=mask)
        cache = llama(batch[:, :30], attention_mask=mask[:, :30]).past_key_values
        rest = llama(batch[:, 30:], attention_mask=mask, past_key_values=cache).logits
    seen = mask.bool()
    assert_alike(output[seen], wanted[seen])
    assert_alike(rest, output[:, 30:])


def test_arguments_by_place_are_read_as_well(llama: Any) -> None:
    positions = torch.arange(100)[None] // 2
    with ropex.patch(llama, "dynamic", cache="unrotated"), torch.no_grad():
        wanted = llama.model(IDS, position_ids=positions).last_hidden_state
        output = llama.model(IDS, None, positions).last_hidden_state
        assert_alike(output, wanted)
    with ropex.patch(llama, "dynamic"):
        cache = llama.model(IDS[:, :4], use_cache=True).past_key_values
        with pytest.raises(RuntimeError, match="cannot be continued"):
            llama.model(IDS[:, :1], None, torch.tensor([[60]]), cache)


def test_a_cache_remembers_the_length_that_its_keys_are_rotated_for(llama: Any) -> None:
    before = llama(IDS[:, :10], use_cache=True).past_key_values
    refused = pytest.raises(RuntimeError, match="its keys are rotated differently; start again")
    with ropex.patch(llama, "dynamic", cache="unrotated"):
        unrotated = llama(IDS[:, :10], use_cache=True).past_key_values
        with refused:
            llama(IDS[:, 10:11], past_key_values=before)
    ropex.patch(llama, "dynamic")
    for cache in (before, unrotated):
        with refused:
            llama(IDS[:, 10:11], past_key_values=cache)
    cropped = llama(IDS[:, :60], use_cache=True).past_key_values
    cropped.crop(-50)
    with pytest.raises(RuntimeError, match="cannot be continued beyond the trained length"):
        llama(IDS[:, 10:11], past_key_values=cropped)


def test_an_attention_set_afterwards_is_refused(llama: Any) -> None:
    with ropex.patch(llama, "dynamic", cache="unrotated"):
        llama.set_attn_implementation("eager")
        with pytest.raises(RuntimeError, match="set to eager after patching"):
            logits(llama, IDS)


def test_what_is_read_token_by_token_is_not_saved(llama: Any, tmp_path: Path) -> None:
    with (
        ropex.patch(llama, "dynamic", cache="unrotated"),
        pytest.raises(ValueError, match="cannot be written into a config"),
    ):
        llama.save_pretrained(tmp_path)


def test_scaled_queries_cannot_be_rotated_by_a_later_patch(llama: Any) -> None:
    with (
        ropex.patch(llama, "logn"),
        pytest.raises(ValueError, match="patched with logn, and yarn:4 cannot start from that"),
    ):
        ropex.patch(llama, "yarn:4", cache="unrotated")


def test_an_attention_that_is_told_nothing_is_refused(llama: Any) -> None:
    def forget(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {name: value for name, value in kwargs.items() if name != "ropex_turns"}

    llama.model.layers[0].self_attn.register_forward_pre_hook(forget, with_kwargs=True)
    before = logits(llama, IDS)
    with pytest.raises(ropex.UnsupportedModel, match="does not hand keyword arguments on"):
        ropex.patch(llama, "dynamic", cache="unrotated")
    assert torch.equal(logits(llama, IDS), before)


def test_heads_that_turn_elsewhere_are_refused(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = logits(llama, IDS)
    file = sys.modules[type(llama.model).__module__]
    apply = vars(file)["apply_rotary_pos_emb"]

    def last_half(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **_: Any) -> Any:
        turned = apply(q, k, cos, sin)
        return tuple(t if t.shape[1] == 0 else t.flip(-1) for t in turned)

    monkeypatch.setitem(vars(file), "apply_rotary_pos_emb", last_half)
    with pytest.raises(ropex.UnsupportedModel, match="llama rotates a part of its heads"):
        ropex.patch(llama, "dynamic", cache="unrotated")
    monkeypatch.undo()
    assert torch.equal(logits(llama, IDS), before)


@pytest.mark.parametrize(("text", "one_graph"), [("yarn:4", True), ("dynamic_yarn", False)])
def test_unrotated_keys_compile(text: str, one_graph: bool) -> None:
    torch._dynamo.reset()
    llama = tiny_model("llama", num_hidden_layers=1).double()
    with ropex.patch(llama, text, cache="unrotated"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, while it traces
        ids = IDS[:, : TRAINED + 2]
        wanted = logits(llama, ids)
        compiled: Any = torch.compile(llama, backend="eager", fullgraph=one_graph)
        assert_alike(logits(compiled, ids), wanted)


def test_a_fixed_cache_remembers_positions_that_no_mask_tells(llama: Any) -> None:
    ids = IDS[:, :20]
    with ropex.patch(llama, "dynamic", cache="unrotated"):
        wanted = logits(llama, ids, position_ids=torch.arange(5, 25)[None])
        first = llama(ids[:, :12], position_ids=torch.arange(5, 17)[None], use_cache=True)
        cache = first.past_key_values
        rest = llama(
            ids[:, 12:], position_ids=torch.arange(17, 25)[None], past_key_values=cache
        ).logits
        assert_alike(rest, wanted[:, 12:])
        cache.ropex_positions = cache.ropex_positions.expand(3, -1)
        with pytest.raises(RuntimeError, match="filled with 3 rows and is continued with 2"):
            llama(ids[:, :1].expand(2, 1), past_key_values=cache)


def test_options_are_checked(llama: Any) -> None:
    with pytest.raises(ValueError, match="cache is 'none', it must be 'rotated' or 'unrotated'"):
        ropex.patch(llama, "dynamic", cache="none")  # type: ignore[arg-type]

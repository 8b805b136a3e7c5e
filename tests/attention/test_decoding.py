"""Prefill equals decoding; queries are scaled under each attention."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import ropex
from ropex.families import tiny as families
from tests.support.cases import BY_LENGTH, QUERY, STATIC
from tests.support.models import LONG, TRAINED, logits, tiny_model, tokens
from tests.support.rounding import assert_alike

IDS = tokens()


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
        assert_alike(in_steps(llama, ids, steps), logits(llama, ids))


@pytest.mark.parametrize("text", ["yarn:4", "yarn:4+logn", *BY_LENGTH])
def test_left_padding_changes_nothing(llama: Any, text: str) -> None:
    long, short = tokens(60, seed=1), tokens(45, seed=2)
    batch = torch.cat([long, torch.cat([torch.zeros(1, 15, dtype=torch.long), short], 1)])
    mask = torch.ones_like(batch)
    mask[1, :15] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with ropex.patch(llama, text):
        both = logits(llama, batch, attention_mask=mask, position_ids=positions)
        assert_alike(both[:1], logits(llama, long))
        assert_alike(both[1:, 15:], logits(llama, short))


@pytest.mark.parametrize("text", BY_LENGTH)
def test_dynamic_does_not_depend_on_what_the_model_saw_before(llama: Any, text: str) -> None:
    lengths = (LONG, TRAINED, TRAINED + 1, 60, LONG, 8)
    with ropex.patch(llama, text):
        seen = [logits(llama, IDS[:, :n]) for n in lengths]
    for length, output in zip(lengths, seen, strict=True):
        with ropex.patch(tiny_model("llama").double(), text) as fresh:
            assert torch.equal(logits(fresh.model, IDS[:, :length]), output)


@pytest.mark.parametrize("text", [*BY_LENGTH, "dynamic:4+logn"])
def test_dynamic_refuses_a_cache_that_it_cannot_continue(llama: Any, text: str) -> None:
    with ropex.patch(llama, text):
        within = in_steps(llama, IDS[:, :TRAINED], [20, *[1] * 12])
        assert_alike(within, logits(llama, IDS[:, :TRAINED]))
        with pytest.raises(RuntimeError, match=r"fix the length .dynamic:length=32k. or pass"):
            in_steps(llama, IDS[:, : TRAINED + 1], [20, 13])
        with pytest.raises(RuntimeError, match="use_cache=False"):
            llama.generate(IDS[:, :20], max_new_tokens=20, do_sample=False)
        llama.generate(IDS[:, :20], max_new_tokens=20, do_sample=False, use_cache=False)


@pytest.mark.parametrize("text", BY_LENGTH)
def test_dynamic_counts_positions_and_not_padding(llama: Any, text: str) -> None:
    ids = torch.cat([torch.zeros(1, 20, dtype=torch.long), IDS[:, :30]], 1)
    mask = (torch.arange(50) >= 20).long()[None]
    with ropex.patch(llama, text):
        output = in_steps(llama, ids, [40, *[1] * 10], mask)[:, 20:]
        assert_alike(output, logits(llama, IDS[:, :30]))
        cache = llama(IDS[:, :4], use_cache=True).past_key_values
        with pytest.raises(RuntimeError, match="cannot be continued"):  # few tokens, far apart
            llama(IDS[:, 4:5], past_key_values=cache, position_ids=torch.tensor([[TRAINED]]))


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
    model = tiny_model("llama")  # the scale is in float32
    model.set_attn_implementation(attention)
    reference = tiny_model("llama")
    scale = (torch.arange(1, LONG + 1).float().log() / math.log(32)).clamp(min=1)
    for layer in reference.model.layers:  # a linear map commutes with rotation
        layer.self_attn.q_proj.register_forward_hook(lambda _m, _i, out: out * scale[None, :, None])
    with ropex.patch(model, "logn"):
        assert_alike(logits(model, IDS), logits(reference, IDS))


def test_keys_that_modules_keep_are_not_continued_either() -> None:
    """Recurrent Gemma has no cache object in transformers 4, and returns none in 5."""
    model = families.tiny_model("recurrent_gemma")
    settings: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    wanted = model.generate(IDS[:, : TRAINED - 6], **settings)
    with ropex.patch(model, "dynamic", trained_length=TRAINED):
        assert torch.equal(model.generate(IDS[:, : TRAINED - 6], **settings), wanted)
        for prompt in (TRAINED - 5, TRAINED + 8):
            with pytest.raises(RuntimeError, match="cannot be continued beyond the trained length"):
                model.generate(
                    IDS[:, :prompt], **{**settings, "max_new_tokens": 8, "min_new_tokens": 8}
                )
            model.generate(IDS[:, :prompt], **settings, use_cache=False)

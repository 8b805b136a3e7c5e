"""A strategy that depends on the length, held at one: what a live patch does for such a text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import ropex
from ropex.strategies.frozen import Frozen
from tests.support.cases import ALL, BY_LENGTH
from tests.support.models import LONG, TRAINED, logits, tiny_model, tokens
from tests.support.remote_code import DOUBLES
from tests.support.rounding import assert_alike

_LISTS = "long_factor=1/1/1.5/2/2.5/3/4/4,short_factor=1/1/1/1/1.2/1.2/1.5/2"
HELD = (*BY_LENGTH, f"longrope:factor=4,{_LISTS}", "linear:1.5+dynamic:2", "dynamic:2+logn",
        "dynamic_qwen")  # fmt: skip
MODELS = ("llama", "qwen3", "phi3")
REMOTE = ("internlm", "baichuan2", "internlm2", "qwen")  # they keep their tables in other ways


@contextmanager
def seen(model: Any) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The cosines and sines that rotary modules give in the block."""
    found: list[tuple[Tensor, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda _, __, output: found.append(output))
        for name, module in model.named_modules()
        if name.endswith("rotary_emb")
    ]
    assert hooks
    yield found
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("at", [24, 33, LONG])
@pytest.mark.parametrize("text", HELD)
@pytest.mark.parametrize("family", MODELS)
def test_tables_are_those_of_a_live_patch_to_the_bit(family: str, text: str, at: int) -> None:
    model, ids = tiny_model(family), tokens(at)
    with ropex.patch(model, text), seen(model) as live:
        wanted = logits(model, ids)
    with ropex.patch(model, Frozen(ropex.strategy(text), at)), seen(model) as held:
        found = logits(model, ids)
    assert len(held) == len(live) > 0
    for ours, theirs in zip(held, live, strict=True):
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.filterwarnings("ignore:the checkpoint is scaled already")
@pytest.mark.parametrize("text", ["dynamic", "dynamic:4", "ntk:2+dynamic_yarn"])
@pytest.mark.parametrize("name", ["gptj", *REMOTE])
def test_models_with_tables_of_their_own_are_held_too(name: str, text: str) -> None:
    model: Any = DOUBLES[name]() if name in REMOTE else tiny_model("gptj", rotary_dim=8)
    ids = tokens(2 * TRAINED)
    with ropex.patch(model, text):
        wanted = logits(model, ids)
    with ropex.patch(model, Frozen(ropex.strategy(text), 2 * TRAINED)):
        found = logits(model, ids)
    assert torch.equal(found, wanted)
    with ropex.patch(model, Frozen(ropex.strategy(text), TRAINED)):
        assert (logits(model, ids) - wanted).abs().max() > 0.01


@pytest.mark.parametrize("text", HELD)
def test_texts_of_any_length_have_the_plan_of_one(text: str) -> None:
    model = tiny_model()
    rope, strategy = ropex.rope_of(model), ropex.strategy(text)
    held = Frozen(strategy, LONG)
    assert (held.length_class, strategy.length_class != "static") == ("static", True)
    wanted = strategy.plan(rope, LONG)
    for length in (None, 2, TRAINED, TRAINED + 1, LONG, 10 * LONG):
        plan = held.plan(rope, length)
        assert torch.equal(plan.inv_freq, wanted.inv_freq)
        assert plan.attention_scale == wanted.attention_scale
        assert plan.query_scale == wanted.query_scale
    assert not torch.equal(held.plan(rope).inv_freq, strategy.plan(rope, TRAINED).inv_freq)


@pytest.mark.parametrize("text", HELD)
def test_reading_in_pieces_or_less_gives_what_reading_at_once_gave(text: str) -> None:
    model, ids = tiny_model().double(), tokens(LONG)
    with ropex.patch(model, text):
        wanted = logits(model, ids)
    with ropex.patch(model, Frozen(ropex.strategy(text), LONG)), torch.no_grad():
        half = model(ids[:, :40], use_cache=True)
        rest = model(ids[:, 40:], past_key_values=half.past_key_values, use_cache=True)
        short = logits(model, ids[:, :20])
    assert_alike(half.logits, wanted[:, :40])
    assert_alike(rest.logits, wanted[:, 40:])
    assert_alike(short, wanted[:, :20])


@pytest.mark.parametrize("text", ALL)
def test_name_and_reach_are_those_of_the_strategy(text: str) -> None:
    strategy, rope = ropex.strategy(text), ropex.rope_of(tiny_model())
    held = Frozen(strategy, LONG)
    assert str(held) == str(strategy)
    assert ropex.strategy(str(held)) == strategy
    assert held.target_length(rope) == strategy.target_length(rope)
    static = strategy.length_class == "static"
    assert held.native(rope) == (strategy.native(rope) if static else None)


def test_model_is_what_it_was_once_it_is_held_no_more() -> None:
    model, ids = tiny_model(), tokens(LONG)
    before = logits(model, ids)
    with ropex.patch(model, Frozen(ropex.strategy("dynamic"), LONG)) as patch:
        assert patch.verify().logit_change > 0.01
        assert str(patch.strategy) == "dynamic"
    assert torch.equal(logits(model, ids), before)


def test_equal_when_strategy_and_length_are() -> None:
    dynamic, yarn = ropex.strategy("dynamic"), ropex.strategy("dynamic_yarn")
    assert Frozen(dynamic, 9) == Frozen(dynamic, 9)
    assert len({Frozen(dynamic, 9), Frozen(dynamic, 8), Frozen(yarn, 9)}) == 3

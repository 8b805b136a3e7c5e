"""Checkpoints that switch between two `longrope` lists of their own (Phi-3-128k, MiniCPM3)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import ropex
from ropex.config.notations import version_5
from ropex.families.tiny import tiny_model as tiny_family
from ropex.strategies.frozen import Frozen
from ropex.train import RopeGuard
from ropex_eval.measure.losses import Scorer
from ropex_eval.scores.results import Results
from tests.support.models import logits, plain, tiny_causal, tiny_model, tiny_tokenizer, tokens
from tests.support.rounding import LOSS, assert_alike
from tests.support.shell import Shell
from tests.support.tiny_eval import plain_nll, words

SWITCH, TRAINED, PAIRS = 32, 128, 8
SHORT = [1.0] * 7 + [1.25]
LONG = [1.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 4.0]
SCALE = (1 + 2 / 5) ** 0.5  # sqrt(1 + ln(128 / 32) / ln(32)), both powers of two
IDS = tokens()
pytestmark = pytest.mark.filterwarnings("ignore:the checkpoint is scaled already")


def lists(short: list[float] = SHORT, long: list[float] = LONG, **more: Any) -> dict[str, Any]:
    return {
        "max_position_embeddings": TRAINED,
        "original_max_position_embeddings": SWITCH,
        "rope_scaling": {"type": "longrope", "short_factor": short, "long_factor": long, **more},
    }


def unscaled(base: float = 1e4) -> torch.Tensor:
    return torch.tensor([base ** (-i / PAIRS) for i in range(PAIRS)], dtype=torch.float64)


@pytest.fixture
def phi() -> Any:
    return tiny_family("phi3", **lists(), rope_parameters=None, pad_token_id=0)


@pytest.fixture
def llama() -> Any:
    return tiny_model("llama", **lists(rope_type="longrope"))


def both(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits below the switch and above it."""
    return logits(model, IDS[:, :20]), logits(model, IDS)


def test_it_was_trained_at_the_longer_length_and_starts_from_the_list_there(llama: Any) -> None:
    rope = ropex.rope_of(llama)
    assert (rope.trained_length, rope.by_length) == (TRAINED, True)
    assert rope.attention_scale == pytest.approx(SCALE, rel=1e-12)
    torch.testing.assert_close(rope.inv_freq, unscaled() / torch.tensor(LONG), rtol=1e-6, atol=0)
    assert rope.lists is not None
    assert rope.lists.length == SWITCH
    short = unscaled() / torch.tensor(SHORT)
    torch.testing.assert_close(rope.lists.short.inv_freq, short, rtol=1e-6, atol=0)


def test_what_it_saw_last_makes_no_difference(llama: Any) -> None:
    ropes = []
    for seen in (20, 100):
        logits(llama, IDS[:, :seen])
        ropes.append(ropex.rope_of(llama).inv_freq)
    assert torch.equal(*ropes)


def test_a_trained_length_that_is_given_decides_on_the_list(llama: Any) -> None:
    rope = ropex.rope_of(llama, SWITCH)
    torch.testing.assert_close(rope.inv_freq, unscaled() / torch.tensor(SHORT), rtol=1e-6, atol=0)


def test_a_factor_counts_where_the_config_keeps_the_length_before_scaling() -> None:
    if not version_5():
        pytest.skip("transformers 4 reads no factor beside two lists")
    entry = lists(rope_type="longrope", factor=4.0, original_max_position_embeddings=SWITCH)
    model = tiny_model("llama", max_position_embeddings=SWITCH, rope_scaling=entry["rope_scaling"])
    assert ropex.rope_of(model).trained_length == TRAINED


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_none_keeps_the_switch_to_the_last_bit(family: str, llama: Any, phi: Any) -> None:
    model = llama if family == "llama" else phi
    plain = both(model)
    with ropex.patch(model, "none") as patch:
        assert patch.verify().logit_change == 0
        assert all(map(torch.equal, both(model), plain))
    with ropex.patch(model, "none", precision="exact"):
        for exact, wanted in zip(both(model), plain, strict=True):
            assert_alike(exact, wanted)
    assert all(map(torch.equal, both(model), plain))


@pytest.mark.parametrize("text", ["dynamic", "dynamic_yarn", "logn", "dynamic+logn"])
def test_what_changes_nothing_within_the_trained_length_keeps_the_switch(
    llama: Any, text: str
) -> None:
    plain = both(llama)
    with ropex.patch(llama, text) as patch:
        patch.verify()
        assert all(map(torch.equal, both(llama), plain))


def test_a_temperature_applies_to_both_lists(llama: Any) -> None:
    def of(list_: list[float]) -> Any:
        entry = lists(list_, list_, rope_type="longrope")
        return tiny_model("llama", **entry).double()

    lengths = (20, 100)
    wanted = []
    for list_, length in zip((SHORT, LONG), lengths, strict=True):
        with ropex.patch(of(list_), "temperature:1.1") as patch:
            wanted.append(logits(patch.model, IDS[:, :length]))
    with ropex.patch(llama.double(), "temperature:1.1") as patch:
        patch.verify()
        found = [logits(llama, IDS[:, :length]) for length in lengths]
    for ours, theirs in zip(found, wanted, strict=True):
        assert_alike(ours, theirs, dtype=torch.float32)  # of cos and sin


@pytest.mark.filterwarnings("error:the checkpoint is scaled already")
def test_other_strategies_start_from_the_long_list_and_say_so(llama: Any) -> None:
    said = r"\(longrope\); linear:2 starts from its long list .* counted from 128 tokens"
    with pytest.warns(UserWarning, match=said):
        patch = ropex.patch(llama, "linear:2")
    with patch:
        patch.verify()
        assert (patch.target_length, patch.length_class) == (2 * TRAINED, "static")
        wanted = unscaled() / torch.tensor(LONG) / 2
        torch.testing.assert_close(patch.plan.inv_freq, wanted, rtol=1e-6, atol=0)
        for length in (20, 100):
            logits(llama, IDS[:, :length])
            live = llama.model.rotary_emb.inv_freq.double()
            torch.testing.assert_close(live, wanted, rtol=1e-6, atol=0)


@torch.no_grad()
def test_keys_of_one_list_are_not_continued_with_those_of_the_other(llama: Any) -> None:
    with ropex.patch(llama.double(), "none"):
        cache = llama(IDS[:, :30], use_cache=True).past_key_values
        cache = llama(IDS[:, 30:32], past_key_values=cache, use_cache=True).past_key_values
        with pytest.raises(RuntimeError, match="rotated for a shorter sequence"):
            llama(IDS[:, 32:33], past_key_values=cache)
        cache = llama(IDS[:, :40], use_cache=True).past_key_values
        ahead = llama(IDS[:, 40:50], past_key_values=cache).logits[:, -1]
        assert_alike(ahead, logits(llama, IDS[:, :50])[:, -1])


@torch.no_grad()
def test_unrotated_keys_go_over_the_switch() -> None:
    model = tiny_model("llama", num_hidden_layers=1, **lists(rope_type="longrope")).double()
    wanted = torch.cat([logits(model, IDS[:, : n + 1])[:, -1:] for n in (20, 31, 32, 60)], 1)
    with ropex.patch(model, "none", cache="unrotated"):
        cache = model(IDS[:, :25], use_cache=True).past_key_values
        rest = model(IDS[:, 25:], past_key_values=cache).logits
        found = torch.cat([logits(model, IDS[:, :21])[:, -1:], rest[:, [6, 7, 35]]], 1)
    assert_alike(found, wanted)


def test_generation_over_the_switch_is_the_models_own(phi: Any) -> None:
    """Phi-3 drops its cache there."""
    settings = {"max_new_tokens": 6, "do_sample": False}
    wanted = phi.generate(IDS[:, :30], **settings)
    with ropex.patch(phi, "none"):
        assert torch.equal(phi.generate(IDS[:, :30], **settings), wanted)


def test_factors_beside_the_lists_are_those_of_the_length() -> None:
    """PhiMoE reads them from its config, and under transformers 5 no list but the short one."""
    entry = lists(short_mscale=1.2, long_mscale=1.3, original_max_position_embeddings=SWITCH)
    del entry["original_max_position_embeddings"]
    model = tiny_family("phimoe", **entry, rope_parameters=None)
    rope, plain = ropex.rope_of(model), both(model)
    assert rope.lists is not None
    assert (rope.lists.short.attention_scale, rope.lists.long.attention_scale) == (1.2, 1.3)
    longer = unscaled(1e6) / torch.tensor(SHORT if version_5() else LONG)
    torch.testing.assert_close(rope.lists.long.inv_freq, longer, rtol=1e-6, atol=0)
    for text in ("none", "dynamic"):
        with ropex.patch(model, text):
            assert all(map(torch.equal, both(model), plain))
    with ropex.patch(model, "temperature:1.1") as patch:
        patch.verify()
    assert all(map(torch.equal, both(model), plain))


# The command line.


def small_lists() -> dict[str, Any]:
    short, long = [1.0, 1.0, 1.0, 1.25], [1.0, 1.5, 3.0, 4.0]
    lengths = {"max_position_embeddings": 48, "original_max_position_embeddings": 16}
    return {**lists(short, long, rope_type="longrope"), **lengths}


@pytest.fixture
def switching(world: Shell) -> Shell:
    """A working directory with a checkpoint that switches at 16 tokens, trained at 48."""
    tiny_causal(**small_lists()).save_pretrained("lists")
    tiny_tokenizer().save_pretrained("lists")
    return world


def check_measured(model: Any, lengths: tuple[int, ...]) -> None:
    """Perplexity of `none` in `out` against passes of the model, one of each length."""
    results = Results.load(Path("out"))
    ids = tiny_tokenizer()(words(200), add_special_tokens=False)["input_ids"]
    for length in lengths:
        starts = (0, lengths[-1] - 1)
        windows = [torch.tensor([0, *ids[start : start + length - 1]]) for start in starts]
        wanted = torch.cat([plain_nll(model, window) for window in windows]).mean().exp()
        found = results.of("prefix")["none"][length].perplexity
        assert found == pytest.approx(float(wanted), rel=1e-5)


EVAL = ("--lengths", "8,16,24,64", "--definitions", "prefix")


def test_eval_reads_each_length_with_the_list_that_it_has(switching: Shell) -> None:
    status, _, err = switching.eval("-s", "none", "-s", "yarn:2", *EVAL, model="lists")
    assert status == 0, err
    assert "trained at 48 tokens" in err
    strategies = json.loads(Path("out/results.json").read_text())["strategies"]
    assert [strategies[text]["length_class"] for text in ("none", "yarn:2")] == ["two", "static"]
    check_measured(tiny_causal(**small_lists()), (8, 16, 24, 64))


@pytest.mark.parametrize("at", [12, 60])
def test_what_eval_holds_reads_pieces_as_the_model_reads_the_whole(at: int) -> None:
    model, ids = tiny_causal(**small_lists()).double(), torch.arange(3, 3 + at)[None]
    goals, plain = ids.roll(-1, 1), plain_nll(model, ids[0])
    with ropex.patch(model, Frozen(ropex.strategy("none"), at)):
        scores = Scorer(model).nll(ids, goals, ((0, at - 1),), 7)
    torch.testing.assert_close(scores[0].double(), plain, rtol=0, atol=LOSS)


def test_what_patch_writes_is_read_again(world: Shell) -> None:
    text = "longrope:factor=2,long_factor=1/1.5/2/4"
    assert world("patch", "tiny", "-s", text, "-o", "lists")[0] == 0
    status, _, err = world.eval("-s", "none", *EVAL, model="lists")
    assert status == 0, err
    assert "trained at 64 tokens" in err
    with ropex.patch(tiny_causal(), text) as patch:
        check_measured(patch.model, (8, 16, 24, 64))


def test_patch_show_suggest_and_train_take_it(switching: Shell) -> None:
    assert switching("patch", "lists", "-s", "none", "-o", "same")[0] == 0
    copies = [plain(Path(name)) for name in ("lists", "same")]
    for length in (10, 40):
        ours, theirs = (logits(model, IDS[:, :length]) for model in copies)
        assert torch.equal(ours, theirs)
    status, out, _ = switching("show", "lists", "-s", "linear:2", "-s", "none", "--json")
    assert (status, json.loads(out)["trained_length"]) == (0, 48)
    status, out, _ = switching("suggest", "lists", "--length", "96")
    assert status == 0
    assert "the checkpoint is scaled already (longrope)" in out
    for text, says in (("logn", "scales each query"), ("dynamic", "goes by the length")):
        status, answer, _ = switching("export", "lists", "-s", text, "--for", "vllm")
        assert (status, says in answer) == (1, True), answer
    assert "beyond 16 tokens the checkpoint takes its other list" in " ".join(out.split())


@pytest.mark.parametrize("text", ["none", "dynamic", "linear:2"])
def test_the_guard_of_a_training_knows_both_lists(llama: Any, text: str) -> None:
    with ropex.patch(llama, text):
        RopeGuard(llama, text).check()
        logits(llama, IDS[:, :20])
        RopeGuard(llama).check()

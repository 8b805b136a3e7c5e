"""Models that come with code of their own: their doubles under patches, and what that code says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ropex
from ropex.model.sites.layouts import RowsBySize
from tests.support.models import TRAINED, logits, tokens
from tests.support.remote_code import DOUBLES
from tests.support.remote_rotary import BaichuanRotary
from tests.support.rounding import assert_alike, rounding

pytestmark = pytest.mark.filterwarnings("ignore:the checkpoint is scaled already")
IDS = tokens()
SHORT, LONG = IDS[:, :24], IDS[:, : 2 * TRAINED]
ROTARY = [name for name in DOUBLES if name != "baichuan_alibi"]
TOLD = [name for name in ROTARY if not name.startswith(("chatglm2", "chatglm3"))]
# Angles in float32 on one side, in float64 on the other.
FLOAT32: dict[str, Any] = {"rtol": 0, "atol": 5e-5}


def hooks(module: Any) -> tuple[Any, Any]:
    return module._forward_hooks, module._forward_pre_hooks


def state_of(model: Any, but: str = "") -> list[Any]:
    """What a patch may touch, without what the model itself keeps of its last call."""
    modules = [
        (name, vars(each).keys() - {but}, *map(len, (each._buffers, *hooks(each))))
        for name, each in model.named_modules()
    ]
    tables = [(name, table.tolist()) for name, table in model.named_buffers()]
    return [modules, tables, model.config.to_dict()]


def places(name: str, start: int, stop: int) -> Tensor:
    row = torch.arange(start, stop)[None]
    return torch.stack((row, row // 2), dim=1) if name == "chatglm" else row


def frequencies(name: str) -> Tensor:
    """By the formula, and what is in the config of each double."""
    width = 8 if "chatglm" in name else 16
    base = 5e5 if name == "chatglm3_32k" else 1e4
    divisor = {"internlm2_linear": 2, "chatglm2_32k": 4}.get(name, 1)
    return base ** -(torch.arange(0, width, 2).double() / width) / divisor


# The contract.


@pytest.mark.parametrize("name", ROTARY)
def test_none_moves_no_bit(name: str) -> None:
    model = DOUBLES[name]()
    plain, before = logits(model, SHORT), state_of(model)
    with ropex.patch(model, "none") as patch:
        assert torch.equal(logits(model, SHORT), plain)
        assert state_of(model, but="ropex_patches") == before
        assert patch.in_config
    assert state_of(model) == before


@pytest.mark.parametrize("text", ["linear:2", "theta:2000000", "yarn:4"])
@pytest.mark.parametrize("name", ROTARY)
def test_patched_moves_and_removed_is_bit_identical(name: str, text: str) -> None:
    model: Any = DOUBLES[name]()
    plain, before = logits(model, SHORT), state_of(model)
    patch = ropex.patch(model, text)
    assert (logits(model, SHORT) - plain).abs().max() > 0.1
    assert all(each.site.holds(each.plan, TRAINED) for each in patch.planned)
    assert not patch.in_config
    with pytest.raises(ValueError, match="cannot be written into a config"):
        model.save_pretrained("nowhere")
    patch.remove()
    assert torch.equal(logits(model, SHORT), plain)
    assert state_of(model) == before


@pytest.mark.parametrize("text", ["none", "linear:2", "dynamic:length=128"])
@pytest.mark.parametrize("name", ROTARY)
def test_verify_passes(name: str, text: str) -> None:
    with ropex.patch(DOUBLES[name](), text) as patch:
        assert (patch.verify().logit_change > 0.01) == (text != "none")


@pytest.mark.parametrize("name", ROTARY)
def test_position_1_turns_by_the_planned_angles(name: str) -> None:
    rounding = 1e-3 if name == "chatglm" else 1e-6  # its frequencies are half precision
    wanted = frequencies(name) / 2
    with ropex.patch(DOUBLES[name](), "linear:2") as patch:
        for site in patch.sites:
            live = site.live(2 * TRAINED).double()
            torch.testing.assert_close(live, wanted, rtol=rounding, atol=1e-9)


@pytest.mark.parametrize("name", ROTARY)
def test_a_patched_model_reads_beyond_its_trained_length(name: str) -> None:
    model = DOUBLES[name]()
    with ropex.patch(model, "linear:4"):
        longer = logits(model, LONG)
        assert torch.isfinite(longer).all()
        torch.testing.assert_close(longer[:, :24], logits(model, SHORT), rtol=0, atol=2e-2)


@pytest.mark.parametrize("name", ROTARY)
def test_a_second_patch_starts_from_the_first(name: str) -> None:
    model = DOUBLES[name]()
    with ropex.patch(model, "linear:2+ntk:2"):
        wanted = logits(model, SHORT)
    with ropex.patch(model, "linear:2"), ropex.patch(model, "ntk:2"):
        assert_alike(logits(model, SHORT), wanted)


def test_a_second_patch_reaches_as_far_as_both() -> None:
    model = DOUBLES["chatglm2"]()
    with ropex.patch(model, "linear:2"), ropex.patch(model, "ntk:2"):
        logits(model, IDS)


# What the models' own code computes.


@pytest.mark.parametrize(
    ("name", "text", "own", "length"),
    [
        ("internlm2", "linear:2", "internlm2_linear", 24),
        ("internlm2", "dynamic:2", "internlm2_dynamic", 40),
        ("internlm", "dynamic", "internlm_dynamic", 40),  # its factor is 1
        ("chatglm2", "linear:4", "chatglm2_32k", 24),
        ("chatglm3", "theta:500000", "chatglm3_32k", 24),
    ],
)
def test_a_patch_is_what_a_sibling_does_by_itself(
    name: str, text: str, own: str, length: int
) -> None:
    model, sibling, ids = DOUBLES[name](), DOUBLES[own](), IDS[:, :length]
    weights = dict(model.named_parameters())
    assert not sibling.load_state_dict(weights, strict=False).unexpected_keys
    wanted = logits(sibling, ids)
    assert (logits(model, ids) - wanted).abs().max() > 0.1
    with ropex.patch(model, text):
        torch.testing.assert_close(logits(model, ids), wanted, **FLOAT32)


def other_base() -> Any:
    model: Any = DOUBLES["baichuan"]()
    for layer in model.model.layers:
        layer.self_attn.rotary_emb = BaichuanRotary(16, TRAINED, base=5e5)
    return model


def test_theta_is_what_a_module_with_that_base_does() -> None:
    model = DOUBLES["baichuan"]()
    with ropex.patch(model, "theta:500000"):
        torch.testing.assert_close(logits(model, SHORT), logits(other_base(), SHORT), **FLOAT32)


def test_a_base_that_only_the_tables_have_is_kept() -> None:
    model = other_base()
    plain = logits(model, SHORT)
    with ropex.patch(model, "none"):
        assert torch.equal(logits(model, SHORT), plain)


def qwen(ntk: bool = True, logn: bool = True) -> Any:
    model: Any = DOUBLES["qwen"]()
    model.config.use_dynamic_ntk = model.transformer.use_dynamic_ntk = ntk
    for block in model.transformer.h:
        block.attn.use_logn_attn = logn
    return model


@pytest.mark.parametrize("length", [40, 100])  # alpha is 3, then 7
def test_dynamic_qwen_is_the_dynamic_ntk_of_qwen(length: int) -> None:
    ids, without = IDS[:, :length], qwen(ntk=False)
    wanted = logits(qwen(), ids)
    assert (logits(without, ids) - wanted).abs().max() > 0.1
    for model in (without, qwen()):
        with ropex.patch(model, "dynamic_qwen:logn=false"):
            torch.testing.assert_close(logits(model, ids), wanted, **FLOAT32)


def under_linear(model: Any) -> Tensor:
    with ropex.patch(model, "linear:2"):
        return logits(model, LONG)


def test_the_own_ntk_of_qwen_is_never_applied_twice() -> None:
    assert torch.equal(under_linear(qwen()), under_linear(qwen(ntk=False)))


def test_the_own_logn_of_qwen_stays_on() -> None:
    on, off = under_linear(qwen()), under_linear(qwen(logn=False))
    assert torch.equal(on[:, :TRAINED], off[:, :TRAINED])
    assert (on - off).abs().max() > 0.1


# Caches.


@torch.no_grad()
def in_steps(model: Any, name: str, ids: Tensor, steps: list[int]) -> Tensor:
    outputs, cache, done = [], None, 0
    for step in steps:
        given = {"position_ids": places(name, done, done + step), "past_key_values": cache}
        result = model(ids[:, done : done + step], use_cache=True, **given)
        outputs.append(result.logits)
        cache, done = result.past_key_values, done + step
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("name", ROTARY)
@pytest.mark.parametrize(("text", "steps"), [("none", [20, 1, 3]), ("yarn:4", [28, 1, 1, 10, 8])])
def test_decoding_equals_prefill(name: str, text: str, steps: list[int]) -> None:
    model, ids = DOUBLES[name](), IDS[:, : sum(steps)]
    with ropex.patch(model, text):
        one = in_steps(model, name, ids, [sum(steps)])
        bound = 2e-2 if name == "chatglm" else rounding(one)  # its tables are half precision
        torch.testing.assert_close(in_steps(model, name, ids, steps), one, rtol=0, atol=bound)


@pytest.mark.parametrize("name", TOLD)
def test_a_strategy_by_length_refuses_a_cache_of_tuples(name: str) -> None:
    model = DOUBLES[name]()
    with ropex.patch(model, "dynamic"):
        in_steps(model, name, SHORT, [24])
        with pytest.raises(RuntimeError, match="use_cache=False"):
            in_steps(model, name, SHORT, [20, 4])


@pytest.mark.parametrize("name", TOLD)
def test_tuples_from_before_a_patch_are_refused(name: str) -> None:
    model, given = DOUBLES[name](), {"position_ids": places(name, 20, 21)}
    past = model(SHORT[:, :20], use_cache=True).past_key_values
    with ropex.patch(model, "yarn:4"):
        with pytest.raises(RuntimeError, match="was not filled under this patch"):
            model(SHORT[:, 20:21], past_key_values=past, **given)
        past = model(SHORT[:, :20], use_cache=True).past_key_values
    with (
        ropex.patch(model, "linear:2"),
        pytest.raises(RuntimeError, match="cache was filled under yarn:4"),
    ):
        model(SHORT[:, 20:21], past_key_values=past, **given)


def test_a_module_with_positions_reads_each_row_at_its_own_length() -> None:
    model, mask = DOUBLES["internlm2_5"](), torch.ones(2, 64, dtype=torch.long)
    mask[1, :24] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with ropex.patch(model, "dynamic"):
        both = logits(model, LONG.expand(2, -1), attention_mask=mask, position_ids=places)
        assert_alike(both[1:, 24:], logits(model, LONG[:, 24:]))


# What is refused, and leaves nothing behind.

UNTOLD = r"is not called with the length .* fix it \(dynamic:length=32k\)"


@pytest.mark.parametrize(
    ("name", "text", "cache", "reason"),
    [
        ("baichuan_alibi", "linear:2", "rotated", r"looked for .*inv_freq.* found none"),
        *((each, "dynamic", "rotated", UNTOLD) for each in ROTARY if each not in TOLD),
        *((each, "linear:2", "unrotated", "un-rotated") for each in ROTARY),
    ],
)
def test_what_is_refused_changes_nothing(name: str, text: str, cache: Any, reason: str) -> None:
    model = DOUBLES[name]()
    plain, before = logits(model, SHORT), state_of(model)
    with pytest.raises(ropex.UnsupportedModel, match=reason):
        ropex.patch(model, text, cache=cache)
    assert state_of(model) == before
    assert torch.equal(logits(model, SHORT), plain)


def test_a_failure_at_the_second_layer_restores_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    attached: list[Any] = []
    model, attach = DOUBLES["internlm"](), RowsBySize.attach

    def fail_at_second(self: Any, *rest: Any) -> None:
        assert not attached
        attach(self, *rest)
        attached.append(self)

    plain, before = logits(model, SHORT), state_of(model)
    monkeypatch.setattr(RowsBySize, "attach", fail_at_second)
    with pytest.raises(AssertionError):
        ropex.patch(model, "linear:2")
    assert attached
    assert state_of(model) == before
    assert torch.equal(logits(model, SHORT), plain)


# Training; checkpoints that are scaled already.


@pytest.mark.parametrize("name", ["internlm2_linear", "internlm2_dynamic"])
def test_a_scaled_checkpoint_says_so(name: str) -> None:
    with pytest.warns(UserWarning, match="scaled already"):
        ropex.patch(DOUBLES[name](), "ntk:2")


@pytest.mark.parametrize("trained", [False, True])
def test_training_before_and_under_a_patch_keeps_nothing_of_the_other(trained: bool) -> None:
    model = DOUBLES["baichuan"]().train()
    plain = logits(DOUBLES["baichuan"]().train(), SHORT)
    if trained:
        assert torch.equal(logits(model, SHORT), plain)
    with ropex.patch(model, "linear:2"):
        assert (logits(model, SHORT) - plain).abs().max() > 0.1
    assert torch.equal(logits(model, SHORT), plain)


def test_padded_rows_beyond_the_trained_length_are_refused() -> None:
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1, :20] = 0
    with (
        ropex.patch(qwen(), "dynamic_qwen:logn=false") as patch,
        pytest.raises(RuntimeError, match="padding"),
    ):
        logits(patch.model, IDS[:, :40].expand(2, -1), attention_mask=mask)

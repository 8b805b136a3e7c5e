"""Every strategy against numbers from outside: golden values, and transformers' own functions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import ALL, BY_LENGTH, STATIC, fitted

from ropex.registry import registry, strategy
from ropex.rope import Plan, Rope
from ropex.strategies.ntk import ntk_base
from ropex.strategies.yarn import Yarn, pair_of

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent / "golden" / "strategies.json").read_text(encoding="utf-8")
)
LLAMA_2 = Rope.standard(128, 1e4, 4096)
# Methods that stretch every pair by a factor between 1 and the stated one.
BOUNDED = ("linear", "ntk", "yarn", "mrrope", "llama3", "dynamic", "longrope")
GROWING = ("dynamic", "dynamic:4", "dynamic_linear", "dynamic_yarn", "dynamic_qwen")
ROPES = (LLAMA_2, Rope.standard(64, 1e4, 256), Rope.standard(80, 5e5, 8192))


@pytest.mark.parametrize("text", ["yarn:16", "ntk_by_parts:16", "linear:16", "none"])
def test_divisors_of_llama_2_are_the_golden_ones(text: str) -> None:
    golden = GOLDEN["divisors"]
    divisors = LLAMA_2.inv_freq / strategy(text).plan(LLAMA_2).inv_freq
    wanted = torch.tensor(golden[text], dtype=torch.float64)
    torch.testing.assert_close(divisors[golden["pairs"]], wanted, rtol=0, atol=5.1e-7)


@pytest.mark.parametrize("row", GOLDEN["correction_ranges"])
def test_yarn_ramp_runs_between_the_golden_pairs(row: dict[str, Any]) -> None:
    rope = Rope.standard(row["dim"], row["base"], row["trained_length"])
    exact = [pair_of(rope, turns, rope.trained_length) for turns in (32, 1)]
    assert exact == pytest.approx(row["exact"], abs=5.1e-5)
    assert list(Yarn(2).bounds(rope)) == row["rounded"]
    assert list(Yarn(2, truncate=False).bounds(rope)) == pytest.approx(row["exact"], abs=5.1e-5)


@pytest.mark.parametrize(("factor", "scale"), GOLDEN["yarn_attention_scale"].items())
def test_yarn_temperature_is_the_golden_one(factor: str, scale: float) -> None:
    plan = strategy(f"yarn:{factor}").plan(LLAMA_2)
    assert plan.attention_scale == pytest.approx(scale, abs=5.1e-11)


@pytest.mark.parametrize(("factor", "base"), GOLDEN["ntk_base"].items())
def test_ntk_is_the_golden_base(factor: str, base: float) -> None:
    assert ntk_base(LLAMA_2, float(factor)) == pytest.approx(base, abs=1e-4)  # four decimals
    plan = strategy(f"ntk:{factor}").plan(LLAMA_2)
    torch.testing.assert_close(
        plan.inv_freq, Rope.standard(128, base, 4096).inv_freq, rtol=5e-9, atol=0
    )


@pytest.mark.parametrize(("text", "base"), GOLDEN["dynamic_base_at_twice"].items())
def test_dynamic_at_twice_the_trained_length_is_the_golden_base(text: str, base: float) -> None:
    plan = strategy(text).plan(LLAMA_2, 2 * 4096)
    wanted = Rope.standard(128, base, 4096).inv_freq
    torch.testing.assert_close(plan.inv_freq, wanted, rtol=2e-6, atol=0)


def test_llama3_scales_the_golden_pairs() -> None:
    golden = GOLDEN["llama3"]
    rope = Rope.standard(**golden["rope"])
    inv_freq = strategy(golden["strategy"]).plan(rope).inv_freq
    for pair, value in golden["inv_freq"].items():
        assert float(inv_freq[int(pair)]) == pytest.approx(value, rel=2e-7)
    ratio = rope.inv_freq / inv_freq
    assert int((ratio > 1).nonzero()[0]) == golden["first_scaled"]
    assert int((ratio > 8 - 1e-9).nonzero()[0]) == golden["fully_scaled_from"]


def test_logn_scales_queries_by_position() -> None:
    golden = GOLDEN["logn"]
    scale = strategy("logn").plan(LLAMA_2).query_scale
    assert scale is not None
    positions = torch.tensor([int(key) for key in golden["scales"]])
    assert scale(positions).tolist() == pytest.approx(list(golden["scales"].values()), abs=1e-6)
    assert scale(positions).dtype == torch.float32


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("name", ["linear", "ntk", "ntk_by_parts", "yarn", "llama3"])
def test_factor_one_changes_nothing(name: str, rope: Rope) -> None:
    assert not strategy(f"{name}:1").plan(rope).changes(rope)


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("text", [t for t in (*STATIC, *BY_LENGTH) if t.startswith(BOUNDED)])
def test_frequencies_stay_between_the_trained_and_the_interpolated_ones(
    text: str, rope: Rope
) -> None:
    made = strategy(fitted(text, rope.dim // 2))
    target = max(made.target_length(rope), 2 * rope.trained_length)
    inv_freq = made.plan(rope, target).inv_freq
    most = 1e300 if "resonance" in text else max(made.scale(rope), 1.0)
    if made.length_class == "per_length":
        most *= getattr(made, "factor", 1) * 2 * target / rope.trained_length
    assert inv_freq.dtype == torch.float64
    assert (inv_freq <= rope.inv_freq * (1 + 1e-12)).all() or "resonance" in text
    assert (inv_freq >= rope.inv_freq / most * (1 - 1e-12)).all()
    assert (inv_freq.diff() < 0).all() or "clip" in text


@pytest.mark.parametrize("text", ALL)
def test_a_plan_leaves_the_rope_alone(text: str) -> None:
    before = LLAMA_2.inv_freq.clone()
    made = strategy(fitted(text, 64))
    first, second = made.plan(LLAMA_2, 9000), made.plan(LLAMA_2, 9000)
    assert torch.equal(LLAMA_2.inv_freq, before)
    assert torch.equal(first.inv_freq, second.inv_freq)


@pytest.mark.parametrize("text", ALL)
def test_a_length_in_a_tensor_is_the_same_as_a_number(text: str) -> None:
    made = strategy(fitted(text, 64))
    number, tensor = made.plan(LLAMA_2, 9000), made.plan(LLAMA_2, torch.tensor(9000))
    assert torch.equal(number.inv_freq, tensor.inv_freq)


@pytest.mark.parametrize("text", [*STATIC, "logn"])
def test_a_static_plan_is_the_same_at_every_length(text: str) -> None:
    made = strategy(fitted(text, 64))
    assert made.length_class == "static"
    short, long = made.plan(LLAMA_2, 10), made.plan(LLAMA_2, 10**6)
    assert torch.equal(short.inv_freq, long.inv_freq)
    assert short.attention_scale == long.attention_scale


@pytest.mark.parametrize("text", [*GROWING, "linear:2+dynamic"])
def test_dynamic_is_unscaled_up_to_the_trained_length_and_grows_beyond(text: str) -> None:
    made = strategy(fitted(text, 64))
    assert made.length_class == "per_length"
    tables = [made.plan(LLAMA_2, n).inv_freq[-1] for n in (1, 4096, 4097, 8193)]
    assert tables[0] == tables[1] > tables[2] > tables[3]


def test_a_fixed_dynamic_length_is_that_length_everywhere() -> None:
    fixed = strategy("dynamic:factor=4,length=16k")
    for length in (16, 16 * 1024, 64 * 1024):
        wanted = strategy("dynamic:4").plan(LLAMA_2, 16 * 1024).inv_freq
        assert torch.equal(fixed.plan(LLAMA_2, length).inv_freq, wanted)


def test_a_target_length_is_the_factor_it_implies() -> None:
    stated, implied = strategy("yarn:length=16k"), strategy("yarn:4")
    assert stated.target_length(LLAMA_2) == implied.target_length(LLAMA_2) == 16 * 1024
    assert torch.equal(stated.plan(LLAMA_2).inv_freq, implied.plan(LLAMA_2).inv_freq)


def test_a_target_below_the_trained_length_is_refused() -> None:
    with pytest.raises(ValueError, match="trained for 4k tokens already"):
        strategy("yarn:length=2k").plan(LLAMA_2)


def test_composition_applies_left_to_right() -> None:
    plan = strategy("linear:2+yarn:4+logn").plan(LLAMA_2)
    linear = Plan(LLAMA_2.inv_freq / 2)
    yarn = strategy("yarn:4").apply(linear, LLAMA_2, 4096)
    assert torch.equal(plan.inv_freq, yarn.inv_freq)
    assert plan.attention_scale == pytest.approx(0.1 * math.log(4) + 1)
    assert plan.query_scale is not None
    assert strategy("linear:2+yarn:4+logn").target_length(LLAMA_2) == 8 * 4096


def test_queries_are_scaled_once() -> None:
    with pytest.raises(ValueError, match="scaled already"):
        strategy("logn+logn").plan(LLAMA_2)


def test_every_strategy_of_the_registry_is_in_the_table_of_cases() -> None:
    used = {part.partition(":")[0] for text in ALL for part in text.split("+")}
    assert used == set(registry()) - {"none"}

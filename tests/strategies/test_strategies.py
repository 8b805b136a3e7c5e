"""Every strategy against the formulas of `reference.py`, and what plans have in common."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from ropex.rope import Plan, Rope
from ropex.strategies.registry import registry, strategy
from tests.support import reference as ref
from tests.support.cases import ALL, BY_LENGTH, STATIC, fitted
from tests.support.distances import DISTANCES
from tests.support.formulas import FORMULAS, GROWING, QUERIES, TEMPERATURES
from tests.support.reference import Shape

LLAMA_2 = Rope.standard(128, 1e4, 4096)
ROPES = (LLAMA_2, Rope.standard(64, 1e4, 256), Rope.standard(80, 5e5, 8192))
SHAPES = tuple(
    Shape((64, 80, 128)[place % 3], base, length)
    for place, (base, length) in enumerate(
        itertools.product((1e4, 5e5, 1e6), (256, 4096, 8192, 32768))
    )
)
# Texts whose frequencies may rise above the trained ones, stop, or fall below the interpolated
# ones, so that the factor bounds nothing.
UNBOUNDED = frozenset({
    "theta:500000", "theta:base=500000,length=128", "theta_scale:4", "proportional",
    "proportional:0.5", "clip:4", "clip:pairs=4,hard=true", "ntk:2+clip:3", "giraffe_power:0.1",
    "giraffe_truncated:40", "drope", "drope:length=128", "drope+temperature:1.07", "resonance",
    "linear:2+resonance:10",
})  # fmt: skip
BOUNDED = tuple(text for text in (*STATIC, *BY_LENGTH) if text not in UNBOUNDED)


def same(made: Any, wanted: Any) -> None:
    torch.testing.assert_close(
        torch.as_tensor(made), torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("factor", [1.7, 4, 16, 40])
@pytest.mark.parametrize("text", FORMULAS)
def test_frequencies_are_those_of_the_formula(text: str, factor: float) -> None:
    for shape in SHAPES:
        plan = strategy(text.format(factor)).plan(Rope.standard(*shape))
        same(plan.inv_freq, FORMULAS[text](shape, factor))
        if text not in TEMPERATURES:
            assert plan.attention_scale == 1


def test_a_pair_on_the_step_of_a_band_keeps_its_frequency() -> None:
    turns = LLAMA_2.trained_length / (2 * math.pi)  # of the first pair
    plan = strategy(f"llama3:4,alpha={turns!r},beta={turns!r}").plan(LLAMA_2)
    same(plan.inv_freq, [1.0, *(LLAMA_2.inv_freq[1:] / 4).tolist()])


@pytest.mark.parametrize("factor", [1.7, 4, 16, 40])
@pytest.mark.parametrize("text", TEMPERATURES)
def test_temperatures_are_those_of_the_formula(text: str, factor: float) -> None:
    plan = strategy(text.format(factor)).plan(LLAMA_2)
    assert plan.attention_scale == pytest.approx(TEMPERATURES[text](factor), rel=1e-15)


@pytest.mark.parametrize("text", GROWING)
def test_growing_frequencies_are_those_of_the_formula(text: str) -> None:
    for shape in SHAPES:
        trained = shape.length
        for length in (1, trained, trained + 1, 2 * trained, 2 * trained + 1, 5 * trained + 3):
            plan = strategy(text).plan(Rope.standard(*shape), length)
            same(plan.inv_freq, GROWING[text](shape, length))
            by_length = text == "dynamic_yarn"
            wanted = ref.dynamic_yarn_temperature(shape, length) if by_length else 1
            assert plan.attention_scale == pytest.approx(wanted, rel=1e-15)


@pytest.mark.parametrize("text", GROWING)
def test_a_fixed_length_is_that_length_everywhere(text: str) -> None:
    name, _, factor = text.partition(":")
    fixed = strategy(f"{name}:{f'factor={factor},' if factor else ''}length=20000")
    for length in (16, 20000, 64 * 1024):
        same(fixed.plan(LLAMA_2, length).inv_freq, GROWING[text](Shape(128, 1e4, 4096), 20000))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("attention", [None, 1.25])
def test_longrope_takes_the_list_of_the_length(shape: Shape, attention: float | None) -> None:
    pairs, trained = shape.dim // 2, shape.length
    short, long = ([1 + end * i / pairs for i in range(pairs)] for end in (0.5, 9))
    text = "longrope:{},short_factor={},long_factor={}".format(
        8, *("/".join(map(repr, each)) for each in (short, long))
    )
    made = strategy(text + (f",attention_factor={attention}" if attention else ""))
    for length, divisors in ((1, short), (trained, short), (trained + 1, long), (10**6, long)):
        plan = made.plan(Rope.standard(*shape), length)
        same(plan.inv_freq, ref.longrope(shape, divisors))
        wanted = attention or ref.longrope_temperature(8, trained)
        assert plan.attention_scale == pytest.approx(wanted, rel=1e-15)


@pytest.mark.parametrize("trained", [256, 4096, 8192, 32768])
@pytest.mark.parametrize("text", QUERIES)
def test_queries_are_scaled_by_the_formula(text: str, trained: int) -> None:
    scale = strategy(text).plan(Rope.standard(64, 1e4, trained)).query_scale
    assert scale is not None
    places = [*range(3), *(n * trained + d for n in (1, 2, 7, 31) for d in (-2, -1, 0, 1)), 10**6]
    made = scale(torch.tensor([places]))
    assert made.dtype == torch.float32
    assert made.shape == (1, len(places))
    wanted = [QUERIES[text](place, trained) for place in places]
    assert made[0].tolist() == pytest.approx(wanted, rel=2.5e-7)  # two units of float32


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("text", BOUNDED)
def test_frequencies_stay_between_the_trained_and_the_interpolated_ones(
    text: str, rope: Rope
) -> None:
    made = strategy(fitted(text, rope.dim // 2))
    target = max(made.target_length(rope), 2 * rope.trained_length)
    inv_freq = made.plan(rope, target).inv_freq
    most = max(made.scale(rope), 1.0)
    if made.length_class == "per_length":
        most *= getattr(made, "factor", 1) * 2 * target / rope.trained_length
    assert inv_freq.dtype == torch.float64
    assert (inv_freq <= rope.inv_freq * (1 + 1e-12)).all()
    assert (inv_freq >= rope.inv_freq / most * (1 - 1e-12)).all()
    assert (inv_freq.diff() < 0).all()


def test_the_texts_without_bounds_are_in_the_table_of_cases() -> None:
    assert set(STATIC) >= UNBOUNDED


@pytest.mark.parametrize("text", [*STATIC, "logn"])
def test_a_static_plan_is_the_same_at_every_length(text: str) -> None:
    made = strategy(fitted(text, 64))
    assert made.length_class == "static"
    short, long = made.plan(LLAMA_2, 10), made.plan(LLAMA_2, 10**6)
    assert torch.equal(short.inv_freq, long.inv_freq)
    assert short.attention_scale == long.attention_scale


@pytest.mark.parametrize("text", [*GROWING, "linear:2+dynamic"])
def test_dynamic_is_unscaled_up_to_the_trained_length_and_grows_beyond(text: str) -> None:
    made = strategy(text)
    assert made.length_class == "per_length"
    tables = [made.plan(LLAMA_2, n).inv_freq[-1] for n in (1, 4096, 4097, 8193)]
    assert tables[0] == tables[1] > tables[2] > tables[3]


def test_a_target_length_is_the_factor_it_implies() -> None:
    stated, implied = strategy("yarn:length=16k"), strategy("yarn:4")
    assert stated.target_length(LLAMA_2) == implied.target_length(LLAMA_2) == 16 * 1024
    assert torch.equal(stated.plan(LLAMA_2).inv_freq, implied.plan(LLAMA_2).inv_freq)


@pytest.mark.parametrize(
    "name", ["yarn", "ntk", "longrope", "theta", "drope", "dynamic", "dynamic_qwen"]
)
def test_a_target_below_the_trained_length_is_refused(name: str) -> None:
    more = {"longrope": "long_factor=" + "/".join(["2"] * 64), "theta": "base=500000"}
    made = strategy(f"{name}:length=2k" + (f",{more[name]}" if name in more else ""))
    with pytest.raises(ValueError, match="the model is trained for 4k tokens already"):
        _ = made.plan(LLAMA_2), made.target_length(LLAMA_2)


def test_composition_applies_left_to_right() -> None:
    plan = strategy("linear:2+yarn:4+logn").plan(LLAMA_2)
    linear = Plan(LLAMA_2.inv_freq / 2)
    yarn = strategy("yarn:4").apply(linear, LLAMA_2, 4096)
    assert torch.equal(plan.inv_freq, yarn.inv_freq)
    assert plan.attention_scale == pytest.approx(0.1 * math.log(4) + 1, rel=1e-15)
    assert plan.query_scale is not None
    assert strategy("linear:2+yarn:4+logn").target_length(LLAMA_2) == 8 * 4096


def test_queries_are_scaled_once() -> None:
    with pytest.raises(ValueError, match="scaled already"):
        strategy("logn+logn").plan(LLAMA_2)


def test_every_strategy_has_a_case_and_a_formula() -> None:
    used = {part.partition(":")[0] for text in ALL for part in text.split("+")}
    assert used == set(registry()) - {"none"}
    texts = (*FORMULAS, *TEMPERATURES, *GROWING, *QUERIES, *DISTANCES, "longrope")
    assert {text.partition(":")[0] for text in texts} == set(registry())

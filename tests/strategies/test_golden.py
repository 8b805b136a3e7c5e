"""Every number that the sources print, against ropex and against `reference.py`."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
import torch

from ropex.rope import Rope
from ropex.strategies.dynamic_qwen import DynamicQwen
from ropex.strategies.ntk import ntk_base
from ropex.strategies.registry import strategy
from ropex.strategies.theta import ThetaScale
from ropex.strategies.yarn import Yarn, pair_of
from tests.support import paths
from tests.support import reference as ref
from tests.support.formulas import FORMULAS
from tests.support.reference import Shape

GOLDEN: dict[str, Any] = json.loads(
    (paths.GOLDEN / "strategies.json").read_text(encoding="utf-8"),
    parse_float=Decimal,  # keeps the number of digits
)
LLAMA_2 = Shape(128, 1e4, 4096)
ROPE = Rope.standard(*LLAMA_2)

both = pytest.mark.parametrize("source", ["ropex", "reference"])


def printed(number: Decimal | int) -> Any:
    """Equal to what is printed, to half a unit of its last digit."""
    exponent = Decimal(number).as_tuple().exponent
    assert isinstance(exponent, int)
    return pytest.approx(float(number), rel=0, abs=0.5001 * 10.0**exponent)


def shape_of(table: dict[str, Any]) -> Shape:
    rope = table["rope"]
    return Shape(rope["dim"], float(rope["base"]), rope["length"])


def planned(text: str, shape: Shape, length: int | None = None) -> list[float]:
    made: list[float] = strategy(text).plan(Rope.standard(*shape), length).inv_freq.tolist()
    return made


def frequencies(source: str, text: str, table: dict[str, Any]) -> list[float]:
    if source == "reference":
        return FORMULAS[text](shape_of(table), table["factor"])
    return planned(text.format(table["factor"]), shape_of(table))


def rows(table: str, names: str = "text, row") -> pytest.MarkDecorator:
    return pytest.mark.parametrize(names.split(", "), GOLDEN[table]["rows"].items())


@both
@rows("divisors")
def test_divisors(source: str, text: str, row: list[Decimal]) -> None:
    table = GOLDEN["divisors"]
    trained, made = ref.default(shape_of(table)), frequencies(source, text, table)
    assert [trained[pair] / made[pair] for pair in table["pairs"]] == list(map(printed, row))


@both
@rows("ratios")
def test_ratios(source: str, text: str, row: list[Decimal]) -> None:
    table = GOLDEN["ratios"]
    trained, made = ref.default(shape_of(table)), frequencies(source, text, table)
    assert [made[pair] / trained[pair] for pair in table["pairs"]] == list(map(printed, row))


@both
@rows("most_apart_percent")
def test_conventions_of_yarn_are_as_far_apart_as_stated(source: str, text: str, row: int) -> None:
    table = GOLDEN["most_apart_percent"]
    left, right = (frequencies(source, each, table) for each in (table["from"], text))
    apart = [100 * abs(b / a - 1) for a, b in zip(left, right, strict=True)]
    assert max(apart) == printed(row)
    if text == table["widest"]["text"]:
        assert apart.index(max(apart)) == table["widest"]["pair"]


@pytest.mark.parametrize("row", GOLDEN["correction_ranges"])
def test_bounds_of_the_ramp(row: dict[str, Any]) -> None:
    shape, exact = shape_of(row), list(map(printed, row["exact"]))
    rope = Rope.standard(*shape)
    assert [pair_of(rope, turns, rope.trained_length) for turns in (32, 1)] == exact
    assert [ref.index_of(shape, turns) for turns in (32, 1)] == exact
    assert list(Yarn(2, truncate=False).bounds(rope)) == exact
    assert list(ref.bounds(shape, truncate=False)) == exact
    if "rounded" in row:
        assert list(Yarn(2).bounds(rope)) == list(ref.bounds(shape)) == row["rounded"]


@pytest.mark.parametrize(("factor", "scale"), GOLDEN["yarn_temperature"].items())
def test_temperature_of_yarn(factor: str, scale: Decimal) -> None:
    assert strategy(f"yarn:{factor}").plan(ROPE).attention_scale == printed(scale)
    assert ref.yarn_temperature(float(factor)) == printed(scale)


@pytest.mark.parametrize("row", GOLDEN["longrope_temperature"])
def test_temperature_of_longrope(row: dict[str, Any]) -> None:
    text = f"longrope:{row['factor']},long_factor=" + "/".join(["2"] * 64)
    plan = strategy(text).plan(Rope.standard(128, 1e4, row["length"]))
    assert plan.attention_scale == printed(row["scale"])
    assert ref.longrope_temperature(row["factor"], row["length"]) == printed(row["scale"])


@pytest.mark.parametrize(("factor", "base"), GOLDEN["ntk_base"].items())
def test_base_of_ntk(factor: str, base: Decimal) -> None:
    assert ntk_base(ROPE, float(factor)) == printed(base)
    assert ref.ntk_base(LLAMA_2, float(factor)) == printed(base)
    assert base_of(planned(f"ntk:{factor}", LLAMA_2)) == printed(base)


@pytest.mark.parametrize(("target", "base"), GOLDEN["theta_scale_base"].items())
def test_base_of_theta_scale(target: str, base: int) -> None:
    assert ThetaScale(length=int(target)).base(ROPE) == printed(base)
    assert ref.theta_scale_base(LLAMA_2, int(target) / 4096) == printed(base)
    assert base_of(planned(f"theta_scale:length={target}", LLAMA_2)) == printed(base)


@pytest.mark.parametrize(("factor", "base"), GOLDEN["dynamic_base_at_twice"].items())
def test_base_of_dynamic_at_twice_the_trained_length(factor: str, base: Decimal) -> None:
    assert base_of(planned(f"dynamic:{factor}", LLAMA_2, 8192)) == printed(base)
    assert base_of(ref.dynamic(LLAMA_2, 8192, float(factor))) == printed(base)


def base_of(frequencies: list[float]) -> float:
    """The base of unscaled frequencies, by the slowest pair."""
    pairs = len(frequencies)
    base: float = frequencies[-1] ** (-pairs / (pairs - 1))
    return base


@both
def test_pairs_of_llama3(source: str) -> None:
    table = GOLDEN["llama3"]
    made, trained = frequencies(source, "llama3:{}", table), ref.default(shape_of(table))
    for pair, frequency in table["inv_freq"].items():
        assert made[int(pair)] == printed(frequency)
    divisors = [a / b for a, b in zip(trained, made, strict=True)]
    first = next(i for i, divisor in enumerate(divisors) if divisor > 1 + 1e-12)
    whole = next(i for i, divisor in enumerate(divisors) if divisor > table["factor"] - 1e-9)
    assert (first, whole) == (table["first_scaled"], table["fully_scaled_from"])


@rows("qwen_alpha", "length, alpha")
def test_alpha_of_qwen(length: str, alpha: int) -> None:
    trained = GOLDEN["qwen_alpha"]["length"]
    made = DynamicQwen().alpha(Rope.standard(128, 1e4, trained), int(length))
    assert float(made) == ref.qwen_alpha(int(length), trained) == alpha


@rows("clip_window", "place, share")
def test_window_of_clip(place: str, share: Decimal) -> None:
    count = GOLDEN["clip_window"]["pairs"]
    kept = strategy(f"clip:{count}").plan(ROPE).inv_freq / ROPE.inv_freq
    assert float(kept[64 - count + int(place)]) == printed(share)
    assert torch.equal(kept[: 64 - count], torch.ones(64 - count, dtype=torch.float64))
    assert ref.clip_window(count, int(place)) == printed(share)


@rows("logn", "position, scale")
def test_scale_of_logn(position: str, scale: Decimal) -> None:
    made = strategy("logn").plan(ROPE).query_scale
    assert made is not None
    assert float(made(torch.tensor(int(position)))) == printed(scale)
    assert ref.logn(int(position), GOLDEN["logn"]["length"]) == printed(scale)

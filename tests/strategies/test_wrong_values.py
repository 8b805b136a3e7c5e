"""A value that no strategy takes is told in one sentence: which, where, and what is allowed."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import fields
from typing import Any, get_args, get_origin

import pytest

import ropex
from ropex.rope import Rope
from ropex.strategies.base import Scaled, Strategy
from ropex.strategies.registry import registry
from tests.support.drawn import ORDERED, SORTED, hints_of, sentence

VALID: dict[str, Any] = {
    "factor": 4.0, "length": 64, "base": 5e5, "power": 0.1, "long_factor": (2.0, 4.0),
}  # fmt: skip
ZERO_IS_ALLOWED = {("eabf", "skip_layers"), ("resonance", "min_wavelength")}


def least(name: str, **given: Any) -> Strategy:
    """The strategy with `given`, and else only what it must have."""
    cls = registry()[name]
    needed = [each.name for each in fields(cls) if each.default is dataclasses.MISSING]
    if issubclass(cls, Scaled) and "length" not in given:
        needed.append("factor")
    if name == "longrope":
        needed.append("long_factor")
    return cls(**{**{key: VALID[key] for key in needed}, **given})


def bad_values() -> list[tuple[str, str, float]]:
    """Every number of every strategy, with each value that it must refuse."""
    bad: list[tuple[str, str, float]] = []
    for name, cls in registry().items():
        for key, hint in hints_of(cls).items():
            kinds = get_args(hint) or (hint,)
            wrong = [-1, 0] if int in kinds else [-1.0, 0.0, math.nan, math.inf]
            if {int, float} & set(kinds) and get_origin(hint) is not tuple:
                allowed = (name, key) in ZERO_IS_ALLOWED
                bad += [(name, key, value) for value in wrong if value != 0 or not allowed]
    return bad


@pytest.mark.parametrize(("name", "key", "value"), bad_values())
def test_a_bad_number_is_named_with_what_is_allowed(name: str, key: str, value: float) -> None:
    other = {"mscale": "mscale_all_dim", "mscale_all_dim": "mscale"}
    more = {other[key]: 1.0} if key in other else {}
    with pytest.raises(ValueError, match=rf"^{name}: \w+ is .*, it must be ") as error:
        least(name, **{key: value}, **more)
    assert key in sentence(error)
    assert str(value) in sentence(error)


@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan, math.inf])
@pytest.mark.parametrize("key", ["short_factor", "long_factor"])
def test_a_bad_number_in_a_list_is_named_with_what_is_allowed(key: str, value: float) -> None:
    said = rf"^longrope: {key} is \(2.0, {value}\), it must be made of numbers above 0"
    with pytest.raises(ValueError, match=said) as error:
        least("longrope", **{key: (2.0, value)})
    sentence(error)


def having(pairs: tuple[tuple[str, str], ...]) -> list[tuple[str, str, str]]:
    """Every strategy that has one of these pairs of fields, with it."""
    return [
        (name, *pair)
        for name, cls in registry().items()
        for pair in pairs
        if pair[0] in hints_of(cls)
    ]


@pytest.mark.parametrize(("name", "low", "high"), having(ORDERED))
@pytest.mark.parametrize("bound", [40.0, 41.0])
def test_the_bounds_of_a_band_are_in_order(name: str, low: str, high: str, bound: float) -> None:
    said = f"^{name}: {high} is 40.0, it must be above {low}, {bound}$"
    with pytest.raises(ValueError, match=said):
        least(name, **{low: bound, high: 40.0})


@pytest.mark.parametrize(("name", "low", "high"), having(SORTED))
def test_the_bounds_of_a_band_may_be_the_same(name: str, low: str, high: str) -> None:
    least(name, **{low: 40.0, high: 40.0})
    said = f"^{name}: {high} is 40.0, it must be at least {low}, 41.0$"
    with pytest.raises(ValueError, match=said):
        least(name, **{low: 41.0, high: 40.0})


@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("key", ["short_factor", "long_factor"])
def test_a_list_has_a_divisor_for_each_pair(key: str, count: int) -> None:
    lists = {"long_factor": (2.0,) * 4, key: (2.0,) * count}
    said = f"^longrope: {key} has {count} divisors, it must have 4, one for each rotated pair$"
    with pytest.raises(ValueError, match=said):
        least("longrope", **lists).plan(Rope.standard(8, 1e4, 64))


@pytest.mark.parametrize("key", ["short_factor", "long_factor"])
def test_a_list_is_not_empty(key: str) -> None:
    with pytest.raises(ValueError, match=rf"^longrope: {key} is \(\), it must be "):
        least("longrope", **{key: ()})


# What is above 0 and finite, and yet no table of float32 or bfloat16 holds it.

SCALES = [(name, key) for name, cls in registry().items() for key in hints_of(cls)
          if key in ("attention_factor", "mscale", "mscale_all_dim")
          or (name, key) in (("temperature", "factor"), ("llama4_temperature", "beta"),
                             ("ministral_temperature", "beta"))]  # fmt: skip


@pytest.mark.parametrize("value", [5e-324, 1e-45, 0.0009, 1001.0, 1e38, 1e300])
@pytest.mark.parametrize(("name", "key"), SCALES)
def test_a_sharpness_that_cannot_be_is_refused(name: str, key: str, value: float) -> None:
    if key == "beta" and value < 1:
        return  # a growth may be as small as one likes
    other = {"mscale": "mscale_all_dim", "mscale_all_dim": "mscale"}
    more = {other[key]: 1.0} if key in other else {}
    with pytest.raises(ValueError, match=rf"^{name}: {key} is .*, it must be above 0") as error:
        least(name, **{key: value}, **more)
    assert "1000" in sentence(error)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        *((name, key, value) for name, key, _ in having(ORDERED) for value in (5e-324, 1e-31)),
        *((name, high, 1e31) for name, _, high in (*having(ORDERED), *having(SORTED))),
        *((name, key, 5e-324) for name, key, _ in having(SORTED)),
        *((name, key, 2**40 + 1) for name, cls in registry().items() for key in hints_of(cls)
          if key in ("length", "range_length")),
        ("theta", "base", 1e31), ("eabf", "base", 1e300), ("giraffe_power", "power", 17.0),
        ("giraffe_power", "power", 5e-324), ("ntk_mixed", "beta", 1e31),
        ("resonance", "min_wavelength", 1e31), ("longrope", "long_factor", (2.0, 1e-45)),
        ("longrope", "short_factor", (2.0, 1e31)),
    ],
)  # fmt: skip
def test_a_value_that_no_table_holds_is_refused(name: str, key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: {key} is .*, it must be ") as error:
        least(name, **{key: value})
    sentence(error)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("linear:1048576+linear:1048576+linear:1048576+linear:1048576+linear:1048576+"
         "linear:1048576", "it reaches 1.33e.36 times the trained length"),
        ("+".join(["temperature:1000"] * 4), "it multiplies cos and sin by 1e.12,"),
        ("linear:length=1048576M", "from 1 to 1048576"),
    ],
)  # fmt: skip
def test_what_several_make_together_is_bounded_too(causal: Any, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ropex.patch(causal, text)

"""What holds for every strategy of the registry, with parameters and ropes drawn at random."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ropex.model.tables import PlannedTable
from ropex.rope import Rope
from ropex.strategies.base import Strategy
from ropex.strategies.clip import Clip
from ropex.strategies.composed import Composed
from ropex.strategies.dynamic import Dynamic
from ropex.strategies.registry import registry, strategy
from tests.support.drawn import ROPES, sentence, values

some = settings(max_examples=20, deadline=None, derandomize=True, database=None)
NAMES = tuple(registry())
each = pytest.mark.parametrize("name", NAMES)
LENGTHS = st.integers(1, 2**20)


def one_pair(made: Strategy, rope: Rope) -> str | None:
    return "a larger base needs at least two rotated pairs" if rope.dim == 2 else None


def too_few_pairs(made: Strategy, rope: Rope) -> str | None:
    assert isinstance(made, Clip)
    lost = rope.dim // 2 < made.pairs
    return f"the model rotates {rope.dim // 2} pairs, so it cannot lose" if lost else None


def window(value: int | float, rope: Rope) -> int:
    return value if isinstance(value, int) else max(1, round(value * rope.trained_length))


def no_room(first: str, second: str, words: str, least: int = 1) -> Any:
    """Of two windows, the first must be longer than the second, by `least`."""

    def refusal(made: Any, rope: Rope) -> str | None:
        longer, shorter = (window(getattr(made, name), rope) for name in (first, second))
        return words if longer - shorter < least else None

    return refusal


def too_many_ranges(made: Any, rope: Rope) -> str | None:
    return "one for each pair" if len(made.groups) > rope.dim // 2 else None


# Ropes that a strategy does not fit, and what it says of them.
REFUSED: dict[str, Callable[[Strategy, Rope], str | None]] = {
    "ntk": one_pair,
    "dynamic": one_pair,
    "dynamic_qwen": one_pair,
    "clip": too_few_pairs,
    "dca": no_room("chunk", "near", "it must be below the chunk"),
    "string": no_room("shift", "near", "it must be at most the shift", least=0),
    "streaming": no_room("near", "sinks", "it must be below the window"),
    "dpe": too_many_ranges,
}


def fits(made: Strategy, rope: Rope) -> bool:
    """Whether `made` plans for `rope`; if not, its refusal is checked."""
    refusal = REFUSED.get(made.name)
    said = refusal(made, rope) if refusal else None
    if said is None:
        return True
    with pytest.raises(ValueError, match=said) as error:
        made.plan(rope)
    sentence(error)
    return False


@each
@some
@given(data=st.data())
def test_text_reads_back(name: str, data: Any) -> None:
    made = data.draw(values(name))
    assert strategy(str(made)) == made
    assert str(strategy(str(made))) == str(made)


@settings(some, max_examples=100)
@given(data=st.data())
def test_text_of_several_reads_back(data: Any) -> None:
    names = data.draw(st.lists(st.sampled_from(NAMES), min_size=2, max_size=4))
    parts = tuple(data.draw(values(name)) for name in names)
    try:
        made = Composed(parts)
    except ValueError as error:
        assert re.search("give factors$|put .* last$", str(error))  # noqa: PT017
        return
    assert strategy(str(made)) == made


@each
@some
@given(data=st.data(), rope=ROPES, length=LENGTHS)
def test_frequencies_are_finite_or_the_rope_is_refused(
    name: str, data: Any, rope: Rope, length: int
) -> None:
    made = data.draw(values(name, rope))
    before = rope.inv_freq.clone()
    if not fits(made, rope):
        return
    plan, again = made.plan(rope, length), made.plan(rope, torch.tensor(length))
    assert plan.inv_freq.dtype == torch.float64
    assert plan.inv_freq.shape == (rope.dim // 2,)
    assert plan.inv_freq.isfinite().all()
    assert (plan.inv_freq >= 0).all()
    assert math.isfinite(plan.attention_scale)
    assert plan.attention_scale > 0
    assert torch.equal(rope.inv_freq, before)
    assert torch.equal(plan.inv_freq, again.inv_freq)
    assert plan.attention_scale == float(again.attention_scale)
    assert plan.query_scale == again.query_scale


# A factor of 1 changes nothing.
IDENTITIES = (
    "linear", "ntk", "ntk_fixed", "ntk_mixed", "ntk_by_parts", "theta_scale", "yarn", "yarn_pose",
    "yarn_log", "mrrope", "mrrope_uni", "llama3", "temperature",
)  # fmt: skip


@pytest.mark.parametrize("name", IDENTITIES)
@some
@given(data=st.data(), rope=ROPES)
def test_a_factor_of_one_changes_nothing(name: str, data: Any, rope: Rope) -> None:
    changes: dict[str, Any] = {"factor": 1.0}
    defaults = {each.name: each.default for each in fields(registry()[name])}
    changes |= {key: defaults[key] for key in ("length", "attention_factor") if key in defaults}
    made = replace(data.draw(values(name, rope)), **changes)
    if fits(made, rope):
        assert not made.plan(rope).changes(rope)


@pytest.mark.parametrize("name", ["dynamic", "dynamic_linear", "dynamic_yarn", "dynamic_qwen"])
@some
@given(data=st.data(), rope=ROPES)
def test_nothing_changes_within_the_trained_length(name: str, data: Any, rope: Rope) -> None:
    made = replace(data.draw(values(name, rope)), length=None)
    if fits(made, rope):
        length = data.draw(st.integers(1, rope.trained_length))
        plan = replace(made.plan(rope, length), query_scale=None)
        assert not plan.changes(rope)


# By how much the slowest pair is stretched at most, given the growth of the length.
STRETCHES: dict[str, Callable[[Any, float], float]] = {
    "dynamic": lambda made, growth: made.factor * growth - (made.factor - 1),
    "dynamic_linear": lambda made, growth: growth,
    "dynamic_yarn": lambda made, growth: growth,
    "dynamic_qwen": lambda made, growth: 4 * growth - 1,
}
FACTORS = tuple(name for name in IDENTITIES if name not in ("theta_scale", "temperature"))


@pytest.mark.parametrize("name", [*FACTORS, *STRETCHES])
@some
@given(data=st.data(), rope=ROPES, length=LENGTHS)
def test_no_pair_is_stretched_by_more_than_the_factor(
    name: str, data: Any, rope: Rope, length: int
) -> None:
    made = data.draw(values(name, rope))
    if not fits(made, rope):
        return
    growth = max(1, (getattr(made, "length", None) or length) / rope.trained_length)
    most = STRETCHES[name](made, growth) if name in STRETCHES else made.scale(rope)
    stretch = rope.inv_freq / made.plan(rope, length).inv_freq
    assert (stretch >= 1 - 1e-12).all()
    assert (stretch <= most * (1 + 1e-12)).all()


@each
@some
@given(data=st.data(), rope=ROPES)
def test_a_table_is_planned_on_the_device_of_the_length(name: str, data: Any, rope: Rope) -> None:
    made = data.draw(values(name, rope))
    if made.length_class == "static":  # in company of one that is not
        made = Composed((Dynamic(), made))
    parts = made.parts if isinstance(made, Composed) else (made,)
    if all([fits(part, rope) for part in parts]):
        table, scale = PlannedTable(made, rope)(torch.tensor(9000, device="meta"))
        assert table.is_meta
        assert table.dtype == torch.float32
        assert scale.is_meta if isinstance(scale, torch.Tensor) else scale > 0

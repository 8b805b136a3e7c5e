"""What a rope saw in training, and what theory says it can take."""

from __future__ import annotations

import math
import time

import pytest

import ropex
from ropex.advice import bounds
from ropex.rope import Plan, Rope

LLAMA_2 = Rope.standard(128, 1e4, 4096)


@pytest.mark.parametrize(
    ("dim", "base", "trained", "dimension"),
    [
        (128, 1e4, 4096, 92),  # Llama 2, arXiv:2310.05209
        (128, 5e5, 8192, 70),
        (128, 1e4, 8192, 100),
        (128, 1e6, 32768, 80),
        (64, 1.5e5, 4096, 36),
    ],
)
def test_critical_dimension_is_the_published_one(
    dim: int, base: float, trained: int, dimension: int
) -> None:
    rope = Rope.standard(dim, base, trained)
    assert bounds.critical_dimension(rope) == dimension
    assert 2 * math.ceil(dim / 2 * math.log(trained / (2 * math.pi), base)) == dimension
    pair = bounds.critical_pair(rope)
    assert pair is not None
    assert bounds.turns(rope)[pair] >= 1 > bounds.turns(rope)[pair + 1]


def test_rope_whose_pairs_never_turn_has_no_critical_pair() -> None:
    assert bounds.critical_pair(Rope.standard(8, 1e4, 4)) is None
    assert bounds.critical_dimension(Rope.standard(8, 1e4, 4)) == 0


@pytest.mark.parametrize(
    ("length", "published"),
    [(1024, 4.3e3), (4096, 2.7e4), (8192, 8.4e4), (131072, 7.8e6)],  # arXiv:2405.14591, table 2
)
def test_bound_of_the_base_is_the_published_one(length: int, published: float) -> None:
    assert bounds.base_bound(128, length) == pytest.approx(published, rel=0.1)


@pytest.mark.parametrize(("dim", "length"), [(128, 1000), (64, 512), (16, 256), (4, 40)])
def test_bound_of_the_base_satisfies_its_condition_and_is_an_edge(dim: int, length: int) -> None:
    found = bounds.base_bound(dim, length)
    assert found is not None

    def lowest(base: float) -> float:  # by the definition, one distance after the other
        theta = [base ** (-2 * i / dim) for i in range(dim // 2)]
        return min(sum(math.cos(m * t) for t in theta) for m in range(length))

    assert lowest(found) >= -1e-8
    assert lowest(found / 1.0005) < 0


def test_bound_of_the_base_is_none_for_a_single_pair_and_beyond_the_search() -> None:
    assert bounds.base_bound(2, 64) is None
    assert bounds.base_bound(128, bounds.LONGEST_SEARCH + 1) is None


def test_bound_of_the_base_takes_seconds_at_most() -> None:
    begin = time.process_time()
    bounds.base_bound(128, bounds.LONGEST_SEARCH)
    assert time.process_time() - begin < 4  # 0.9 on an idle core


def test_fit_of_the_base_is_the_published_formula() -> None:
    assert bounds.base_fit(4096) == pytest.approx(0.0424 * 4096**1.628)


@pytest.mark.parametrize(
    ("text", "outside"),
    [("none", 18), ("linear:4", 0), ("yarn:4", 0), ("llama3:4", 0), ("ntk:4", 17), ("clip:18", 12)],
)
def test_pairs_outside_are_counted(text: str, outside: int) -> None:
    plan = ropex.strategy(text).plan(LLAMA_2, 16384)
    seen = bounds.inside(LLAMA_2, plan, 16384)
    assert int((~seen).sum()) == outside
    assert seen[:46].all()  # those that turned fully


def test_phase_change_is_that_of_the_fastest_pair_of_linear() -> None:
    plan = ropex.strategy("linear:4").plan(LLAMA_2)
    assert bounds.phase_change(LLAMA_2, plan) == pytest.approx(64 * 0.75)
    assert bounds.phase_change(LLAMA_2, Plan.unchanged(LLAMA_2)) == 0

"""Means with their uncertainty, and the verdict that is drawn from them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropex_eval.contexts import doublings, verdict
from ropex_eval.results import Verdict
from ropex_eval.statistics import Totals, estimate, student

# Two-sided 95 % points, from any table.
STUDENT = {
    1: 12.706, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 6: 2.4469, 7: 2.3646, 8: 2.3060,
    9: 2.2622, 10: 2.2281, 11: 2.2010, 15: 2.1314, 20: 2.0860, 30: 2.0423, 60: 2.0003,
    120: 1.9799, 1000: 1.9623, 10**6: 1.9600,
}  # fmt: skip


@pytest.mark.parametrize(("freedom", "point"), STUDENT.items())
def test_students_t_is_that_of_the_tables(freedom: int, point: float) -> None:
    assert student(freedom) == pytest.approx(point, rel=2e-3 if freedom in (3, 4) else 5e-4)


def totals(rows: Sequence[tuple[str, float, float]]) -> Totals:
    return Totals.of((name, total, weight, int(weight)) for name, total, weight in rows)


ROWS = [("a", 10.0, 4.0), ("b", 3.0, 2.0), ("a", 5.0, 2.0), ("c", 21.0, 6.0), ("b", 7.5, 3.0)]


def test_mean_and_error_are_those_of_a_ratio_of_sums_over_clusters() -> None:
    found = estimate(totals(ROWS))
    y, x = np.array([15.0, 10.5, 21.0]), np.array([6.0, 5.0, 6.0])
    ratio = y.sum() / x.sum()
    spread = ((y - ratio * x) ** 2).sum() / (3 - 1)
    error = math.sqrt(spread / 3) / x.mean()
    assert (found.mean, found.se) == pytest.approx((ratio, error), rel=1e-12)
    low, high = found.interval
    assert (low, high) == pytest.approx((ratio - 4.3027 * error, ratio + 4.3027 * error), abs=1e-4)


def test_of_clusters_of_one_size_it_is_the_error_of_a_mean() -> None:
    values = [random.Random(0).gauss(3, 1) for _ in range(12)]
    found = estimate(totals([(str(n), 7 * value, 7.0) for n, value in enumerate(values)]))
    assert found.mean == pytest.approx(np.mean(values), rel=1e-12)
    assert found.se == pytest.approx(np.std(values, ddof=1) / math.sqrt(12), rel=1e-12)


def test_interval_holds_the_truth_nineteen_times_of_twenty() -> None:
    draw, held = random.Random(1), 0
    for _ in range(2000):
        rows = []
        for name in range(6):
            weight = draw.choice([50.0, 60.0, 70.0])
            rows.append((str(name), weight * draw.gauss(2.0, 0.3), weight))
        low, high = estimate(totals(rows)).interval
        assert low is not None
        assert high is not None
        held += low < 2.0 < high
    assert 0.93 < held / 2000 < 0.97


def test_difference_is_paired_by_cluster() -> None:
    easy = [("a", 4.0, 4.0), ("b", 40.0, 4.0), ("c", 16.0, 4.0)]
    better = [(name, total - shift, n) for (name, total, n), shift in
              zip(easy, (0.4, 0.5, 0.6), strict=True)]  # fmt: skip
    found = estimate(totals(better).minus(totals(easy)))
    assert found.mean == pytest.approx(-0.125)
    assert found.se == pytest.approx(0.025 / math.sqrt(3))
    alone = estimate(totals(better))
    assert alone.se is not None
    assert found.se is not None
    assert alone.se > 50 * found.se
    with pytest.raises(ValueError, match="not taken over the same tokens"):
        totals(better).minus(totals([*easy[:2], ("c", 16.0, 5.0)]))
    with pytest.raises(ValueError, match="not taken over the same tokens"):
        totals(better).minus(totals(easy[:2]))


def test_one_cluster_has_a_mean_and_no_error() -> None:
    found = estimate(totals([("a", 10.0, 4.0), ("a", 2.0, 2.0)]))
    assert (found.mean, found.se, found.interval) == (2.0, None, (None, None))


@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from("abcd"),
            st.floats(-1e6, 1e6),
            st.floats(0.5, 1e4),
        ),
        min_size=1,
        max_size=12,
    ),
    seed=st.integers(0, 2**16),
)
def test_order_does_not_change_a_bit(rows: list[tuple[str, float, float]], seed: int) -> None:
    turned = rows.copy()
    random.Random(seed).shuffle(turned)
    one, other = estimate(totals(rows)), estimate(totals(turned))
    assert (one.mean, one.se) == (other.mean, other.se)
    assert estimate(totals(rows).minus(totals(turned))).mean == 0


@pytest.mark.parametrize(
    "values", [(math.nan, 1.0, 2.0), (math.inf, 1.0, 2.0), (math.inf, math.inf, 2.0), (1e300, 1, 2)]
)
def test_what_is_no_number_or_huge_is_told_as_such(values: tuple[float, ...]) -> None:
    found = estimate(totals([(str(n), value, 1.0) for n, value in enumerate(values)]))
    assert found.mean == pytest.approx(sum(values) / 3, nan_ok=True)
    assert found.se is not None
    assert not math.isfinite(found.se) or found.se > 1e200


# Verdicts. Each step is a doubling: what it changes, and how unsure that is.


def judged(
    *steps: tuple[float, float],
    lengths: Sequence[int] = (),
    clusters: int = 9,
    trained: int = 32,
) -> Verdict:
    """The verdict on fixed targets that change so at each length, in clusters of ten tokens."""
    lengths = lengths or [64 * 2**n for n in range(len(steps) + 1)]
    level = {f"d{n}": 30.0 for n in range(clusters)}
    weights = dict.fromkeys(level, 10.0)
    fixed = {lengths[0]: Totals(level, weights, 10 * clusters)}
    spread = np.linspace(-1, 1, clusters) if clusters > 1 else np.zeros(1)
    spread = spread / (np.std(spread, ddof=1) if clusters > 1 else 1) * math.sqrt(clusters)
    for length, (change, se) in zip(lengths[1:], steps, strict=True):
        level = {
            name: value + 10 * (change + se * float(shift))
            for (name, value), shift in zip(level.items(), spread, strict=True)
        }
        fixed[length] = Totals(level, weights, 10 * clusters)
    return verdict("s", fixed, trained)


HELPS, HURTS = (-0.1, 0.001), (0.1, 0.001)


def test_steps_are_measured_as_they_were_made() -> None:
    found = judged((-0.1, 0.004), (0.02, 0.03))
    assert [(step.start, step.end) for step in found.steps] == [(64, 128), (128, 256)]
    assert [step.nll for step in found.steps] == pytest.approx([-0.1, 0.02])
    assert [step.se for step in found.steps] == pytest.approx([0.004, 0.03])


@pytest.mark.parametrize(
    ("steps", "safe", "useful"),
    [
        ((HELPS, HELPS, HELPS), 512, 512),
        ((HELPS, HELPS, HURTS), 256, 256),
        ((HURTS, HELPS, HELPS), 64, None),
        ((HELPS, HURTS, HELPS), 128, 128),
        ((HELPS, (0.003, 0.001), (-0.003, 0.001)), 512, 512),
        ((HELPS, (0.003, 0.001), (0.004, 0.001)), 512, 128),
        (((0.003, 0.001), (0.005, 0.001)), 256, None),
        ((HELPS, (0.0131, 0.001)), 128, 128),
        ((HELPS, (math.nan, 0.0)), 128, 128),
        ((HELPS, (math.inf, 0.0)), 128, 128),
    ],
)
def test_safe_is_up_to_what_hurts_and_useful_up_to_what_last_helps(
    steps: tuple[tuple[float, float], ...], safe: int, useful: int | None
) -> None:
    found = judged(*steps)
    assert (found.safe, found.useful) == (safe, useful)
    assert (found.safe_decided, found.useful_decided) == (True, True)
    assert found.clusters_needed is None


@pytest.mark.parametrize(
    ("steps", "safe", "safe_decided", "useful", "useful_decided"),
    [
        ((HELPS, (0.012, 0.004)), 256, False, 128, False),  # a hundredth is in the interval
        ((HELPS, (0.005, 0.004)), 256, False, 128, False),
        ((HELPS, (0.017, 0.003)), 128, True, 128, True),  # 0.011 beyond doubt
        ((HELPS, (0.001, 0.002)), 256, True, 128, False),  # harmless, but may help
        ((HELPS, (-0.003, 0.002)), 256, True, 128, False),
        ((HELPS, (-0.005, 0.002)), 256, True, 256, True),
        ((HURTS, (0.012, 0.004)), 64, True, None, True),  # what comes after does not matter
        (((0.001, 0.002), HELPS), 256, True, 256, True),  # nor what stands before what helps
        (((0.012, 0.004), HELPS), 256, False, 256, False),
    ],
)
def test_what_has_a_limit_in_its_interval_is_undecided(
    steps: tuple[tuple[float, float], ...],
    safe: int,
    safe_decided: bool,
    useful: int | None,
    useful_decided: bool,
) -> None:
    found = judged(*steps)
    assert (found.safe, found.safe_decided) == (safe, safe_decided)
    assert (found.useful, found.useful_decided) == (useful, useful_decided)
    assert (found.clusters_needed is None) == (safe_decided and useful_decided)


@pytest.mark.parametrize(
    ("step", "needed"), [((0.014, 0.004), 49), ((0.006, 0.004), 49), ((0.012, 0.004), 193)]
)
def test_clusters_that_would_decide_grow_with_the_square_of_the_error(
    step: tuple[float, float], needed: int
) -> None:
    found = judged(HELPS, step)  # nine clusters: an interval is 2.306 errors to both sides
    assert found.clusters_needed is not None
    assert abs(found.clusters_needed - needed) <= 1
    assert judged(HELPS, (step[0], step[1] * math.sqrt(9 / (needed + 3)))).safe_decided


@pytest.mark.parametrize(("trained", "safe"), [(32, 64), (64, 64), (128, 256), (512, 256)])
def test_what_hurts_within_the_trained_length_is_no_matter_of_safety(
    trained: int, safe: int
) -> None:
    assert judged(HURTS, HELPS, trained=trained).safe == safe
    assert judged((0.012, 0.004), HELPS, trained=trained).safe_decided == (trained >= 128)


def test_one_cluster_decides_nothing_and_says_nothing_of_how_many_would() -> None:
    found = judged((-0.1, 0.0), (0.5, 0.0), clusters=1)
    assert (found.safe, found.useful) == (128, 128)
    assert not found.safe_decided
    assert not found.useful_decided
    assert found.clusters_needed is None
    assert [step.se for step in found.steps] == [None, None]


def test_one_length_is_safe_and_nothing_is_known_of_its_use() -> None:
    found = judged(lengths=(64,))
    assert (found.safe, found.useful, found.steps) == (64, None, ())
    assert found.safe_decided


@pytest.mark.parametrize(
    ("lengths", "tested"),
    [
        ((64,), [64]),
        ((64, 128), [64, 128]),
        ((64, 100), [64, 100]),
        ((64, 100, 128, 200, 256), [64, 128, 256]),
        ((64, 96, 144, 216), [64, 144, 216]),
        ((2048, 4096, 6144, 8192, 10240), [2048, 4096, 8192, 10240]),
    ],
)
def test_lengths_that_are_tested_double_and_end_with_the_longest(
    lengths: tuple[int, ...], tested: list[int]
) -> None:
    assert doublings(lengths) == tested


def test_verdict_names_lengths_that_were_measured() -> None:
    found = judged(HELPS, HELPS, (0.5, 0.001), lengths=(64, 100, 150, 290))
    assert [(step.start, step.end) for step in found.steps] == [(64, 150), (150, 290)]
    assert found.safe == 150

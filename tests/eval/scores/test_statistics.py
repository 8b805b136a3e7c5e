"""Means with their uncertainty, and the verdict that is drawn from them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropex_eval.scores.contexts import verdict
from ropex_eval.scores.statistics import Estimate, Totals, binomial, estimate, student
from ropex_eval.scores.verdict import Verdict

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
    assert low == pytest.approx(ratio - 4.3027 * error, abs=1e-4)  # the long tail is above
    assert high is not None
    assert high >= ratio + 4.3027 * error


def test_of_clusters_of_one_size_it_is_the_error_of_a_mean() -> None:
    values = [random.Random(0).gauss(3, 1) for _ in range(12)]
    found = estimate(totals([(str(n), 7 * value, 7.0) for n, value in enumerate(values)]))
    assert found.mean == pytest.approx(np.mean(values), rel=1e-12)
    assert found.se == pytest.approx(np.std(values, ddof=1) / math.sqrt(12), rel=1e-12)


def by_document(values: Sequence[float], weight: float = 64.0) -> Totals:
    return totals([(str(n), weight * float(value), weight) for n, value in enumerate(values)])


@pytest.mark.parametrize(
    ("spread", "documents", "least"),
    [
        (0.0, 4, 0.95), (0.0, 16, 0.95), (0.5, 8, 0.93), (1.0, 8, 0.87), (1.0, 16, 0.91),
        (1.0, 48, 0.93),
    ],
)  # fmt: skip
def test_interval_holds_the_truth_of_skewed_documents_too(
    spread: float, documents: int, least: float
) -> None:
    """Student's t alone holds 83 to 89 % of log-normal ones with a spread of 1."""
    draw, held = np.random.default_rng(1), 0
    truth = math.exp(spread**2 / 2) if spread else 0.0
    for _ in range(RUNS):
        drawn = draw.normal(0, 1, documents)
        low, high = estimate(
            by_document(list(np.exp(spread * drawn) if spread else drawn))
        ).interval
        assert low is not None
        assert high is not None
        held += low < truth < high
    assert held >= at_least(least)


RUNS = 1500


def at_least(share: float) -> float:
    """What a share of the runs is above 999 times of 1000, by the normal approximation."""
    return RUNS * share - 3.1 * math.sqrt(RUNS * share * (1 - share))


def test_without_skewness_bounds_are_students() -> None:
    found = Estimate(1.0, 0.1, 9, 9.0)
    assert found.interval == pytest.approx((1 - 0.23060, 1 + 0.23060), abs=2e-5)
    assert found.bounds(0.95) == pytest.approx((1 - 0.18595, 1 + 0.18595), abs=2e-5)


def test_the_long_tail_widens_its_own_side_and_nothing_is_narrower() -> None:
    found = estimate(by_document([0, 0, 0, 0, 0, 0, 0, 1]))
    assert found.skewness == pytest.approx(1.8562, abs=1e-4)  # 336 / 4096 / 0.125 ** 1.5
    low, high = found.bounds(0.95)
    assert found.se is not None
    assert low == pytest.approx(found.mean - 1.8946 * found.se, abs=1e-3)
    assert high is not None
    assert high > found.mean + 2 * 1.8946 * found.se


@pytest.mark.parametrize(
    ("most", "trials", "chance", "found"),
    [(0, 29, 0.1, 0.047101), (0, 28, 0.1, 0.052335), (1, 46, 0.1, 0.048002), (-1, 9, 0.3, 0.0)],
)
def test_binomial_is_that_of_the_tables(
    most: int, trials: int, chance: float, found: float
) -> None:
    assert binomial(most, trials, chance) == pytest.approx(found, abs=2e-6)


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
        st.tuples(st.sampled_from("abcd"), st.floats(-1e6, 1e6), st.floats(0.5, 1e4)),
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


# Verdicts, of changes against no scaling at the trained length, which is 64.


def judged(*changes: Sequence[float], lengths: Sequence[int] = ()) -> Verdict:
    """The verdict on what each document loses at 64, 128, ... tokens, in nats a token."""
    lengths = lengths or [64 * 2**n for n in range(len(changes))]
    plain = by_document([3.0] * len(changes[0]))
    fixed = {
        length: by_document([3.0 + loss for loss in losses])
        for length, losses in zip(lengths, changes, strict=True)
    }
    return verdict("s", fixed, plain, 64)


def spread_out(mean: float, error: float, count: int = 40) -> list[float]:
    """Losses of so many documents with this mean and this standard error, not skewed."""
    places = np.linspace(-1, 1, count)
    places *= error * math.sqrt(count) / np.std(places, ddof=1)
    return [float(mean + place) for place in places]


SAME = [0.0] * 40
HOLDS, HELPS, HURTS, OPEN = (spread_out(mean, 0.004) for mean in (0.03, -0.03, 0.07, 0.047))


@pytest.mark.parametrize(
    ("changes", "safe", "useful"),
    [
        ((SAME,), 64, None),
        ((SAME, HOLDS, HURTS), 128, None),
        ((SAME, HELPS, HELPS), 256, 256),
        ((SAME, HELPS, HOLDS), 256, 128),
        ((SAME, HOLDS, HELPS), 256, None),
        ((SAME, HURTS, HELPS), 64, None),
        ((HURTS, HELPS, HELPS), None, None),  # a tax at the trained length is no safety
        ((spread_out(2.3, 0.02), spread_out(2.3, 0.02)), None, None),
    ],
)
def test_safe_is_up_to_what_is_shown_and_useful_up_to_what_helps(
    changes: tuple[list[float], ...], safe: int | None, useful: int | None
) -> None:
    found = judged(*changes)
    assert (found.safe, found.useful) == (safe, useful)
    assert (found.safe_decided, found.useful_decided) == (True, True)
    assert found.clusters_needed is None
    assert [(step.start, step.end) for step in found.steps] == [
        (64, 64 * 2**n) for n in range(len(changes))
    ]


def test_steps_are_measured_as_they_were_made() -> None:
    step = judged(SAME, [*spread_out(0.0, 0.001, 37), 0.2, 0.4, 0.4]).steps[1]
    assert step.nll == pytest.approx(1.0 / 40, abs=1e-9)
    assert (step.hurt, step.collapsed) == (3 / 40, 2 / 40)
    assert step.low is not None
    assert step.high is not None
    assert step.low < step.nll < step.high


@pytest.mark.parametrize("open_", [OPEN, spread_out(0.053, 0.004)])
def test_what_is_not_shown_is_not_granted(open_: list[float]) -> None:
    found = judged(SAME, open_, HELPS)
    assert (found.safe, found.safe_decided, found.useful) == (64, False, None)
    assert found.open == found.steps[1]
    assert [step.outcome for step in found.steps] == ["shown", "open", "shown"]


@pytest.mark.parametrize(
    ("lost", "count", "safe", "decided"),
    [(0, 29, 128, True), (0, 28, 64, False), (1, 45, 64, False), (1, 46, 128, True),
     (8, 40, 64, True), (7, 40, 64, False)],
)  # fmt: skip
def test_rare_collapse_is_excluded_by_an_exact_test(
    lost: int, count: int, safe: int, decided: bool
) -> None:
    """0.9 ** 29 is below 0.05, 0.9 ** 28 is not; 8 of 40 is above a tenth at 95 %, 7 is not."""
    losses = [0.31] * lost + spread_out(-0.1, 0.001, count - lost)
    found = judged([0.0] * count, losses)
    assert (found.safe, found.safe_decided) == (safe, decided)


def test_a_novel_in_two_excerpts_shows_nothing() -> None:
    found = judged([0.0, 0.0], [-0.3, -0.31], [4.0, 6.0])
    assert (found.safe, found.safe_decided, found.useful) == (64, False, None)
    assert found.clusters_needed is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_there_is_no_verdict_where_a_loss_is_no_number(value: float, place: int) -> None:
    changes = [HELPS.copy(), HELPS.copy(), HELPS.copy()]
    changes[place][3] = value
    found = judged(*changes)
    assert (found.safe, found.useful, found.finite) == (None, None, False)
    assert not found.safe_decided
    assert found.clusters_needed is None


def test_there_is_no_verdict_against_what_is_no_number() -> None:
    plain = by_document([3.0, math.nan, 3.0])
    found = verdict("s", {64: plain, 128: by_document([3.0] * 3)}, plain, 64)
    assert (found.safe, found.useful, found.finite) == (None, None, False)


@pytest.mark.parametrize(
    ("mean", "error", "needed"),
    [
        (0.034, 0.012, 139),  # (1.645 + 0.842) ** 2 * 40 * (0.012 / 0.016) ** 2
        (0.066, 0.012, 139),
        (0.047, 0.004, None),  # 440, which is more than ten times what was read
        (0.05, 0.004, None),
    ],
)
def test_documents_that_would_tell_are_those_of_a_test_with_power(
    mean: float, error: float, needed: int | None
) -> None:
    found = judged(SAME, spread_out(mean, error))
    assert not found.safe_decided
    if needed is None:
        assert found.clusters_needed is None
    else:
        assert found.clusters_needed == pytest.approx(needed, abs=1)


def test_documents_that_are_said_to_tell_do_so_at_least_every_second_time() -> None:
    draw, told, said = np.random.default_rng(3), 0, 0
    for _ in range(150):
        mean = float(draw.choice([-0.02, 0.0, 0.1]))
        first = judged([0.0] * 16, draw.normal(mean, 0.1, 16).tolist())
        if first.clusters_needed is not None:
            said += 1
            count = first.clusters_needed
            told += judged([0.0] * count, draw.normal(mean, 0.1, count).tolist()).safe_decided
    assert said > 50
    assert told > 0.5 * said


def collapsing(draw: Any, documents: int, mean: float, share: float, spread: float) -> list[float]:
    """Losses: log-normal about a mean, and a share of the documents that loses half a nat more."""
    noise = np.exp(draw.normal(0, 1, documents))
    noise = (noise - math.exp(0.5)) / math.sqrt((math.e - 1) * math.e)
    lost = draw.random(documents) < share
    return list(mean + spread * noise + 0.5 * lost)


def granted(documents: int, mean: float, share: float, spread: float, runs: int = 400) -> int:
    draw = np.random.default_rng(documents)
    same = [0.0] * documents
    return sum(
        judged(same, collapsing(draw, documents, mean, share, spread)).safe == 128
        for _ in range(runs)
    )


@pytest.mark.parametrize("mean", [0.0, -0.05])
@pytest.mark.parametrize("documents", [4, 16, 29, 32, 48])
def test_one_collapse_in_ten_is_called_safe_at_most_one_time_in_twenty(
    documents: int, mean: float
) -> None:
    """34 of 400: more are seen once in a thousand where the rate is 5 %."""
    assert granted(documents, mean, 0.1, 0.05) <= 34


@pytest.mark.parametrize("documents", [29, 48])
def test_a_mean_at_the_margin_is_called_safe_seldom_though_documents_are_skewed(
    documents: int,
) -> None:
    """Log-normal losses: one time in ten (Student's t alone: more than in seven)."""
    assert granted(documents, 0.05, 0.0, 0.05) <= 58


@pytest.mark.parametrize(("mean", "least"), [(-0.05, 0.85), (0.0, 0.75)])
def test_what_holds_is_granted_with_as_many_documents_as_are_read_by_default(
    mean: float, least: float
) -> None:
    assert granted(32, mean, 0.0, 0.05) > 400 * least - 3.1 * math.sqrt(400 * least * (1 - least))


def test_every_measured_length_is_tested_in_order() -> None:
    lengths = (64, 100, 150, 290)
    plain = by_document(SAME)
    fixed = {n: by_document(HELPS) for n in lengths[:3]} | {290: by_document(HURTS)}
    found = verdict("s", fixed, plain, 64)
    assert [step.end for step in found.steps] == list(lengths)
    assert (found.safe, found.useful) == (150, 150)

"""How far a strategy can be used: the verdict of a run, by paired tests.

The same target tokens are read after ever more text. A doubling of the context hurts if it makes
them less probable by more than a hundredth of a nat, beyond doubt (its 95 % interval).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from ropex_eval.results import Step, Verdict
from ropex_eval.statistics import Totals, estimate, student

HURTS = 0.01
"""Nats a token that a doubling of the context may cost."""


def verdict(strategy: str, fixed: Mapping[int, Totals], trained: int) -> Verdict:
    """Safe and useful context of a strategy.

    The *safe* context is the longest up to which no doubling hurts; the *useful* context is the
    longest safe one whose last doubling helps beyond doubt. Doublings within the trained length do
    not count as hurting: there a strategy is judged by its tax, against the model as it is. A
    verdict is decided if no test that it rests on is within its interval of the limit, and if it
    does not rest on a step over the trained length that was not measured itself.

    Args:
        strategy: Its text form.
        fixed: Length to the totals of the fixed targets, all over the same tokens.
        trained: Tokens that the model was trained at.
    """
    lengths = doublings(sorted(fixed))
    test = _Test(len(next(iter(fixed.values())).sums))
    steps = tuple(_step(fixed, *pair) for pair in pairwise(lengths))
    beyond = [step.end > trained for step in steps]
    hurting = (i for i, step in enumerate(steps) if beyond[i] and test.above(step, HURTS))
    until = next(hurting, len(steps))
    useful = [i for i, step in enumerate(steps[:until]) if test.below(step, 0.0)]
    last = useful[-1] if useful else -1
    tested = list(enumerate(steps[: until + 1]))
    unsure = [s for i, s in tested if beyond[i] and test.near(s, HURTS)]
    skipped = until < len(steps) and steps[until].start < trained < steps[until].end
    unsure_useful = [step for step in steps[last + 1 : until] if test.near(step, 0.0)]
    wanted = [
        test.clusters_for(step, limit)
        for limit, near in ((HURTS, unsure), (0.0, unsure_useful))
        for step in near
        if step.se is not None  # one cluster does not say how much they differ
    ]
    return Verdict(
        strategy,
        lengths[until],
        not unsure and not skipped,
        lengths[last + 1] if useful else None,
        not unsure and not unsure_useful,
        max(wanted, default=None),
        steps,
    )


def doublings(lengths: Sequence[int]) -> list[int]:
    """The lengths to test: each at least twice the one before, and the last of all."""
    chosen = [lengths[0]]
    for length in lengths[1:]:
        if length >= 2 * chosen[-1]:
            chosen.append(length)
    if chosen[-1] != lengths[-1]:
        chosen.append(lengths[-1])
    return chosen


def _step(fixed: Mapping[int, Totals], start: int, end: int) -> Step:
    change = estimate(fixed[end].minus(fixed[start]))
    return Step(start, end, change.mean, change.se)


class _Test:
    """Whether a step is on one side of a limit, from so many clusters."""

    def __init__(self, clusters: int) -> None:
        self.clusters = clusters
        self._errors = student(clusters - 1) if clusters > 1 else 0.0

    def above(self, step: Step, limit: float) -> bool:
        """Beyond doubt; what is not a number is above."""
        return not step.nll - self._half(step) <= limit

    def below(self, step: Step, limit: float) -> bool:
        """Beyond doubt."""
        return step.nll + self._half(step) < limit

    def near(self, step: Step, limit: float) -> bool:
        """Whether more text could put it on the other side."""
        return step.se is None or abs(step.nll - limit) <= self._half(step)

    def clusters_for(self, step: Step, limit: float) -> int:
        """About how many would tell it from the limit, if it is what it seems to be."""
        distance = max(abs(step.nll - limit), HURTS / 10)
        return math.ceil(self.clusters * (self._half(step) / distance) ** 2) + 1

    def _half(self, step: Step) -> float:
        return self._errors * (step.se or 0.0)

"""How far a strategy can be used: the verdict of a run, which grants what is shown, and no more.

The same target tokens are read after ever more text, and compared with no scaling at the trained
length. A length is granted if two things are shown at 95 %, over documents: that the tokens cost
no more than a margin on average, and that fewer than one document in ten collapses. The second is
an exact binomial test, for a mean over few documents says nothing of what is rare. Lengths are
tested in order, and none beyond the first that fails: so many tests err no oftener than one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import takewhile
from statistics import NormalDist

from ropex_eval.scores.statistics import Totals, binomial, estimate
from ropex_eval.scores.verdict import OPEN, SHOWN, WORSE, Step, Verdict

MARGIN = 0.05
"""Nats a token that a strategy may cost: five percent of perplexity."""

COLLAPSE = 0.3
"""Nats a token from which on a document has collapsed: its perplexity is a third higher."""

RARE = 0.1
"""Share of documents that is shown not to collapse less often than this."""

FEWEST = 29
"""Documents without which nothing is granted: 0.9 to this power is below 0.05."""

TELLING = 8
"""Fewest documents from which to estimate how many would decide: fewer show no spread."""

_SURE = 0.95
_POWER = 0.8  # of a test with as many documents as are said to tell
_TOO_MANY = 10  # times as many as were read: an effect so small may be none at all


def verdict(strategy: str, fixed: Mapping[int, Totals], plain: Totals, against: int) -> Verdict:
    """Safe and useful context of a strategy.

    The *safe* context is the longest such that at it, and at every measured length from the trained
    one on, the tokens are shown to cost no more than without scaling at the trained length, and a
    margin; the *useful* context is the longest safe one up to which they are shown to cost less.

    Args:
        strategy: Its text form.
        fixed: Length to the totals of the fixed targets, all over the same tokens.
        plain: The same totals without scaling, at the longest length within the trained one.
        against: That length.
    """
    lengths = [length for length in sorted(fixed) if length >= against]
    steps = tuple(_step(fixed[length].minus(plain), against, length) for length in lengths)
    if not all(totals.finite for totals in (plain, *fixed.values())):
        return Verdict(strategy, None, False, None, False, None, steps, finite=False)
    granted = list(takewhile(lambda step: step.outcome == SHOWN, steps))
    stopped = next((step for step in steps if step.outcome != SHOWN), None)
    decided = stopped is None or stopped.outcome == WORSE
    beyond = [step for step in granted if step.end > against]
    better = list(takewhile(lambda step: step.high is not None and step.high < 0, beyond))
    doubtful = next(iter(beyond[len(better) :]), None)
    useless = doubtful is not None and doubtful.low is not None and doubtful.low >= 0
    return Verdict(
        strategy, granted[-1].end if granted else None, decided, better[-1].end if better else None,
        useless or (decided and doubtful is None),
        _needed(None if decided else stopped, None if useless else doubtful, len(plain.sums)),
        steps,
    )  # fmt: skip


def _needed(stopped: Step | None, doubtful: Step | None, count: int) -> int | None:
    """Documents that would decide the step that ended a verdict, or whether one is useful."""
    if stopped is not None:
        return clusters_for(stopped, count)
    if doubtful is None or count < TELLING:
        return None
    return _within_reason(_for_mean(doubtful, 0.0, count), count)


def _step(change: Totals, start: int, end: int) -> Step:
    found = estimate(change)
    low, high = found.bounds(_SURE)
    collapsed = change.counted_above(COLLAPSE)
    return Step(
        start, end, found.mean, found.se, low, high, change.share_above(MARGIN),
        change.share_above(COLLAPSE), _outcome(change, low, high, collapsed),
    )  # fmt: skip


def _outcome(change: Totals, low: float | None, high: float | None, collapsed: int) -> str:
    if not any(change.sums.values()):
        return SHOWN  # the very same numbers: there is nothing to test
    if low is None or high is None or not change.finite:
        return OPEN
    count = len(change.sums)
    if high < MARGIN and binomial(collapsed, count, RARE) <= 1 - _SURE:
        return SHOWN
    often = 1 - binomial(collapsed - 1, count, RARE) <= 1 - _SURE
    return WORSE if low > MARGIN or often else OPEN


def clusters_for(step: Step, count: int) -> int | None:
    """About how many documents would decide a step, if it is what it seems to be.

    None if so few were read that they do not say, or if it seems too close to a limit.
    """
    if step.se is None or step.collapsed is None or count < TELLING:
        return None
    mean, share = _for_mean(step, MARGIN, count), _for_share(step.collapsed)
    if step.nll < MARGIN and step.collapsed < RARE:
        needed = max(mean, share, FEWEST)  # both must be shown
    else:
        reasons = ((step.nll > MARGIN, mean), (step.collapsed > RARE, share))
        needed = min((value for holds, value in reasons if holds), default=math.inf)
    return _within_reason(needed, count)


def _within_reason(needed: float, count: int) -> int | None:
    return max(math.ceil(needed), count + 1) if needed < _TOO_MANY * count else None


def _for_mean(step: Step, limit: float, count: int) -> float:
    """Clusters from which on a mean is told from a limit, with the power wanted."""
    distance = abs(step.nll - limit)
    spread = (step.se or 0.0) * math.sqrt(count)
    return ((_point(_SURE) + _point(_POWER)) * spread / distance) ** 2 if distance else math.inf


def _for_share(share: float) -> float:
    """Clusters from which on a share is told from the one that counts as rare."""
    if share == RARE:
        return math.inf
    spread = _point(_SURE) * math.sqrt(RARE * (1 - RARE))
    spread += _point(_POWER) * math.sqrt(share * (1 - share))
    return (spread / (share - RARE)) ** 2


def _point(chance: float) -> float:
    return NormalDist().inv_cdf(chance)

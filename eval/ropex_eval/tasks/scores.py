"""A sample for each context and depth of a task, and shares of samples with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist, mean, median

from ropex_eval.measure.answers import AnswerScorer
from ropex_eval.scores.results import Retrieval
from ropex_eval.tasks.context import Context
from ropex_eval.tasks.registry import Task

_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Sample:
    """The score of one question.

    Attributes:
        task: Name of the task.
        length: Tokens of the prompt with its answer.
        depth: Where the thing asked for is, from 0 to 1; None if the task has no places.
        sample: Number of the context.
        exact: Share of expected answers that greedy decoding would give (`Task.by_token`: of their
            tokens); 0 or 1 where there is one.
        logprob: Mean log-probability of the answers' tokens, in nats.
        rank: Median rank of the answers' tokens; 0 is best.
    """

    task: str
    length: int
    depth: float | None
    sample: int
    exact: float
    logprob: float
    rank: float


def ask(scorer: AnswerScorer, task: Task, context: Context) -> tuple[Sample, ...]:
    """Ask all questions of one context, which is read once."""
    branches = [branch for question in context.questions for branch in question.branches]
    answers = iter(scorer.score(context.trunk, branches))
    setting, found = context.setting, []
    for question in context.questions:
        mine = [next(answers) for _ in question.branches]
        ranks = [rank for answer in mine for rank in answer.ranks]
        right = [rank == 0 for rank in ranks] if task.by_token else [each.exact for each in mine]
        logprob = mean(value for answer in mine for value in answer.logprobs)
        place = (setting.task, setting.length, question.depth, setting.sample)
        found.append(Sample(*place, sum(right) / len(right), logprob, median(ranks)))
    return tuple(found)


def rows(strategy: str, samples: Iterable[Sample]) -> list[Retrieval]:
    """How often a strategy finds the answers, by task, length and depth, in the samples' order."""
    groups: dict[tuple[str, int, float | None], list[Sample]] = {}
    for each in samples:
        groups.setdefault((each.task, each.length, each.depth), []).append(each)
    found = []
    for place, group in groups.items():
        right, count = math.fsum(each.exact for each in group), len(group)
        logprob, rank = mean(each.logprob for each in group), median(each.rank for each in group)
        share = (right / count, *wilson(right, count))
        found.append(Retrieval(strategy, *place, *share, logprob, rank, count))
    return found


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """Ends of the 95 % interval of a share, by Wilson's score (1927).

    Unlike the usual standard error it has a width at 0 and at 1: 20 of 20 is 84 % to 100 %.

    Args:
        successes: May be a sum of shares; the interval is then wider than necessary.
        trials: How many there are.

    Raises:
        ValueError: There are no trials, or fewer than successes.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials} is not a share; at least one trial is needed")
    share, z2 = successes / trials, _Z * _Z
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    spread = math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    half = _Z * spread / (1 + z2 / trials)
    return max(0.0, middle - half), min(1.0, middle + half)

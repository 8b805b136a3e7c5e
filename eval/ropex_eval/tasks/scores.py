"""Measure a task: a sample for each context and depth, and shares of samples with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean, median
from typing import Any

from ropex_eval.measure.answers import AnswerScorer, Ids
from ropex_eval.tasks.context import Context, Source
from ropex_eval.tasks.registry import Task, contexts

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


@dataclass(frozen=True)
class Cell:
    """All samples of one length, and of one depth where there are several.

    Attributes:
        task: Name of the task.
        length: Tokens of the prompts with their answers.
        depth: None for all depths together, or if the task has no places.
        samples: How many there are.
        accuracy: Mean of `Sample.exact`.
        low: Lower end of its 95 % interval.
        high: Upper end.
        logprob: Mean of `Sample.logprob`, in nats.
    """

    task: str
    length: int
    depth: float | None
    samples: int
    accuracy: float
    low: float
    high: float
    logprob: float


def measure_task(
    model: Any, tokenizer: Any, task: Task, lengths: Sequence[int], depths: Sequence[float],
    samples: int, seed: int = 0, *, bos: int | None, haystack: Ids | None = None, chunk: int = 2048,
    advance: Callable[[int], None] = lambda length: None,
) -> tuple[Sample, ...]:  # fmt: skip
    """Ask all questions of a task, with the model as it is patched now.

    Args:
        model: A causal language model; its rotation must not depend on the length of the text.
        tokenizer: Of the model; may be None for `induction`.
        task: One of `TASKS`.
        lengths: Tokens of a prompt with its answer.
        depths: From 0 to 1; tasks without places ignore them.
        samples: Contexts of each length.
        seed: Of all random numbers.
        bos: Id in front of every prompt, or None.
        haystack: Ids of a text to hide things in; without it, filler sentences are made up.
        chunk: Tokens that are read at a time.
        advance: Called with the length of each context when it is done.

    Raises:
        ValueError: An argument is out of range, or a length is too short for the task.
    """
    source = Source.of(model, tokenizer, bos, haystack)
    if lengths:  # if the shortest fits, all do: nothing is measured in vain
        for _ in contexts(task, source, [min(lengths)], depths, samples, seed):
            pass
    scorer = AnswerScorer(model, chunk)
    found: list[Sample] = []
    for context in contexts(task, source, lengths, depths, samples, seed):
        found += ask(scorer, task, context)
        advance(context.setting.length)
    return tuple(found)


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


def cells(samples: Iterable[Sample], *, by_depth: bool = True) -> tuple[Cell, ...]:
    """Aggregate samples, in their order.

    Args:
        samples: Of one or several tasks.
        by_depth: One cell for each length and depth (a heatmap), or for each length (a curve).
    """
    groups: dict[tuple[str, int, float | None], list[Sample]] = {}
    for each in samples:
        depth = each.depth if by_depth else None
        groups.setdefault((each.task, each.length, depth), []).append(each)
    found = []
    for (task, length, depth), group in groups.items():
        right, count = math.fsum(each.exact for each in group), len(group)
        low, high = wilson(right, count)
        logprob = mean(each.logprob for each in group)
        found.append(Cell(task, length, depth, count, right / count, low, high, logprob))
    return tuple(found)


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

"""What a study would take, from the config alone: passes, tokens, time and memory."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ropex.strategies.base import Strategy
from ropex_eval.measure.feed_forward import ROWS
from ropex_eval.measure.memory import Shape, chunk_for
from ropex_eval.study.passes import Pass, passes
from ropex_eval.study.study import Study

_SECONDS = 0.3  # of trying how fast the device is
_SHARE = 0.7  # of the speed of a product of matrices that a whole model reaches


@dataclass(frozen=True)
class Cost:
    """What the passes of one strategy take.

    Attributes:
        passes: Number of texts that are read.
        tokens: Number of tokens that are read.
        work: Multiply-adds.
        longest: Tokens of the longest pass.
        chunk: Tokens that it is read by; None if at once.
        peak: Bytes that it takes, weights included.
    """

    passes: int
    tokens: int
    work: float
    longest: int
    chunk: int | None
    peak: int


def cost(
    shape: Shape, wanted: Sequence[Pass], limit: int | None, asked: Sequence[int] = ()
) -> Cost:
    """Add up passes.

    Args:
        shape: Of the model.
        wanted: The passes of one strategy.
        limit: Bytes that weights and a pass may take together; None if there is no limit.
        asked: Tokens of the contexts in which tasks are asked.

    Raises:
        MemoryError: The longest pass does not fit.
    """
    lengths = [*(each.length for each in wanted), *asked]
    longest = max(lengths, default=0)  # nothing may be asked for
    chunk = chunk_for(shape, longest, limit)
    return Cost(
        len(lengths), sum(lengths), sum(map(shape.work, lengths)), longest, chunk,
        shape.held() + shape.peak(longest, chunk),
    )  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What an evaluation would take.

    Attributes:
        study: What would be measured.
        shape: Of the model; decides memory and work.
        costs: Strategy to what its passes take.
        rate: Multiply-adds a second, as tried on the device.
        budget: Seconds after which no more excerpts would be begun; None for as much as it takes.
    """

    study: Study
    shape: Shape
    costs: dict[str, Cost]
    rate: float
    budget: float | None

    @property
    def seconds(self) -> dict[str, float]:
        """Strategy to about how long it takes, once the weights are loaded."""
        return {text: each.work / self.rate for text, each in self.costs.items()}

    @property
    def worst(self) -> Cost:
        """What the strategy takes that needs the most memory."""
        return max(self.costs.values(), key=lambda each: each.peak)

    @property
    def begun(self) -> int:
        """How many excerpts the budget allows to begin, as `running.run.Budget` counts."""
        count, total = len(self.study.corpus.excerpts), sum(self.seconds.values())
        if self.budget is None or self.budget >= total:
            return count
        return max(1, int(self.budget * count / total))


def planned(
    study: Study, device: str, strategies: Sequence[Strategy], asked: Sequence[int],
    limit: int | None, budget: float | None,
) -> Plan:  # fmt: skip
    """Count what a study would take; see `cost` and `Plan`."""
    dtype: torch.dtype = getattr(torch, study.dtype)
    shape, costs = Shape.of(study.skeleton, dtype), {}
    for each in strategies:
        wanted = passes(study.corpus, study.protocol, each, study.rope)
        costs[str(each)] = cost(shape, wanted, limit, asked)
    return Plan(study, shape, costs, speed(shape, device, dtype), budget)


def speed(shape: Shape, device: str, dtype: torch.dtype) -> float:
    """Multiply-adds a second of a device, by trying products as large as the model's."""
    width, inner = max(64, shape.hidden), max(64, shape.inner)
    left = torch.ones(min(ROWS, 512), width, device=device, dtype=dtype)
    right = torch.ones(width, inner, device=device, dtype=dtype)
    best, end = math.inf, time.perf_counter() + _SECONDS
    while best == math.inf or time.perf_counter() < end:
        began = time.perf_counter()
        (left @ right)[0, 0].item()  # waits for an accelerator
        best = min(best, time.perf_counter() - began)
    return _SHARE * left.numel() * inner / best


def in_words(seconds: float) -> str:
    """A time for people, such as `41 min` or `3 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h" if minutes < 48 * 60 else f"{minutes / 1440:.0f} days"

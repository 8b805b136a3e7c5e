"""What a study would take, from the config alone: passes, tokens, time and memory."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ropex_eval.measure.feed_forward import ROWS
from ropex_eval.measure.memory import Shape, chunk_for
from ropex_eval.study.passes import Pass

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


def cost(shape: Shape, wanted: list[Pass], limit: int | None) -> Cost:
    """Add up passes.

    Args:
        shape: Of the model.
        wanted: The passes of one strategy.
        limit: Bytes that weights and a pass may take together; None if there is no limit.

    Raises:
        MemoryError: The longest pass does not fit.
    """
    longest = max(each.length for each in wanted)
    chunk = chunk_for(shape, longest, limit)
    return Cost(
        len(wanted),
        sum(each.length for each in wanted),
        sum(shape.work(each.length) for each in wanted),
        longest,
        chunk,
        shape.held() + shape.peak(longest, chunk),
    )


def plain_work(shape: Shape, wanted: Mapping[int, int]) -> float:
    """Multiply-adds of a forward for every length, as other harnesses do.

    Args:
        shape: Of the model.
        wanted: Length to how many texts of that length are read.
    """
    return sum(shape.work(length) * count for length, count in wanted.items())


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

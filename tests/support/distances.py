"""At which distance each strategy with a position map sees a key, from the papers.

For a model trained at `TRAINED` tokens with eight pairs of dimensions and four heads, of which two
share a key; pair by pair of positions, so that a mistake would have to be made twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable

TRAINED = 32
Seen = Callable[[int, int, int, int], float | None]
"""The distance at which pair `i` of head `h` sees key `n` from query `m`; None if it is masked."""


def self_extend(group: int, near: int) -> Callable[[int, int, int, int], float]:
    def seen(m: int, n: int, i: int, h: int) -> float:
        return m - n if m - n < near else m // group + near - near // group - n // group

    return seen


def growing(m: int, n: int, i: int, h: int) -> float:
    return self_extend(math.ceil((m - 8) / (TRAINED - 1 - 8)), 8)(m, n, i, h)


def jet_long(m: int, n: int, i: int, h: int) -> float:
    group = math.ceil((m + 1) / TRAINED)
    return m - n if m - n < 16 else m // group - n // group


def stretch(m: int, n: int, i: int, h: int) -> float:
    slope = math.ceil(8 * (m - 8) / (TRAINED - 1 - 8)) / 8
    return m - n if m - n < 8 else 8 + (m - n - 8) / slope


def dca(m: int, n: int, i: int, h: int) -> float:
    chunk, near = 24, 4
    period = chunk - near
    between = m // period - n // period
    if between == 0:
        return m % period - n % period
    if between == 1:
        return min(m % period + period, chunk) - n % period
    return min(2 * period - 1, chunk) - n % period


def lampe(m: int, n: int, i: int, h: int) -> float:
    length = math.ceil((m + 1) * 8 / TRAINED) * TRAINED // 8
    budget = 0.75737 * TRAINED / (1 + math.exp(2.46664 - 0.8596 * length / TRAINED))
    rate = budget / (length - 1)
    if m - n < 8:
        return m - n
    return math.floor(m * rate) + 8 - math.floor(8 * rate) - math.floor(n * rate)


DISTANCES: dict[str, Seen] = {
    "rerope:0.5": lambda m, n, i, h: min(m - n, 16),
    "leaky_rerope:4,near=8": lambda m, n, i, h: m - n if m - n < 8 else 8 + (m - n - 8) / 4,
    "self_extend:4,near=10": self_extend(4, 10),
    "self_extend:4,near=10,shift=float": lambda m, n, i, h: (
        m - n if m - n < 10 else m // 4 + 10 - 10 / 4 - n // 4
    ),
    "self_extend": growing,
    "jet_long:0.5": jet_long,
    "stretch": stretch,
    "dca": dca,
    "string:0.33,near=3": lambda m, n, i, h: m - n if m - n < 11 else m - n - 11 + 3,
    "dpe:2/4/8/3": lambda m, n, i, h: self_extend((2, 4, 8, 3)[i // 2], 4)(m, n, i, h),
    "lampe:8": lampe,
    "ms_poe": lambda m, n, i, h: (m - n) / (1.2 + 0.6 * (h // 2)),
    "lm_infinite:12,sinks=3": lambda m, n, i, h: m - n if m - n < 12 else 12 if n < 3 else None,
    "streaming:12,sinks=3": lambda m, n, i, h: m - n if m - n < 9 else 11 - n if n < 3 else None,
}
"""By the text of the strategy, for queries that are mapped."""

BY_QUERY = ("self_extend", "jet_long:0.5", "stretch", "lampe:8")
"""Those whose map is inert within the trained length whatever `always` says."""

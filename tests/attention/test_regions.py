"""Attention under position maps against all scores at once, from the formulas of the papers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ropex
from ropex.attention.regions import Settings, attend_in_regions
from ropex.attention.schedule import Schedule
from ropex.attention.turns import Turn
from ropex.positions import PositionMap
from ropex.rope import Rope

TRAINED, DIM, HEADS, KEY_HEADS, TOKENS = 32, 16, 4, 2, 150
ROPE = Rope.standard(DIM, 100.0, TRAINED)
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


def dpe(m: int, n: int, i: int, h: int) -> float:
    group = (2, 4, 8, 3)[i // 2]  # of eight pairs
    return self_extend(group, 4)(m, n, i, h)


def lampe(m: int, n: int, i: int, h: int) -> float:
    eighths = math.ceil((m + 1) * 8 / TRAINED)
    length = eighths * TRAINED // 8
    budget = 0.75737 * TRAINED / (1 + math.exp(2.46664 - 0.8596 * length / TRAINED))
    rate = budget / (length - 1)
    if m - n < 8:
        return m - n
    return math.floor(m * rate) + 8 - math.floor(8 * rate) - math.floor(n * rate)


CASES: dict[str, Seen] = {
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
    "dpe:2/4/8/3": dpe,
    "lampe:8": lampe,
    "ms_poe": lambda m, n, i, h: (m - n) / (1.2 + 0.6 * (h // 2)),
    "lm_infinite:12,sinks=3": lambda m, n, i, h: (
        m - n if m - n < 12 else 12 if n < 3 else None
    ),
    "streaming:12,sinks=3": lambda m, n, i, h: (
        m - n if m - n < 9 else 11 - n if n < 3 else None
    ),
}  # fmt: skip


def expected(states: tuple[Tensor, ...], seen: Seen, first: int, settings: Settings) -> Tensor:
    """All scores at once, pair by pair of dimensions, from states that are not rotated."""
    q, k = (torch.complex(*each.chunk(2, -1)) for each in states[:2])
    k, v = (each.repeat_interleave(HEADS // KEY_HEADS, 1) for each in (k, states[2]))
    angles = torch.zeros(HEADS, TOKENS, TOKENS, DIM // 2, dtype=torch.float64)
    hidden = torch.ones(HEADS, TOKENS, TOKENS, dtype=torch.bool).triu(1)
    for m in range(TOKENS):
        for n in range(m + 1):
            for h in range(0, HEADS, HEADS // KEY_HEADS):
                for i in range(DIM // 2):
                    distance = seen(m, n, i, h) if m >= first else m - n
                    if distance is None:
                        hidden[h : h + 2, m, n] = True
                    else:
                        angles[h : h + 2, m, n, i] = distance * ROPE.inv_freq[i]
    turned = q[:, :, :, None] * torch.polar(torch.ones_like(angles), angles)
    scores = (turned * k[:, :, None].conj()).sum(-1).real * settings.scaling
    if settings.softcap is not None:
        scores = settings.softcap * (scores / settings.softcap).tanh()
    scores = scores.masked_fill(hidden, -math.inf)
    if settings.sinks is not None:
        sinks = settings.sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        return (torch.cat([scores, sinks], -1).softmax(-1)[..., :-1] @ v).transpose(1, 2)
    return (scores.softmax(-1) @ v).transpose(1, 2)


@pytest.fixture(scope="module")
def states() -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    heads = HEADS, KEY_HEADS, KEY_HEADS
    return tuple(torch.randn(2, each, TOKENS, DIM, dtype=torch.float64) for each in heads)


def map_of(text: str) -> PositionMap:
    positions = ropex.strategy(text).plan(ROPE).positions
    assert positions is not None
    return positions


def attended(states: tuple[Tensor, ...], text: str, settings: Settings, rows: slice) -> Tensor:
    at, turn = torch.arange(TOKENS), Turn(ROPE.inv_freq)
    angles = at[:, None] * ROPE.inv_freq
    query, key = (turn(each, angles.cos(), angles.sin()) for each in states[:2])
    schedule = Schedule(map_of(text), at[rows], at[: rows.stop])
    key, value = key[:, :, : rows.stop], states[2][:, :, : rows.stop]
    return attend_in_regions(query[:, :, rows], key, value, schedule, turn, settings)


SETTINGS = Settings(DIM**-0.5)
ALL = slice(0, TOKENS)


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("text", CASES)
def test_attention_is_that_of_the_paper(states: Any, text: str, always: bool) -> None:
    given = text + ("," if ":" in text else ":") + f"always={str(always).lower()}"
    if text == "self_extend" and always:
        with pytest.raises(ValueError, match="needs a group size"):
            map_of(given)
        return
    by_query = text in ("self_extend", "jet_long:0.5", "stretch", "lampe:8")
    first = 0 if always and not by_query else TRAINED
    found = attended(states, given, SETTINGS, ALL)
    wanted = expected(states, CASES[text], first, SETTINGS)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)

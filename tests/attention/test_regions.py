"""Attention under position maps against all scores at once, from the formulas of the papers."""

from __future__ import annotations

import math
from dataclasses import replace
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
from tests.support.distances import BY_QUERY, DISTANCES, TRAINED, Seen

DIM, HEADS, KEY_HEADS, TOKENS = 16, 4, 2, 150
ROPE = Rope.standard(DIM, 100.0, TRAINED)
SETTINGS = Settings(DIM**-0.5)
ALL = slice(0, TOKENS)
States = tuple[Tensor, ...]


@pytest.fixture(scope="module")
def states() -> States:
    torch.manual_seed(0)
    heads = HEADS, KEY_HEADS, KEY_HEADS
    return tuple(torch.randn(2, each, TOKENS, DIM, dtype=torch.float64) for each in heads)


def plainly(m: int, n: int, i: int, h: int) -> float:
    return m - n


def distances(seen: Seen, first: int) -> Tensor:
    """Of all pairs, `(heads, queries, keys, pairs)`; NaN where a key is masked."""
    found = torch.full((HEADS, TOKENS, TOKENS, DIM // 2), math.nan, dtype=torch.float64)
    differ = any(seen(140, 0, 0, 0) != seen(140, 0, i, h) for i in range(DIM // 2) for h in (0, 2))
    for m in range(TOKENS):
        rule = seen if m >= first else plainly
        for n in range(m + 1):
            if not differ:
                value = rule(m, n, 0, 0)
                found[:, m, n] = math.nan if value is None else value
                continue
            for h in range(HEADS):
                found[h, m, n] = torch.tensor(
                    [rule(m, n, i, h) for i in range(DIM // 2)], dtype=torch.float64
                )
    return found


def expected(states: States, seen: Seen, first: int, settings: Settings) -> Tensor:
    """All scores at once, from states that are not rotated."""
    q, k = (torch.complex(*each.chunk(2, -1)) for each in states[:2])
    k, v = (each.repeat_interleave(HEADS // KEY_HEADS, 1) for each in (k, states[2]))
    angles = distances(seen, first) * ROPE.inv_freq
    hidden = angles.isnan().any(-1)
    angles = angles.nan_to_num()
    turned = q[:, :, :, None] * torch.polar(torch.ones_like(angles), angles)
    scores = (turned * k[:, :, None].conj()).sum(-1).real * settings.scaling
    if settings.softcap is not None:
        scores = settings.softcap * (scores / settings.softcap).tanh()
    if settings.mask is not None:
        scores = scores + settings.mask
    scores = scores.masked_fill(hidden, -math.inf)
    if settings.sinks is not None:
        sinks = settings.sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        return (torch.cat([scores, sinks], -1).softmax(-1)[..., :-1] @ v).transpose(1, 2)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def map_of(text: str) -> PositionMap:
    positions = ropex.strategy(text).plan(ROPE).positions
    assert positions is not None
    return positions


def attended(states: States, text: str, settings: Settings = SETTINGS, rows: slice = ALL) -> Tensor:
    at, turn = torch.arange(TOKENS), Turn(ROPE.inv_freq)
    angles = at[:, None] * ROPE.inv_freq
    query, key = (turn(each, angles.cos(), angles.sin()) for each in states[:2])
    schedule = Schedule(map_of(text), at[rows], at[: rows.stop])
    key, value = key[:, :, : rows.stop], states[2][:, :, : rows.stop]
    return attend_in_regions(query[:, :, rows], key, value, schedule, turn, settings)


@pytest.mark.parametrize("text", DISTANCES)
def test_attention_is_that_of_the_paper(states: States, text: str) -> None:
    first = 0 if text.startswith("string") else TRAINED
    wanted = expected(states, DISTANCES[text], first, SETTINGS)
    torch.testing.assert_close(attended(states, text), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("text", sorted({*DISTANCES} - {*BY_QUERY, "string:0.33,near=3"}))
def test_a_map_that_is_always_on_reaches_the_first_queries(states: States, text: str) -> None:
    given = text + (",always=true" if ":" in text else ":always=true")
    wanted = expected(states, DISTANCES[text], 0, SETTINGS)
    torch.testing.assert_close(attended(states, given), wanted, rtol=0, atol=1e-12)


def test_an_automatic_group_is_never_always_on() -> None:
    with pytest.raises(ValueError, match="needs a group size, as in self_extend:8"):
        map_of("self_extend:always=true")


@pytest.mark.parametrize(
    "settings",
    [
        replace(SETTINGS, softcap=2.0),
        replace(SETTINGS, sinks=torch.linspace(-1, 1, HEADS, dtype=torch.float64)),
        replace(SETTINGS, mask=torch.randn(2, 1, TOKENS, TOKENS, dtype=torch.float64)),
    ],
    ids=["softcap", "sinks", "mask"],
)
@pytest.mark.parametrize("text", ["rerope:0.5", "dca", "streaming:12,sinks=3"])
def test_what_families_ask_for_besides_holds(states: States, text: str, settings: Settings) -> None:
    wanted = expected(states, DISTANCES[text], TRAINED, settings)
    torch.testing.assert_close(attended(states, text, settings), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("text", DISTANCES)
def test_queries_may_come_in_any_pieces(states: States, text: str) -> None:
    whole = attended(states, text)
    for rows in (slice(0, 20), slice(20, 60), slice(60, 61), slice(149, 150)):
        part = attended(states, text, rows=rows)
        torch.testing.assert_close(part, whole[:, rows], rtol=0, atol=1e-12)


@pytest.mark.parametrize("text", ["self_extend", "streaming:12,sinks=3"])
def test_gradients_are_those_of_all_scores(states: States, text: str) -> None:
    both = []
    for naive in (False, True):
        given = tuple(each.clone().requires_grad_() for each in states)
        rule = DISTANCES[text]
        out = expected(given, rule, TRAINED, SETTINGS) if naive else attended(given, text)
        out.square().sum().backward()
        both.append([each.grad for each in given])
    for found, wanted in zip(*both, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rerope:64", "near is 64 tokens, and the model is trained at 32"),
        ("dca:0.25,near=0.5", "near is 16 tokens, it must be below the chunk of 8 tokens"),
        ("string:8,near=16", "near is 16, it must be at most the shift of 8 tokens"),
        ("streaming:4,sinks=4", "sinks is 4, it must be below the window of 4 tokens"),
        ("dpe:1/2/3/4/5/6/7/8/9", "it must be at most 8 sizes, one for each pair"),
        ("rerope+dca", "dca: the positions are mapped already"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        map_of(text)


def test_a_text_form_keeps_shares_and_tokens_apart(states: Any) -> None:
    for text in ("rerope", "rerope:0.25", "rerope:2048", "rerope:1", "dca:near=2048"):
        assert str(ropex.strategy(text)) == text.replace("rerope:0.5", "rerope")

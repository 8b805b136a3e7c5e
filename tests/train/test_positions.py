"""Samplers of positions against the formulas of the papers, worked out by enumeration."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

from ropex.train.positions import CREAM, SAMPLERS, Drawn, PoSE, RandomPositions

DRAWS = 4000
Weighted = Iterator[tuple[float, set[int]]]
SOME = (
    PoSE(12, 48), PoSE(12, 48, chunks=3), PoSE(13, 40), CREAM(13, 50), CREAM(30, 90),
    CREAM(12, 48), CREAM(9, 13), RandomPositions(12, 48),
)  # fmt: skip


def draws(sampler: Any, length: int | None = None, count: int = DRAWS) -> list[Drawn]:
    rng = random.Random(0)
    return [sampler.draw(length or sampler.window, rng) for _ in range(count)]


def frequencies(rows: list[torch.Tensor], reach: int) -> torch.Tensor:
    """How often each index below `reach` is in a row."""
    return torch.bincount(torch.cat(rows), minlength=reach).double() / len(rows)


def expected(weighted: Weighted, reach: int) -> torch.Tensor:
    total = torch.zeros(reach, dtype=torch.float64)
    for weight, places in weighted:
        total[list(places)] += weight
    return total


def assert_close(seen: torch.Tensor, wanted: torch.Tensor) -> None:
    """Within five standard errors everywhere, and exact where there is no chance."""
    error = (wanted * (1 - wanted)).clamp(min=0).sqrt() / DRAWS**0.5
    assert ((seen - wanted).abs() <= 5 * error + 1e-9).all()


def pose(window: int, chunks: int, reach: int) -> Weighted:
    """PoSE: each first length of 1 to (window + 1) / chunks, each rising row of skips from 0."""
    lengths = list(product(range(1, (window + 1) // chunks + 1), repeat=chunks - 1))
    for first in lengths:
        sizes = [*first, window - sum(first)]
        for weight, skips in rising(chunks - 1, 0, reach - window):
            places: set[int] = set()
            start = 0
            for size, skip in zip(sizes, [0, *skips], strict=True):
                places |= set(range(start + skip, start + skip + size))
                start += size
            yield weight / len(lengths), places


def rising(count: int, low: int, high: int) -> Iterator[tuple[float, list[int]]]:
    if not count:
        yield 1.0, []
        return
    for first in range(low, high + 1):
        for weight, rest in rising(count - 1, first, high):
            yield weight / (high + 1 - low), [first, *rest]


def cream(window: int, target: int) -> Weighted:
    """CREAM as the authors draw it, for whole factors: a grid of 1000 points, and its inverse."""
    factor = target // window
    points = np.linspace(2, 2 * factor, 1000)
    below = torch.special.ndtr(torch.from_numpy(points - (1 + factor)) / 3).numpy()
    chances = (np.arange(200_000) + 0.5) / 200_000
    halves, counts = np.unique(np.interp(chances, below, points).astype(int), return_counts=True)
    for edge, (half, count) in product(
        (window // 3, min(4 * factor, window // 3)), zip(halves.tolist(), counts, strict=True)
    ):
        middle = window - 2 * edge
        ends = range(int(edge + (middle - 1) * half / 2), int(half / 2 * window) - edge)
        for end in ends:
            places = {*range(edge), *range(end + 1 - middle, end + 1)}
            yield (count / 200_000 / 2 / len(ends), places | set(range(target - edge, target)))


@pytest.mark.parametrize(("chunks", "window"), [(2, 12), (2, 13), (3, 11), (4, 4)])
def test_pose_takes_each_position_as_often_as_the_paper(window: int, chunks: int) -> None:
    seen = [drawn.positions for drawn in draws(PoSE(window, 40, chunks))]
    assert_close(frequencies(seen, 40), expected(pose(window, chunks, 40), 40))


@pytest.mark.parametrize("chunks", [2, 3])
def test_pose_takes_each_token_of_a_longer_row_as_often(chunks: int) -> None:
    seen = [drawn.tokens for drawn in draws(PoSE(12, 40, chunks), length=25)]
    assert_close(frequencies(seen, 25), expected(pose(12, chunks, 25), 25))


def test_pose_skips_text_and_positions_apart() -> None:
    skips = [(int(d.tokens[-1]) - 3, int(d.positions[-1]) - 3) for d in draws(PoSE(4, 8), length=8)]
    counts = torch.zeros(5, 5, dtype=torch.float64)
    for text, place in skips:
        counts[text, place] += 1 / DRAWS
    assert_close(counts, torch.full_like(counts, 1 / 25))


def test_the_first_chunk_of_pose_has_up_to_half_the_window() -> None:
    for window in (8, 9):
        jumps = [torch.diff(d.positions).argmax() for d in draws(PoSE(window, 10**6))]
        firsts = torch.stack(jumps) + 1
        half = (window + 1) // 2
        wanted = torch.tensor([0.0] + [1 / half] * half).double()
        assert_close(firsts.bincount(minlength=half + 1) / DRAWS, wanted)


@pytest.mark.parametrize(("window", "target"), [(60, 180), (12, 96), (30, 60), (13, 52)])
def test_cream_takes_each_position_as_often_as_the_authors(window: int, target: int) -> None:
    seen = [drawn.positions for drawn in draws(CREAM(window, target))]
    wanted = expected(cream(window, target), target).clamp(max=1)
    assert_close(frequencies(seen, target), wanted)


def test_cream_keeps_both_ends() -> None:
    for drawn in draws(CREAM(60, 180)):
        assert drawn.positions[:12].tolist() == list(range(12))  # 4 F
        assert drawn.positions[-12:].tolist() == list(range(168, 180))
        jumps = torch.diff(drawn.positions) != 1
        assert jumps.sum() <= 2  # a head, a middle and a tail
        assert set(jumps.nonzero().flatten().tolist()) <= {11, 19, 39, 47}


def test_cream_reads_a_longer_row_at_its_own_positions() -> None:
    for drawn in draws(CREAM(60, 180), length=180):
        assert torch.equal(drawn.tokens, drawn.positions)
    for drawn in draws(CREAM(60, 180), length=100):
        both = {*range(20), *range(160, 180)} <= set(drawn.positions.tolist())
        edge = 20 if both else 12
        last = int(drawn.positions[-edge - 1])
        back = max(last - (100 - edge - 1), 0)  # how far the middle moves to end before the tail
        assert torch.equal(drawn.tokens[edge:-edge], drawn.positions[edge:-edge] - back)
        assert drawn.tokens[-edge:].tolist() == list(range(100 - edge, 100))


def test_random_positions_are_a_sample_of_all() -> None:
    seen = [drawn.positions for drawn in draws(RandomPositions(12, 48))]
    assert_close(frequencies(seen, 48), torch.tensor([1.0] + [11 / 47] * 47).double())
    assert len({tuple(places.tolist()) for places in seen}) > DRAWS * 0.99


@pytest.mark.parametrize("sampler", SOME, ids=str)
def test_the_draws_cover_the_target_and_its_largest_distance(sampler: Any) -> None:
    seen = [drawn.positions for drawn in draws(sampler)]
    assert set(torch.cat(seen).tolist()) == set(range(sampler.target))
    assert max(int(places[-1] - places[0]) for places in seen) == sampler.target - 1


@pytest.mark.parametrize("sampler", SOME, ids=str)
def test_flash_attention_takes_a_draw_for_one_sequence(sampler: Any) -> None:
    for drawn in draws(sampler, count=50):
        (starts, _), _ = prepare_fa_kwargs_from_position_ids(drawn.positions[None])
        assert starts.tolist() == [0, sampler.window]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(SAMPLERS)),
    st.integers(3, 70),
    st.integers(0, 500),
    st.integers(0, 600),
    st.integers(0, 2**32),
    st.integers(2, 3),
)
def test_every_draw_is_in_order_and_in_range(
    name: str, window: int, more: int, longer: int, seed: int, chunks: int
) -> None:
    settings = {"chunks": chunks} if name == "pose" else {}
    sampler = SAMPLERS[name](window, window + more, **settings)
    length = window + longer
    drawn, again = (sampler.draw(length, random.Random(seed)) for _ in range(2))
    for places, reach in ((drawn.tokens, length), (drawn.positions, window + more)):
        assert places.dtype == torch.int64
        assert places.shape == (window,)
        assert (places.diff() > 0).all()
        assert 0 == places[0] <= places[-1] < reach
    if not longer:
        assert torch.equal(drawn.tokens, torch.arange(window))
    if not more:
        assert torch.equal(drawn.positions, torch.arange(window))
    assert torch.equal(drawn.tokens, again.tokens)
    assert torch.equal(drawn.positions, again.positions)


@pytest.mark.parametrize("sampler", SOME, ids=str)
def test_only_the_given_chance_decides(sampler: Any) -> None:
    def positions(seed: int) -> list[int]:
        rng = random.Random(seed)
        return [place for _ in range(9) for place in sampler.draw(99, rng).positions.tolist()]

    random.seed(1)
    torch.manual_seed(1)
    before = positions(5), random.getstate(), torch.get_rng_state()
    random.seed(2)
    torch.manual_seed(2)
    assert positions(5) == before[0] != positions(6)
    random.seed(1)
    torch.manual_seed(1)
    positions(5)
    assert random.getstate() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PoSE(1, 8), "a window of 1 tokens is too short; give 2 or more"),
        (lambda: PoSE(3, 8, chunks=4), "a window of 3 tokens is too short; give 4 or more"),
        (lambda: PoSE(8, 16, chunks=1), "1 chunks leave nothing between them to skip"),
        (lambda: CREAM(2, 8), "a window of 2 tokens is too short; give 3 or more"),
        (lambda: RandomPositions(1, 8), "a window of 1 tokens is too short"),
        (lambda: CREAM(16, 8), "the target of 8 positions is below the window of 16 tokens"),
    ],
)
def test_wrong_lengths_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("sampler", SOME, ids=str)
def test_a_row_below_the_window_is_refused(sampler: Any) -> None:
    with pytest.raises(ValueError, match="a row of 8 tokens does not fill the window of"):
        sampler.draw(8, random.Random(0))


def test_samplers_are_values() -> None:
    assert PoSE(4, 8) == PoSE(4, 8, chunks=2) != PoSE(4, 8, chunks=3)
    with pytest.raises(FrozenInstanceError):
        CREAM(4, 8).window = 5  # type: ignore[misc]

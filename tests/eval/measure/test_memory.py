"""Runs that are short of memory: what a pass takes, and what happens where it is too much."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ropex.sizes import gib
from ropex_eval.measure import losses as nll
from ropex_eval.measure import reader as measure
from ropex_eval.measure.feed_forward import ROWS
from ropex_eval.measure.losses import BYTES_PER_LOGIT, ROWS_BYTES, Scorer
from ropex_eval.measure.memory import Shape, chunk_for, is_out_of_memory, parse_bytes
from ropex_eval.measure.reader import Reader
from ropex_eval.scores.protocol import Protocol
from ropex_eval.study.passes import Pass
from ropex_eval.study.study import Study
from tests.support.models import tiny_causal
from tests.support.rounding import LOSS
from tests.support.tiny_eval import Watch, corpus_of, start

LONG = Protocol.of((48, 1100), 4, ("local", "fixed"))


# Sizes.


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("20GiB", 20 * 2**30), ("20G", 20 * 2**30), ("20g", 20 * 2**30), ("1.5gib", 3 * 2**29),
        ("512MiB", 2**29), (" 512 m ", 2**29), ("20GB", 20 * 10**9), ("0.5kb", 500),
        ("1TiB", 2**40),
    ],
)  # fmt: skip
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "20", "GiB", "-1G", "0G", "20X", "20GiBs", "1e30T", "nanG", "infG", "20 G B x",
             "2i", "20b"]
)  # fmt: skip
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size; write 20GiB or 512MiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "shown"), [(3 * 2**29, "1.5 GiB"), (2**29, "0.5 GiB"), (2**20 * 7.4, "7 MiB")]
)
def test_sizes_are_shown_for_people(size: float, shown: str) -> None:
    assert gib(size) == shown


def test_work_is_linear_in_the_weights_and_quadratic_in_attention(causal: Any) -> None:
    shape = Shape.of(causal)
    weights = sum(parameter.numel() for parameter in causal.parameters())
    for length in (1, 10, 1000, 2**17):
        attention = 2 * 4 * 8 * length**2  # in each of two layers, four heads of eight
        assert shape.work(length) == weights * length + attention


def test_token_meets_some_experts_only() -> None:
    model = tiny_causal("mixtral", num_local_experts=8, num_experts_per_tok=2)
    shape = Shape.of(model)
    inside = sum(p.numel() for name, p in model.named_parameters() if "experts" in name)
    assert inside > 0
    assert shape.weights - shape.active == inside * 6 // 8


def test_shape_is_known_without_weights() -> None:
    with torch.device("meta"):
        skeleton = tiny_causal()
    assert Shape.of(skeleton) == Shape.of(tiny_causal())
    assert Shape.of(skeleton, torch.bfloat16).held() == Shape.of(skeleton).held() / 2


def test_peak_is_what_the_pieces_and_the_cache_take() -> None:
    shape = Shape.of(tiny_causal())
    logits = max(ROWS_BYTES, BYTES_PER_LOGIT * 300)
    a_token = 4 * (3 * 32 + 2 * 32 + 2 * 16)
    assert shape.peak(100) == 100 * (a_token + 4 * 3 * 48) + logits
    assert shape.peak(10 * ROWS) == 10 * ROWS * a_token + ROWS * 4 * 3 * 48 + logits
    cache = 4 * 2 * 2 * 16 * 1000  # keys and values of two layers
    assert shape.peak(1000, 10) == 10 * (a_token + 4 * 3 * 48) + cache + logits
    assert shape.peak(100, batch=3) - logits == 3 * (shape.peak(100) - logits)


@pytest.mark.parametrize("length", [700, 2**15, 2**15 + 1, 2**17])
@pytest.mark.parametrize("weights", [50_000, 10**9])
def test_pieces_are_as_long_as_memory_allows(causal: Any, length: int, weights: int) -> None:
    shape = dataclasses.replace(Shape.of(causal), weights=weights)
    assert chunk_for(shape, length, None) is None
    assert chunk_for(shape, length, shape.held() + shape.peak(length)) is None
    longest = chunk_for(shape, length, shape.held() + shape.peak(length) - 1)
    least = shape.held() + shape.peak(length, 256)
    assert longest is None or longest < length
    assert chunk_for(shape, length, least) == 256
    for limit in (least, 2 * least - shape.held()):
        chunk = chunk_for(shape, length, limit)
        if chunk is not None:
            assert math.log2(chunk).is_integer()
            assert shape.held() + shape.peak(length, chunk) <= limit
            assert 2 * chunk >= length or shape.held() + shape.peak(length, 2 * chunk) > limit
    with pytest.raises(MemoryError, match=f"{length} tokens take .* in pieces of 256, and .* are"):
        chunk_for(shape, length, least - 1)


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (MemoryError(), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_lack_of_memory_is_told_from_other_errors(error: BaseException, known: bool) -> None:
    assert is_out_of_memory(error) == known


# Passes that do not fit.


def limited(monkeypatch: pytest.MonkeyPatch, tokens: int) -> list[tuple[int, int]]:
    """Let memory run out where more tokens are read at a time; texts and tokens of each try."""
    seen: list[tuple[int, int]] = []
    real = Scorer.nll

    def small(self: Scorer, ids: Tensor, goals: Tensor, rows: Any, chunk: int | None) -> Tensor:
        seen.append((len(ids), chunk or ids.shape[1]))
        if seen[-1][0] * seen[-1][1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, ids, goals, rows, chunk)

    monkeypatch.setattr(Scorer, "nll", small)
    return seen


@pytest.mark.parametrize(
    ("tokens", "tries", "told"),
    [
        (10**6, [(3, 48), (3, 1100)], []),
        (2500, [(3, 48), (3, 1100), (1, 1100), (1, 1100), (1, 1100)], []),
        (600, [(3, 48), (3, 1100), (1, 1100), (1, 550), (1, 550), (1, 550)], [550]),
        (300, [(3, 48), (3, 1100), (1, 1100), (1, 550), (1, 275), (1, 275), (1, 275)], [550, 275]),
    ],
)
def test_memory_that_runs_out_costs_time_and_changes_no_number(
    make: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: int,
    tries: list[tuple[int, int]], told: list[int],
) -> None:  # fmt: skip
    whole = start(make(LONG), tmp_path / "whole", "yarn:4")
    sentences: list[str] = []
    seen = limited(monkeypatch, tokens)
    results = start(make(LONG), tmp_path / "out", "yarn:4", tell=sentences.append)
    assert seen == tries
    assert sentences == [
        f"out of memory: texts are read {size} tokens at a time from here on" for size in told
    ]
    for row, expected in zip(results.results, whole.results, strict=True):
        assert row.nll == pytest.approx(expected.nll, abs=LOSS)


def test_short_texts_are_read_one_by_one_where_they_do_not_fit_together(
    make: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = limited(monkeypatch, 60)
    start(make(Protocol.of((8, 48))), tmp_path / "out", "none")
    assert seen == [(3, 8), (3, 48), (1, 48), (1, 48), (1, 48)]


def test_pass_that_never_fits_is_told_in_a_sentence_and_the_rest_is_kept(
    make: Callable[..., Study], tmp_path: Path, measured: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        limited(patched, 200)
        wanted = (
            "1100 tokens, read 256 at a time; smaller --lengths .* need less, and what .* is kept"
        )
        with pytest.raises(MemoryError, match=wanted) as caught:
            start(make(LONG), tmp_path / "out", "yarn:4")
    assert "\n" not in str(caught.value)
    assert [each.length for _, each in measured.passes] == [48] * 3
    measured.take()
    start(make(LONG), tmp_path / "out", "yarn:4")
    assert [each.length for _, each in measured.passes] == [1100] * 3


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    make: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Scorer, "nll", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        start(make(LONG), tmp_path / "out", "none")


def test_limit_is_kept_by_reading_pieces(
    causal: Any, scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = corpus_of(tmp_path / "texts", 1100, 1)
    each = Pass(0, 0, True, 1100, 1100, ((3, 1099),))
    seen = limited(monkeypatch, 10**6)
    shape = Shape.of(causal)
    whole = Reader(scorer).read([each], [each.ids(corpus)])
    limit = shape.held() + shape.peak(1100, 512)
    pieces = Reader(scorer, limit).read([each], [each.ids(corpus)])
    assert seen == [(1, 1100), (1, 512)]
    torch.testing.assert_close(pieces, whole, rtol=0, atol=LOSS)
    with pytest.raises(MemoryError, match=r"1100 tokens take .* in pieces of 256"):
        Reader(scorer, shape.held()).read([each], [each.ids(corpus)])


def test_model_that_cannot_be_read_in_pieces_is_refused_where_it_would_have_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = corpus_of(tmp_path / "texts", 1100, 1)
    each = Pass(0, 0, True, 1100, 1100, ((3, 1099),))
    scorer = Scorer(tiny_causal())
    scorer.chunkable = False
    shape = Shape.of(scorer.model)
    limit = shape.held() + shape.peak(1100, 512)
    with pytest.raises(MemoryError, match="this model cannot be read in pieces; give more"):
        Reader(scorer, limit).read([each], [each.ids(corpus)])
    seen = limited(monkeypatch, 600)
    with pytest.raises(MemoryError, match="out of memory at 1100 tokens"):
        Reader(scorer).read([each], [each.ids(corpus)])
    assert seen == [(1, 1100)]


def test_model_with_a_head_of_its_own_is_read_in_pieces_whose_logits_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = corpus_of(tmp_path / "texts", 1100, 1)
    each = Pass(0, 0, True, 1100, 1100, ((3, 1099),))
    monkeypatch.setattr(nll, "_finishes", lambda config: iter([]))
    monkeypatch.setattr(measure, "_LOGITS_BYTES", 4 * 300 * 400)
    scorer = Scorer(tiny_causal())
    seen = limited(monkeypatch, 10**6)
    Reader(scorer).read([each], [each.ids(corpus)])
    assert seen == [(1, 400)]

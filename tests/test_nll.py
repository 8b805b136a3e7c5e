"""Scores of tokens against all logits at once, and the definitions read from a table of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tiny_eval import (
    BY_LENGTH,
    LENGTHS,
    STATIC,
    TRAINED,
    plain_nll,
    tiny_causal,
    tiny_tokenizer,
    words,
)
from torch import Tensor, nn

import ropex
from ropex.rope import Plan, Rope
from ropex.strategies.base import Length, LengthClass, Strategy
from ropex_eval import nll
from ropex_eval.nll import Scorer
from ropex_eval.table import METRICS, NllTable, length_classes, mean_nll, perplexity

LONG = LENGTHS[-1]
ROPE = Rope.standard(8, 10_000.0, TRAINED)


def sequence(length: int = LONG, seed: int = 0) -> Tensor:
    text = words(length - 1, seed)
    return torch.tensor([0, *tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]])


IDS = sequence()


def rows_per_call(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that the rows of each later call of `module` are added to."""
    seen: list[int] = []
    forward = module.forward

    def counted(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(hidden.shape[-2])
        return forward(hidden, *args, **kwargs)

    monkeypatch.setattr(module, "forward", counted)
    return seen


# The scorer.


@pytest.mark.parametrize("text", [*STATIC, *BY_LENGTH])
@pytest.mark.parametrize("length", [2, 24, LONG])
def test_scores_are_those_of_a_plain_forward_pass(
    causal: Any, scorer: Scorer, text: str, length: int
) -> None:
    with ropex.patch(causal, text):
        scores, plain = scorer.nll(IDS[:length]), plain_nll(causal, IDS[:length])
    assert scores.shape == (length - 1,)
    assert (scores.dtype, scores.device.type) == (torch.float32, "cpu")
    torch.testing.assert_close(scores.double(), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("last", [1, 5, LONG - 2, LONG - 1])
def test_last_scores_are_the_end_of_all_scores(scorer: Scorer, last: int) -> None:
    scores = scorer.nll(IDS, last)
    assert scores.shape == (last,)
    torch.testing.assert_close(scores, scorer.nll(IDS)[-last:], rtol=0, atol=1e-5)


def test_scores_are_shifted_right(scorer: Scorer) -> None:
    before = scorer.nll(IDS)
    changed = IDS.clone()
    changed[40] = changed[40] + 1
    after = scorer.nll(changed)
    moved = (before - after).abs() > 1e-6
    assert not moved[:39].any()  # score 39 is that of token 40, and the first to see it
    assert moved[39]
    assert moved[40:].any()


@pytest.mark.parametrize("rows", [1, 2, 7, 94, 95, 1000])
@pytest.mark.parametrize("last", [None, 10])
def test_chunks_of_rows_do_not_change_scores(
    causal: Any, scorer: Scorer, monkeypatch: pytest.MonkeyPatch, rows: int, last: int | None
) -> None:
    monkeypatch.setattr(nll, "_CHUNK_BYTES", rows * nll._BYTES_PER_LOGIT * 300)
    seen = rows_per_call(causal.lm_head, monkeypatch)
    scores = scorer.nll(IDS, last)
    wanted = LONG - 1 if last is None else last
    assert sum(seen) == wanted  # rows that are not scored get no logits
    assert max(seen) == min(rows, wanted)
    torch.testing.assert_close(scores.double(), plain_nll(causal, IDS)[-wanted:], rtol=0, atol=1e-5)


def test_logits_never_take_more_than_the_budget_or_the_hidden_states(
    causal: Any, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nll, "_CHUNK_BYTES", 0)
    for length in (8, 2000):
        with monkeypatch.context() as patched:
            seen = rows_per_call(causal.lm_head, patched)
            scorer.nll(sequence(length))
        assert sum(seen) == length - 1
        assert max(seen) * nll._BYTES_PER_LOGIT * 300 <= max(length * 32, 10 * 300)


@pytest.mark.parametrize(
    ("family", "changes", "whole"),
    [
        ("llama", {}, True),
        ("llama", {"tie_word_embeddings": True}, True),
        ("gemma2", {"final_logit_softcapping": 5.0}, False),
        ("gemma2", {"final_logit_softcapping": None}, True),
        ("cohere", {"logit_scale": 0.25}, False),
        ("granite", {"logits_scaling": 8.0}, False),
        ("qwen2", {}, True),
    ],
)
def test_head_is_used_alone_only_where_it_is_the_whole_head(
    monkeypatch: pytest.MonkeyPatch, family: str, changes: dict[str, Any], whole: bool
) -> None:
    model = tiny_causal(family, **changes)
    scorer = Scorer(model)
    assert scorer.chunked == whole
    monkeypatch.setattr(nll, "_CHUNK_BYTES", 0)
    plain = plain_nll(model, IDS)
    torch.testing.assert_close(scorer.nll(IDS).double(), plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(scorer.nll(IDS, 9).double(), plain[-9:], rtol=0, atol=1e-5)


def test_scores_of_a_half_precision_model_are_summed_in_float32() -> None:
    model = tiny_causal().to(torch.bfloat16)
    scorer = Scorer(model)
    scores = scorer.nll(IDS)
    assert scorer.chunked
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), plain_nll(model, IDS), rtol=0, atol=1e-5)


def test_scoring_needs_no_gradient(scorer: Scorer) -> None:
    assert not scorer.nll(IDS).requires_grad
    assert all(parameter.grad is None for parameter in scorer.model.parameters())


# Definitions.


def table_of(lengths: dict[int, int], fixed: dict[int, int], windows: int = 3) -> NllTable:
    generator = torch.Generator().manual_seed(0)
    return NllTable(
        {n: torch.rand(windows, size, generator=generator) for n, size in lengths.items()},
        {n: torch.rand(windows, size, generator=generator) for n, size in fixed.items()},
    )


def by_hand(rows: list[list[float]]) -> tuple[float, int]:
    """Sum over tokens divided by their number, in float64."""
    values = [value for row in rows for value in row]
    return math.fsum(values) / len(values), len(values)


@pytest.mark.parametrize("length", [4, 10, 16, 17, 40])
def test_definitions_read_their_tokens_from_the_table(length: int) -> None:
    table = table_of({16: 15, 40: 39}, {4: 3, 10: 3, 16: 3, 17: 3})
    source = table.prefix[16 if length <= 16 else 40].tolist()
    first = [row[: length - 1] for row in source]
    last = [row[-3:] for row in first]
    fixed = last if length == 40 else table.fixed[length].tolist()
    for metric, rows in (("prefix", first), ("local", last), ("fixed", fixed)):
        read, wanted = mean_nll(table, metric, length, 3), by_hand(rows)
        assert read == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    ("metric", "length", "tokens"),
    [("prefix", 40, 117), ("prefix", 2, 3), ("local", 40, 9), ("local", 4, 9), ("fixed", 10, 9)],
)
def test_every_token_is_counted_once(metric: str, length: int, tokens: int) -> None:
    assert mean_nll(table_of({40: 39}, {10: 3}), metric, length, 3)[1] == tokens


def test_mean_is_taken_in_float64() -> None:
    row = torch.full((1, 2**16), 0.1)
    row[0, 0] = 2.0**24
    mean, tokens = mean_nll(NllTable({2**16 + 1: row}, {}), "prefix", 2**16 + 1, 1)
    exact = math.fsum(row.double()[0].tolist()) / tokens
    assert mean == pytest.approx(exact, rel=1e-12)
    assert float(row.mean()) != pytest.approx(exact, rel=1e-9)  # float32 would be seen


@pytest.mark.parametrize("mean", [0.0, 1.5, 699.0])
def test_perplexity_is_the_exponential(mean: float) -> None:
    assert perplexity(mean) == math.exp(mean)


@pytest.mark.parametrize("mean", [710.0, 1e6, math.inf])
def test_perplexity_too_large_for_a_float_is_infinite(mean: float) -> None:
    assert perplexity(mean) == math.inf


def test_perplexity_of_what_is_not_a_number_is_not_a_number() -> None:
    assert math.isnan(perplexity(math.nan))


def test_table_reads_back_from_its_file(tmp_path: Path) -> None:
    table = table_of({16: 15, 40: 39}, {4: 3, 10: 3})
    path = tmp_path / "nll" / "linear_1.7.safetensors"
    table.save(path, {"strategy": "linear:1.7", "key": "k"})
    read, metadata = NllTable.load(path)
    assert metadata == {"strategy": "linear:1.7", "key": "k"}
    for metric in METRICS:
        for length in (4, 10, 16, 40):
            assert mean_nll(read, metric, length, 3) == mean_nll(table, metric, length, 3)
    assert sorted(read.prefix) == [16, 40]
    assert sorted(read.fixed) == [4, 10]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


# Which lengths share a pass.


@dataclass(frozen=True)
class Classed(Strategy):
    name: ClassVar[str] = "classed"
    paper: ClassVar[str] = ""
    kind: LengthClass = "static"

    @property
    def length_class(self) -> LengthClass:
        return self.kind

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        return plan


@pytest.mark.parametrize(
    ("kind", "lengths", "groups"),
    [
        ("static", [8, 32, 33, 96], [[8, 32, 33, 96]]),
        ("two", [8, 32, 33, 96], [[8, 32], [33, 96]]),
        ("per_length", [8, 32, 33, 96], [[8, 32], [33], [96]]),
        ("static", [8], [[8]]),
        ("two", [8, 16], [[8, 16]]),
        ("two", [64, 96], [[64, 96]]),
        ("per_length", [64, 96], [[64], [96]]),
        ("per_length", [32], [[32]]),
    ],
)
def test_lengths_share_a_pass_where_they_share_a_plan(
    kind: LengthClass, lengths: list[int], groups: list[list[int]]
) -> None:
    assert length_classes(Classed(kind), ROPE, lengths) == groups


@pytest.mark.parametrize("text", [*STATIC, *BY_LENGTH])
def test_lengths_of_a_group_have_one_plan(text: str) -> None:
    strategy = ropex.strategy(text)
    lengths = [2, 8, TRAINED - 1, TRAINED, TRAINED + 1, 48, 96]
    for group in length_classes(strategy, ROPE, lengths):
        plans = [strategy.plan(ROPE, length) for length in group]
        assert all(torch.equal(plan.inv_freq, plans[-1].inv_freq) for plan in plans)
        assert all(plan.attention_scale == plans[-1].attention_scale for plan in plans)

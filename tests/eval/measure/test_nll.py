"""Scores of tokens against all logits at once, in every way in which a text may be read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import ropex
from ropex.families.tiny import tiny_model
from ropex.strategies.frozen import Frozen
from ropex_eval.measure import losses as nll
from ropex_eval.measure.feed_forward import feed_forward, in_rows
from ropex_eval.measure.losses import Scorer
from tests.support.models import tiny_causal
from tests.support.rounding import LOSS
from tests.support.scoring import (
    ALL,
    IDS,
    LONG,
    SOME,
    TWO,
    chosen,
    rows_per_call,
    scores_of,
    sequence,
)
from tests.support.tiny_eval import BY_LENGTH, STATIC, plain_nll


@pytest.mark.parametrize("text", [*STATIC, *BY_LENGTH])
@pytest.mark.parametrize("length", [2, 24, LONG])
def test_scores_are_those_of_a_plain_forward_pass(
    causal: Any, scorer: Scorer, text: str, length: int
) -> None:
    ids = TWO[:, :length]
    with ropex.patch(causal, text):
        scores = scores_of(scorer, ids, ((0, length - 1),))
        plain = torch.stack([plain_nll(causal, row) for row in ids])
    assert scores.shape == (2, length - 1)
    assert (scores.dtype, scores.device.type) == (torch.float32, "cpu")
    torch.testing.assert_close(scores.double(), plain, rtol=0, atol=LOSS)


@pytest.mark.parametrize("text", BY_LENGTH)
@pytest.mark.parametrize("at", [24, LONG])
def test_strategy_held_at_a_length_reads_pieces_as_the_live_one_reads_the_whole(
    causal: Any, scorer: Scorer, text: str, at: int
) -> None:
    ids = TWO[:, :at]
    with ropex.patch(causal, text):
        plain = torch.stack([plain_nll(causal, row) for row in ids])
    with ropex.patch(causal, Frozen(ropex.strategy(text), at)):
        held = [scores_of(scorer, ids, ((0, at - 1),), chunk) for chunk in (None, 7)]
    for scores in held:
        torch.testing.assert_close(scores.double(), plain, rtol=0, atol=LOSS)


FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("mistral", {"sliding_window": 16}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("gemma2", {"final_logit_softcapping": 5.0, "sliding_window": 16}),
    ("gemma3_text", {"sliding_window": 16}),
    ("cohere", {"logit_scale": 0.25}),
    ("granite", {"logits_scaling": 8.0}),
    ("gpt_neox", {}),
    ("phi3", {}),
    ("stablelm", {}),
    ("mixtral", {"num_local_experts": 4}),
]


@pytest.mark.filterwarnings("ignore:attention sees only")
@pytest.mark.parametrize("strategy", ["none", "yarn:4"])
@pytest.mark.parametrize(("family", "changes"), FAMILIES)
def test_every_way_to_read_gives_the_scores_of_a_plain_forward_pass(
    monkeypatch: pytest.MonkeyPatch, family: str, changes: dict[str, Any], strategy: str
) -> None:
    model = tiny_causal(family, **changes)
    scorer = Scorer(model)
    assert (scorer.head_alone, scorer.chunkable) == (True, True)
    parts = feed_forward(model)
    assert len(parts) == (0 if family == "mixtral" else 2)
    monkeypatch.setattr(nll, "ROWS_BYTES", 0)
    with ropex.patch(model, strategy):
        plain = [plain_nll(model, row) for row in TWO]
        whole = torch.stack(plain)
        found = {
            "at once": (scores_of(scorer), whole),
            "one by one": (torch.cat([scores_of(scorer, row[None]) for row in TWO]), whole),
            **{
                f"pieces of {chunk}": (scores_of(scorer, chunk=chunk), whole)
                for chunk in (LONG - 1, 37, 16, 5)
            },
        }
        some = torch.stack([chosen(row, SOME) for row in plain])
        found["some"] = (scores_of(scorer, rows=SOME), some)
        found["some, in pieces"] = (scores_of(scorer, rows=SOME, chunk=11), some)
        with in_rows(parts, 7):
            found["feed-forward by rows"] = (scores_of(scorer), whole)
        monkeypatch.setattr(scorer, "head_alone", False)
        found["own head"] = (scores_of(scorer), whole)
        found["own head, in pieces"] = (scores_of(scorer, rows=SOME, chunk=11), some)
    for way, (scores, expected) in found.items():
        assert float((scores.double() - expected).abs().max()) < LOSS, way


def test_head_that_is_more_than_is_known_is_used_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_causal("gemma2", final_logit_softcapping=5.0)
    monkeypatch.setattr(nll, "_finishes", lambda config: iter([lambda logits: logits]))
    scorer = Scorer(model)
    assert not scorer.head_alone
    plain = torch.stack([plain_nll(model, row) for row in TWO])
    for chunk in (None, 20):
        torch.testing.assert_close(
            scores_of(scorer, chunk=chunk).double(), plain, rtol=0, atol=LOSS
        )


def test_cap_that_hardly_shows_in_most_logits_is_not_overlooked() -> None:
    uncapped = tiny_causal("gemma2", final_logit_softcapping=None).to(torch.bfloat16)
    with torch.no_grad():
        spread = float(uncapped(TWO).logits.float().std())
    model = tiny_causal("gemma2", final_logit_softcapping=10 * spread).to(torch.bfloat16)
    free = torch.stack([plain_nll(uncapped, row) for row in TWO])
    plain = torch.stack([plain_nll(model, row) for row in TWO])
    assert (free - plain).abs().max() > 0.1
    scores = scores_of(Scorer(model)).double()
    torch.testing.assert_close(scores, plain, rtol=0, atol=LOSS)


def test_score_of_the_last_token_read_is_that_of_the_token_after_it(scorer: Scorer) -> None:
    goals = IDS[None, 1:]
    scores = scorer.nll(IDS[None, :-1], goals, ((LONG - 3, LONG - 1),))
    torch.testing.assert_close(scores, scores_of(scorer, IDS[None])[:, -2:], rtol=0, atol=LOSS)


@pytest.mark.parametrize("chunk", [None, 16])
def test_scores_are_shifted_right(scorer: Scorer, chunk: int | None) -> None:
    before = scores_of(scorer, IDS[None], chunk=chunk)[0]
    changed = IDS.clone()
    changed[40] = changed[40] + 1
    after = scores_of(scorer, changed[None], chunk=chunk)[0]
    moved = (before - after).abs() > 1e-6
    assert not moved[:39].any()  # score 39 is that of token 40, and the first to see it
    assert moved[39]
    assert moved[40:].any()


@pytest.mark.parametrize("size", [1, 2, 7, 94, 95, 1000])
@pytest.mark.parametrize("rows", [ALL, ((LONG - 11, LONG - 1),)])
def test_logits_are_made_a_few_rows_at_a_time_and_only_of_what_is_scored(
    causal: Any, scorer: Scorer, monkeypatch: pytest.MonkeyPatch, size: int, rows: Any
) -> None:
    monkeypatch.setattr(nll, "ROWS_BYTES", size * nll.BYTES_PER_LOGIT * 300)
    seen = rows_per_call(causal.lm_head, monkeypatch)
    scores = scores_of(scorer, IDS[None], rows)
    ((first, last),) = rows
    assert sum(seen) == last - first
    assert max(seen) == min(size, last - first)
    plain = plain_nll(causal, IDS)[first:last]
    torch.testing.assert_close(scores[0].double(), plain, rtol=0, atol=LOSS)


def test_logits_never_take_more_than_the_budget_or_the_hidden_states(
    causal: Any, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nll, "ROWS_BYTES", 0)
    for length in (8, 2000):
        with monkeypatch.context() as patched:
            seen = rows_per_call(causal.lm_head, patched)
            scores_of(scorer, sequence(length)[None], ((0, length - 1),))
        assert sum(seen) == length - 1
        assert max(seen) * nll.BYTES_PER_LOGIT * 300 <= max(length * 32, 10 * 300)


def test_scores_of_a_half_precision_model_are_summed_in_float32() -> None:
    model = tiny_causal().to(torch.bfloat16)
    scorer = Scorer(model)
    scores = scores_of(scorer, IDS[None])
    assert scorer.head_alone
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores[0].double(), plain_nll(model, IDS), rtol=0, atol=LOSS)


def test_scoring_needs_no_gradient_and_keeps_nothing(scorer: Scorer) -> None:
    assert not scores_of(scorer).requires_grad
    assert all(parameter.grad is None for parameter in scorer.model.parameters())
    first = scores_of(scorer, chunk=9)
    assert torch.equal(scores_of(scorer, chunk=9), first)  # no cache outlives a text


class NoCache(nn.Module):
    """A model whose cache is of no use: it forgets what it read before."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def forward(self, ids: Tensor, **settings: Any) -> Any:
        settings["past_key_values"] = None
        return self.inner(ids, **settings)


def test_model_that_does_not_read_pieces_as_a_whole_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_causal()
    monkeypatch.setattr(model.__class__, "base_model", NoCache(model.model))
    assert not Scorer(model).chunkable


def test_a_cache_that_is_wrong_beyond_the_window_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("mistral", sliding_window=40, max_position_embeddings=64)
    assert Scorer(model).chunkable

    def wrong(module: Any, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        key = key.flip(2) if query.shape[2] < key.shape[2] > 40 - 8 else key
        return sdpa_attention_forward(module, query, key, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", wrong)
    assert not Scorer(model).chunkable

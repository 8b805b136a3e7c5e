"""Forced answers with shared prefixes, against plain forwards and against greedy decoding."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import ropex
from ropex_eval.measure.answers import Answer, AnswerScorer, Branch, Ids, _grade
from tests.support.models import TRAINED, tiny_causal
from tests.support.rounding import LOSS

# Every kind of attention that cuts itself short does so far below the lengths used here.
WINDOW: dict[str, Any] = {"sliding_window": 8}
FAMILIES: list[tuple[str, dict[str, Any], bool]] = [
    ("llama", {}, True),
    ("qwen2", {}, True),
    ("mistral", WINDOW, True),
    ("gemma3_text", {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}, True),
    ("gemma2", {**WINDOW, "final_logit_softcapping": 5.0}, True),
    ("gpt_neox", {}, True),
    ("lfm2", {"layer_types": ["conv", "full_attention"]}, False),
    ("mamba", {"state_size": 4}, False),
]
NAMES = [family for family, *_ in FAMILIES]


def draw(rng: random.Random, tokens: int) -> Ids:
    return tuple(rng.choices(range(2, 258), k=tokens))


RNG = random.Random(0)
TRUNK = (0, *draw(RNG, 70))
BRANCHES = [
    *(Branch(at, draw(RNG, ids), draw(RNG, answer)) for at, ids, answer in [
        (71, 3, 4), (0, 9, 1), (40, 20, 3), (71, 1, 2), (39, 1, 5), (40, 2, 1),
    ]),
    Branch(71, (), draw(RNG, 3)),
    Branch(1, (), draw(RNG, 1)),
]  # fmt: skip


@torch.no_grad()
def plain(model: Any, trunk: Ids, branch: Branch) -> tuple[Tensor, list[int]]:
    """Log-probabilities and ranks by the definition: all logits at once, float64."""
    ids = torch.tensor([*trunk[: branch.at], *branch.ids, *branch.answer])
    rows = model(ids[None], use_cache=False).logits[0].double().log_softmax(1)
    places = range(len(ids) - len(branch.answer), len(ids))
    own = torch.stack([rows[place - 1, ids[place]] for place in places])
    ranks = [int((rows[p - 1] > value).sum()) for p, value in zip(places, own, strict=True)]
    return own, ranks


def assert_plain(model: Any, answers: tuple[Answer, ...], trunk: Ids = TRUNK) -> None:
    assert len(answers) == len(BRANCHES)
    for answer, branch in zip(answers, BRANCHES, strict=True):
        own, ranks = plain(model, trunk, branch)
        given = torch.tensor(answer.logprobs, dtype=torch.float64)
        torch.testing.assert_close(given, own, rtol=1e-6, atol=LOSS)  # float32 at -40 is coarse
        assert answer.ranks == tuple(ranks)


@contextmanager
def calls_of(model: Any) -> Iterator[list[tuple[int, int]]]:
    """Tokens that go into each call of a model, and rows of logits that come out."""
    seen: list[tuple[int, int]] = []

    def count(module: Any, args: Any, output: Any) -> None:
        seen.append((args[0].shape[1], output.logits.shape[1]))

    hook = model.register_forward_hook(count)
    yield seen
    hook.remove()


@pytest.mark.parametrize(("family", "changes", "cached"), FAMILIES, ids=NAMES)
def test_answers_are_those_of_plain_forwards(
    family: str, changes: dict[str, Any], cached: bool
) -> None:
    model = tiny_causal(family, **changes)
    scorer = AnswerScorer(model, chunk=7)
    assert scorer.cached == cached
    assert_plain(model, scorer.score(TRUNK, BRANCHES))


@pytest.mark.parametrize("chunk", [1, 2, 70, 71, 72, 2048])
def test_chunks_do_not_change_answers(causal: Any, chunk: int) -> None:
    assert_plain(causal, AnswerScorer(causal, chunk).score(TRUNK, BRANCHES))


@pytest.mark.parametrize("text", ["yarn:4", "ntk:4", "logn", "dynamic:length=128", "yarn:4+logn"])
def test_answers_beyond_the_trained_length_under_a_patch(causal: Any, text: str) -> None:
    assert len(TRUNK) > 2 * TRAINED
    before = AnswerScorer(causal).score(TRUNK, BRANCHES)
    with ropex.patch(causal, text):
        scorer = AnswerScorer(causal, chunk=16)
        assert scorer.cached
        answers = scorer.score(TRUNK, BRANCHES)
        assert_plain(causal, answers)
    assert answers != before


def test_shared_tokens_are_read_once_and_only_needed_logits_made(causal: Any) -> None:
    scorer = AnswerScorer(causal, chunk=16)
    with calls_of(causal) as seen:
        scorer.score(TRUNK, BRANCHES)
    own = sum(len(b.ids) + len(b.answer) - 1 for b in BRANCHES)
    asked_at_once = sum(not b.ids for b in BRANCHES)  # the last shared token needs its logits
    assert sum(tokens for tokens, _ in seen) == len(TRUNK) + own + asked_at_once
    assert max(tokens for tokens, _ in seen) <= 16
    assert max(rows for _, rows in seen) == max(len(b.answer) for b in BRANCHES)


def test_order_of_branches_is_kept(causal: Any) -> None:
    scorer = AnswerScorer(causal)
    forth, back = scorer.score(TRUNK, BRANCHES), scorer.score(TRUNK, BRANCHES[::-1])
    for left, right in zip(forth, back[::-1], strict=True):
        assert left.ranks == right.ranks
        assert left.logprobs == pytest.approx(right.logprobs, abs=LOSS)


def test_no_branches_no_answers(causal: Any) -> None:
    assert AnswerScorer(causal).score(TRUNK, []) == ()


# Exactness is greedy decoding.


@pytest.mark.parametrize("seed", range(4))
def test_exact_is_what_greedy_decoding_gives(causal: Any, seed: int) -> None:
    rng, scorer = random.Random(seed), AnswerScorer(causal)
    prompt = (*TRUNK[:30], *draw(rng, 3))
    causal.generation_config.eos_token_id = None
    written = causal.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False)[0]
    answer = tuple(written[len(prompt) :].tolist())
    assert len(answer) == 5
    others = [(*answer[:i], answer[i] ^ 1, *answer[i + 1 :]) for i in range(5)]
    found = scorer.score(prompt[:30], [Branch(30, prompt[30:], a) for a in (answer, *others)])
    assert [each.exact for each in found] == [True, *[False] * 5]
    assert all(each.ranks[i] > 0 for i, each in enumerate(found[1:]))


nan, inf = math.nan, math.inf


@pytest.mark.parametrize(
    ("logits", "wanted", "rank"),
    [
        ([1.0, 3.0, 2.0], 1, 0),
        ([1.0, 3.0, 2.0], 0, 2),
        ([3.0, 1.0, 3.0], 0, 0),  # of equals, argmax takes the first
        ([3.0, 1.0, 3.0], 2, 1),
        ([2.0, nan, 1.0], 0, 1),  # what overflowed is never right
        ([nan, nan, nan], 0, 3),
        ([nan, 1.0, 2.0], 0, 3),
        ([-inf, -inf, 0.0], 1, 2),
    ],
)
def test_ranks_of_equal_and_impossible_logits(logits: list[float], wanted: int, rank: int) -> None:
    answer = _grade(torch.tensor([logits]), (wanted,))
    assert answer.ranks == (rank,)
    assert answer.exact == (rank == 0)


def test_ranks_do_not_suffer_from_the_softmax() -> None:
    logits = torch.tensor([[1e-7, 0.0, 90.0], [90.0, 1e-7, 0.0]])  # equal once 90 is taken off
    assert _grade(logits, (0, 1)).ranks == (1, 1)
    assert _grade(logits, (1, 2)).ranks == (2, 2)


def test_an_answer_as_a_whole() -> None:
    assert not Answer((-1.0, -2.0), (0, 3)).exact
    assert Answer((-1.0, -2.0), (0, 0)).exact


def test_half_precision_is_summed_in_float32() -> None:
    model = tiny_causal().to(torch.bfloat16)
    scorer = AnswerScorer(model)
    assert scorer.cached
    for answer, branch in zip(scorer.score(TRUNK, BRANCHES), BRANCHES, strict=True):
        own, _ = plain(model, TRUNK, branch)
        assert sum(answer.logprobs) == pytest.approx(float(own.sum()), abs=1.0 * len(own))


# When a cache does not serve.


def without_positions(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call starts at position 0: plain forwards stay as they are, cached ones go wrong."""
    forward = model.forward

    def wrong(input_ids: Tensor, logits_to_keep: int = 0, **kwargs: Any) -> Any:
        positions = torch.arange(input_ids.shape[1])[None]
        return forward(input_ids, position_ids=positions, logits_to_keep=logits_to_keep, **kwargs)

    monkeypatch.setattr(model, "forward", wrong)


def without_cache(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = model.forward

    def deaf(input_ids: Tensor, past_key_values: Any = None, **kwargs: Any) -> Any:
        return forward(input_ids, **{**kwargs, "use_cache": False})

    monkeypatch.setattr(model, "forward", deaf)


def without_keyword(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = model.forward

    def narrow(input_ids: Tensor, use_cache: bool) -> Any:
        return forward(input_ids, use_cache=use_cache)

    monkeypatch.setattr(model, "forward", narrow)


@pytest.mark.parametrize("change", [without_positions, without_cache, without_keyword])
def test_a_cache_that_does_not_serve_is_not_used(
    change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_causal()
    change(model, monkeypatch)
    scorer = AnswerScorer(model)
    assert not scorer.cached
    answers = scorer.score(TRUNK, BRANCHES)
    monkeypatch.undo()
    assert_plain(model, answers)


def test_a_model_that_makes_all_logits_is_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_causal()
    forward = model.forward

    def whole(input_ids: Tensor, past_key_values: Any = None, use_cache: bool = True) -> Any:
        return forward(input_ids, past_key_values=past_key_values, use_cache=use_cache)

    monkeypatch.setattr(model, "forward", whole)
    scorer = AnswerScorer(model, chunk=16)
    assert (scorer.keeps, scorer.cached) == (False, True)
    answers = scorer.score(TRUNK, BRANCHES)
    monkeypatch.undo()
    assert_plain(model, answers)


# Mistakes.


@pytest.mark.parametrize(
    ("branch", "message"),
    [
        (Branch(72, (1,), (2,)), "leaves at token 72; the shared text has places 0 to 71"),
        (Branch(-1, (1,), (2,)), "leaves at token -1"),
        (Branch(5, (1,), ()), "no answer; give at least one token"),
        (Branch(0, (), (2,)), "nothing stands before an answer; give BOS"),
    ],
)
def test_impossible_branches_are_refused(causal: Any, branch: Branch, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnswerScorer(causal).score(TRUNK, [branch])


def test_chunks_hold_at_least_a_token(causal: Any) -> None:
    with pytest.raises(ValueError, match="chunk is 0, it must be at least 1 token"):
        AnswerScorer(causal, 0)

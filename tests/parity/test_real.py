"""A real checkpoint and a real text, where they are at hand; neither is in the repository."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import ropex
from ropex.checkpoints.loading import load_model, load_tokenizer
from ropex.strategies.frozen import Frozen
from ropex_eval.measure.losses import Scorer
from ropex_eval.scores.protocol import Protocol
from ropex_eval.study.corpus import Corpus, load_corpus
from ropex_eval.study.study import Study
from tests.support.paths import REAL
from tests.support.rounding import of_loss
from tests.support.tiny_eval import start

STORIES, TEXT = REAL / "stories260K", REAL / "texts" / "tinystories_val.txt"
TRAINED = 512

Local = Callable[[str, tuple[int, ...], int], list[float]]

pytestmark = pytest.mark.skipif(
    not (STORIES.is_dir() and TEXT.is_file()),
    reason=f"no stories260K and texts/tinystories_val.txt in {REAL}; ROPEX_REAL says where",
)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    """In float64: two ways to a number round differently, and each processor in its own way."""
    return Scorer(load_model(STORIES, dtype="float32").double())


@pytest.fixture(scope="module")
def rough() -> Scorer:
    """In float32, for what is wrong by far if it is wrong."""
    return Scorer(load_model(STORIES, dtype="float32"))


def corpus_of(length: int, excerpts: int) -> Corpus:
    tokenizer = load_tokenizer(STORIES)
    return load_corpus(str(TEXT), tokenizer, tokenizer.bos_token_id, length, excerpts)


def text_of(length: int) -> Tensor:
    """BOS and the beginning of the text."""
    corpus = corpus_of(length, 1)
    return torch.cat([torch.tensor([corpus.bos]), corpus.excerpts[0].ids])


def scores_of(scorer: Scorer, ids: Tensor, chunk: int | None = None) -> Tensor:
    goals = torch.cat([ids[1:], ids[:1]])
    return scorer.nll(ids[None], goals[None], ((0, len(ids) - 1),), chunk)[0]


def native(entry: dict[str, Any]) -> Any:
    """The checkpoint, with a rotary entry written into its config as transformers reads it."""
    config = AutoConfig.from_pretrained(STORIES)
    if int(transformers.__version__.split(".")[0]) >= 5:
        config.rope_parameters = {"rope_theta": 10_000.0, **entry}
    else:
        config.rope_scaling = None if entry["rope_type"] == "default" else entry
    auto: Any = AutoModelForCausalLM
    return auto.from_pretrained(STORIES, config=config, dtype=torch.float32).double().eval()


@torch.no_grad()
def plain_nll(model: Any, ids: Tensor) -> Tensor:
    """NLL of tokens 1, 2, ... by the definition, float64."""
    logits = model(ids[None], use_cache=False).logits[0, :-1].double()
    scores: Tensor = logits.logsumexp(-1) - logits.gather(-1, ids[1:, None])[:, 0]
    return scores


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("none", {"rope_type": "default"}),
        ("linear:3", {"rope_type": "linear", "factor": 3.0}),
        ("yarn:3",
         {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": TRAINED}),
        (
            "llama3:3",
            {
                "rope_type": "llama3", "factor": 3.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": TRAINED,
            },
        ),
    ],
)  # fmt: skip
def test_scores_are_those_of_a_model_with_the_method_in_its_config(
    scorer: Scorer, text: str, entry: dict[str, Any]
) -> None:
    ids = text_of(3 * TRAINED)
    plain = plain_nll(native(entry), ids)
    for chunk in (None, 400):
        with ropex.patch(scorer.model, text):
            scores = scores_of(scorer, ids, chunk)
        torch.testing.assert_close(scores.double(), plain, rtol=0, atol=of_loss(512))
    if text != "none":
        unpatched = scores_of(scorer, ids).double()
        assert (unpatched - plain).abs().max() > 0.1  # so that equality says something


@pytest.mark.parametrize("length", [200, TRAINED + 1, 3 * TRAINED])
def test_strategy_held_at_a_length_scores_as_the_live_one_does(scorer: Scorer, length: int) -> None:
    ids = text_of(length)
    with ropex.patch(scorer.model, "dynamic"):
        plain = plain_nll(scorer.model, ids)
    with ropex.patch(scorer.model, Frozen(ropex.strategy("dynamic"), length)):
        for chunk in (None, 100):
            scores = scores_of(scorer, ids, chunk)
            torch.testing.assert_close(scores.double(), plain, rtol=0, atol=of_loss(512))


@pytest.fixture
def local(rough: Scorer, tmp_path: Path) -> Local:
    """Perplexity of the last 256 of the first L tokens, for each length L."""

    def measured(text: str, lengths: tuple[int, ...], excerpts: int) -> list[float]:
        protocol, model = Protocol.of(lengths, 256, ("local",)), rough.model
        corpus = corpus_of(lengths[-1], excerpts)
        study = Study("stories", STORIES, model, lambda: model, corpus, protocol)
        found = start(study, tmp_path / "out", text).of("local")[text]
        return [found[length].perplexity for length in lengths]

    return measured


def test_perplexity_grows_beyond_the_trained_length(local: Local) -> None:
    trained, beyond = local("none", (TRAINED, 4 * TRAINED), 4)
    assert 3 < trained < 6
    assert beyond > 1.7 * trained


def test_perplexity_collapses_far_beyond_and_two_methods_prevent_it(local: Local) -> None:
    far = {text: local(text, (4096,), 1)[0] for text in ("none", "yarn:8", "ntk:8")}
    assert far["none"] > 100
    assert far["yarn:8"] < 60
    assert far["ntk:8"] < 60


def test_a_context_is_granted_only_where_it_is_shown(rough: Scorer, tmp_path: Path) -> None:
    """Two excerpts grant nothing; 32 show that `none` ends where it was trained."""
    protocol = Protocol.of([TRAINED, 2 * TRAINED], 64, ("fixed",))

    def verdicts(excerpts: int, *strategies: str) -> list[tuple[int | None, bool]]:
        corpus, model = corpus_of(2 * TRAINED, excerpts), rough.model
        study = Study("stories", STORIES, model, lambda: model, corpus, protocol)
        found = start(study, tmp_path / f"out{excerpts}", *strategies).verdicts
        return [(each.safe, each.safe_decided) for each in found]

    assert verdicts(2, "none", "linear:16") == [(TRAINED, False), (None, True)]
    assert verdicts(32, "none") == [(TRAINED, True)]

"""The demo checkpoint: how it is trained, and what it must show."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import ropex
import train
from muon import Muon
from ropex.checkpoints.loading import load_model, load_tokenizer
from ropex.shipped import demo_checkpoint, recipes_dir
from ropex_eval.scores.protocol import Protocol
from ropex_eval.study.corpus import load_corpus
from ropex_eval.study.study import Study
from rows import NAMES, RowSampler
from tests.support.tiny_eval import start

LENGTH = 256


def encode(text: str) -> list[int]:
    """One token a character, from 2."""
    return [2 + ord(letter) for letter in text]


def text_of(ids: list[int]) -> str:
    return "".join(chr(token - 2) for token in ids if token >= 2)


def sampler(kind: str, weight: float = 4.0) -> RowSampler:
    shares = {} if kind == "text" else {kind: 1.0}
    documents = [encode("x = 1\n" * 200), encode("def f():\n    return 2\n" * 60)]
    return RowSampler(encode, documents, 0, 130, shares, weight)


@pytest.mark.parametrize("kind", ["text", "needle", "facts", "copy"])
@pytest.mark.parametrize("length", [128, 256, 500])
def test_a_row_is_bos_and_as_many_tokens_as_asked_for(kind: str, length: int) -> None:
    rows = [sampler(kind).row(random.Random(seed), length) for seed in range(20)]
    assert rows == [sampler(kind).row(random.Random(seed), length) for seed in range(20)]
    assert rows[0] != rows[1]
    for ids, weights in rows:
        assert len(ids) == len(weights) == length + 1
        assert ids[0] == 0
        assert max(weights) > 0
        assert set(weights) <= {0.0, 1.0, 4.0}


@pytest.mark.parametrize("depth", [None, 0.0, 0.5, 1.0])
def test_a_needle_row_ends_with_the_number_that_it_holds(depth: float | None) -> None:
    for seed in range(20):
        ids, weights = sampler("needle").needle(random.Random(seed), LENGTH, depth)
        text = text_of(ids)
        key = text.split("The pass key is ")[1][:5]
        assert key.isdigit()
        assert text.endswith(f"What is the pass key? The pass key is {key}.")
        answer = [token for token, weight in zip(ids, weights, strict=True) if weight == 4.0]
        assert text_of(answer) == f" {key}."
        place = text.index("The pass key is ")
        if depth is not None:
            assert place / (LENGTH - 45) == pytest.approx(depth, abs=0.3)


def test_facts_are_answered_as_they_were_told() -> None:
    for seed in range(20):
        told, asked = text_of(sampler("facts").row(random.Random(seed), 2000)[0]).split("\n")
        facts = dict(sentence.rsplit(" is ", 1) for sentence in told.strip(". ").split(". "))
        answers = asked.split(". ")[:-1]  # the last may be cut off
        assert len(facts) >= 2
        assert len(answers) >= 4
        assert all(answer.strip() in told for answer in answers)
        assert all(name.removeprefix("The number of ") in NAMES for name in facts)


def test_a_copy_is_scored_from_its_second_time_on() -> None:
    ids, weights = sampler("copy").row(random.Random(0), LENGTH)
    period = weights.index(1.0) - 1
    assert weights == [0.0] * (period + 1) + [1.0] * (LENGTH - period)
    assert all(ids[i] == ids[i - period] for i in range(period + 1, LENGTH + 1))


@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (48, 48)])
def test_muon_is_that_of_torch_without_its_rounding(shape: tuple[int, int]) -> None:
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    optimizers = [
        kind([parameter], lr=0.02, momentum=0.95, weight_decay=0.01)
        for kind, parameter in ((Muon, ours), (torch.optim.Muon, theirs))
    ]
    for _ in range(5):
        gradient = torch.randn(shape)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
    assert (ours - 1).abs().max() > 1e-2


def test_an_interrupted_training_continues_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f"def f{n}(x):\n    return x + {n}\n" for n in range(400))
    monkeypatch.setattr(train, "training_texts", lambda: {"a": text, "b": text[::-1]})
    monkeypatch.setattr(train, "SAVE_EVERY", 2)
    recipe: dict[str, Any] = yaml.safe_load((recipes_dir() / "demo/recipe.yaml").read_text("utf-8"))
    recipe["model"] |= {"vocabulary": 300, "hidden": 64, "layers": 1, "heads": 1, "mlp": 64}
    recipe["training"] |= {"tokens": 4 * 512, "batch_tokens": 512}
    train.train(recipe, tmp_path / "whole")
    real, calls = train.loss_of, iter(range(100))

    def interrupted(*given: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(train, "loss_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe, tmp_path / "broken")
    train.train(recipe, tmp_path / "broken")
    whole, broken = (load_model(tmp_path / name).state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    assert load_tokenizer(tmp_path / "whole")("return x").input_ids


# What is shipped.


def test_the_shipped_checkpoint_is_small_and_what_the_recipe_says() -> None:
    folder = demo_checkpoint()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4 * 2**20
    model = load_model(folder)
    rope = ropex.rope_of(model)
    assert (rope.trained_length, rope.dim, rope.base) == (256, 64, 10_000.0)
    assert model.dtype == torch.bfloat16
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer("def f(x): return 12345 # é").input_ids) == (
        "def f(x): return 12345 # é"
    )


def test_the_shipped_checkpoint_shows_what_the_field_is_about(tmp_path: Path) -> None:
    folder = demo_checkpoint()
    tokenizer, model = load_tokenizer(folder), load_model(folder, dtype="float32")
    corpus = load_corpus("stdlib", tokenizer, tokenizer.bos_token_id, 2048, 8)
    protocol = Protocol.of((256, 2048), definitions=("fixed",))
    study = Study("demo", folder, model, lambda: model, corpus, protocol)
    fixed = start(study, tmp_path / "out", "none", "yarn:8").of("fixed")

    def perplexities(text: str) -> list[float]:
        return [fixed[text][length].perplexity for length in protocol.lengths]

    trained, collapsed = perplexities("none")
    assert collapsed > 3 * trained
    within, beyond = perplexities("yarn:8")
    assert beyond < 1.1 * within < 1.5 * trained

"""Texts for the tiny readers, studies of them, and what is measured."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ropex
import ropex_eval.running.run
from ropex_eval.measure.reader import Reader
from ropex_eval.running.run import Effort, run
from ropex_eval.running.work import Worker
from ropex_eval.scores.protocol import Protocol
from ropex_eval.scores.results import Result, Results
from ropex_eval.study.corpus import Corpus, load_corpus
from ropex_eval.study.passes import Pass
from ropex_eval.study.study import Study
from tests.support.models import TRAINED, tiny_tokenizer

LENGTHS = (8, 24, 48, 96)  # two within the trained length, two beyond
STATIC = (
    "none", "linear:4", "ntk:4", "ntk_by_parts:4", "yarn:4", "llama3:4", "logn", "linear:2+ntk:2",
    "dynamic:length=128",
)  # fmt: skip
BY_LENGTH = ("dynamic", "dynamic:4", "dynamic:2+logn")

_WORDS = ["the", "a", "cat", "ran", "on", "under", "big", "red", "house", "and", "it", "there,"]


def words(tokens: int, seed: int = 0) -> str:
    """Text of `tokens` letters, hence of as many tokens; the first are those of a shorter one."""
    chosen = random.Random(seed).choices(_WORDS, k=tokens)
    return " ".join(chosen)[:tokens]


def corpus_of(folder: Path, tokens: int, excerpts: int = 3, *, bos: int | None = 0) -> Corpus:
    """Excerpts of as many tokens, BOS included, of two documents that are written into `folder`."""
    folder.mkdir(exist_ok=True)
    for name, seed in (("a.txt", 1), ("b.txt", 2)):
        (folder / name).write_text(words(4 * tokens, seed), encoding="utf-8")
    return load_corpus(str(folder), tiny_tokenizer(), bos, tokens, excerpts)


def study_of(
    folder: Path, checkpoint: Path, model: Any, protocol: Protocol, *, excerpts: int = 3,
    bos: int | None = 0,
) -> Study:  # fmt: skip
    """A study of a loaded model on excerpts that are written below `folder`."""
    corpus = corpus_of(folder / "texts", protocol.excerpt, excerpts, bos=bos)
    return Study("tiny", checkpoint, model, lambda: model, corpus, protocol)


def start(
    study: Study, out: Path, *texts: str, budget: float | None = None, **settings: Any
) -> Results:
    """Measure strategies, given by their texts."""
    strategies = [ropex.strategy(text) for text in texts]
    return run(study, strategies, out, effort=Effort(budget), **settings)


@torch.no_grad()
def plain_nll(model: Any, ids: Tensor) -> Tensor:
    """NLL of tokens 1, 2, ... by the definition: all logits at once, float64."""
    logits = model(ids[None], use_cache=False).logits[0].double()
    rows = [logits[p - 1].logsumexp(0) - logits[p - 1, ids[p]] for p in range(1, len(ids))]
    return torch.stack(rows)


@dataclass
class Watch:
    """What is measured from now on.

    Attributes:
        batches: Strategy and passes of each batch.
    """

    batches: list[tuple[str, tuple[Pass, ...]]] = field(default_factory=list)

    @property
    def strategies(self) -> list[str]:
        """Strategies, each where it was measured first."""
        return list(dict.fromkeys(strategy for strategy, _ in self.batches))

    @property
    def passes(self) -> list[tuple[str, Pass]]:
        """Every pass."""
        return [(strategy, each) for strategy, batch in self.batches for each in batch]

    def take(self) -> list[str]:
        """The strategies so far, which are then forgotten."""
        found = self.strategies
        self.batches.clear()
        return found


def watch_measuring(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Watch every worker of a run."""
    seen = Watch()

    class Watched(Worker):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            told = self.done

            def done(strategy: Any, batch: Sequence[Pass]) -> None:
                seen.batches.append((str(strategy), tuple(batch)))
                told(strategy, batch)

            self.done = done

    monkeypatch.setattr(ropex_eval.running.run, "Worker", Watched)
    return seen


def break_reading(monkeypatch: pytest.MonkeyPatch, error: BaseException, turn: int = 0) -> None:
    """Let a later batch raise: the first, the second, ..."""
    real, turns = Reader.read, itertools.count()

    def read(self: Reader, *given: Any) -> Tensor:
        if next(turns) == turn:
            raise error
        return real(self, *given)

    monkeypatch.setattr(Reader, "read", read)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its bytes; None for folders."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def strict_json(text: str) -> Any:
    """What any JSON parser reads; Python's own would accept NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def results_of(
    values: dict[str, dict[str, list[float]]], lengths: list[int], trained: int = TRAINED
) -> Results:
    """Results from definition to strategy to perplexities."""
    about = {"model": {"id": "tiny", "trained_length": trained}, "data": {"clusters": "documents"}}
    protocol = Protocol(tuple(lengths), 4, tuple(values), None, lengths[-1])
    rows = [
        Result(text, name, n, math.log(value) if value > 0 else value, value, None, None, None, 12)
        for name, table in values.items()
        for text, perplexities in table.items()
        for n, value in zip(lengths, perplexities, strict=True)
    ]
    return Results(about, protocol, {row.strategy: {} for row in rows}, tuple(rows))

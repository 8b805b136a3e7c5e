"""lm-evaluation-harness agrees where both compute the same, and is handed the patched model."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch

import ropex
from ropex_eval.measure.losses import Scorer
from ropex_eval.report.terminal import suites
from ropex_eval.running.lm_eval_suites import harness_model
from ropex_eval.scores.protocol import Protocol
from ropex_eval.study.corpus import Corpus, Excerpt
from ropex_eval.study.passes import passes
from tests.support.models import save_checkpoint, tiny_causal, tiny_tokenizer
from tests.support.shell import Shell
from tests.support.tiny_eval import words


def installed() -> Any:
    return pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")


@pytest.mark.filterwarnings("ignore")  # of its libraries
@pytest.mark.parametrize("text", ["none", "yarn:4"])
@pytest.mark.parametrize("length", [24, 96])
def test_rolling_is_what_the_harness_computes(text: str, length: int) -> None:
    installed()
    model, tokenizer, book = tiny_causal(), tiny_tokenizer(), words(250)
    ids = torch.tensor(tokenizer(book, add_special_tokens=False)["input_ids"])
    corpus = Corpus("book", (Excerpt("book", 0, ids),), 0, 0)
    protocol = Protocol.of((length,), 4, ("rolling",), excerpt=len(ids) + 1)
    scorer, total = Scorer(model), 0.0
    with ropex.patch(model, text) as patch:
        for each in passes(corpus, protocol, ropex.strategy(text), patch.rope):
            read = each.ids(corpus)
            goals = torch.nn.functional.pad(read[1:], (0, 1))[: each.length]
            nll = scorer.nll(read[None, : each.length], goals[None], each.rows)
            total -= float(nll.double().sum())
        harness = harness_model(model, tokenizer, length, 0)
        harness.add_bos_token = False  # else it puts one more in front of a text than it says
        request = type("Request", (), {"args": (book,)})()
        (theirs,) = harness.loglikelihood_rolling([request], disable_tqdm=True)
    assert total == pytest.approx(float(theirs), abs=1e-5 * len(ids))


@pytest.mark.filterwarnings("ignore")
def test_a_suite_that_the_harness_does_not_know_is_told(shell: Shell) -> None:
    installed()
    save_checkpoint(shell.folder / "tiny")
    (shell.folder / "book.txt").write_text(words(400), encoding="utf-8")
    rest = ("--data", "book.txt", "--lengths", "24,48", "--definitions", "none", "--excerpts", "1")
    status, _, told = shell("eval", "tiny", *rest, "-o", "out", "--lm-eval", "no_such_task")
    assert status == 2
    assert "the harness knows no task 'no_such_task'" in told.splitlines()[-1]
    assert not (shell.folder / "out").exists()


def test_without_the_harness_it_is_told_before_any_work(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lm_eval", "lm_eval.tasks"):
        monkeypatch.setitem(sys.modules, name, None)
    told = shell.refused("eval", "demo", "-o", "out", "--lm-eval", "ruler")
    assert told == (
        "ropex: error: --lm-eval needs lm-evaluation-harness: pip install 'lm_eval[ruler]'\n"
    )


def test_metrics_stand_in_columns() -> None:
    found = {
        "none": {"niah": {"4096,none": 0.5, "8192,none": -1.0, "4096_stderr,none": 0.1, "n": "x"}},
        "yarn:4": {"niah": {"4096,none": 1.0, "8192,none": 0.25}},
    }
    assert suites(json.loads(json.dumps(found))).splitlines()[1:] == [
        "        niah 4096  niah 8192",
        "none        0.500         --",
        "yarn:4      1.000      0.250",
    ]
    assert suites({}) == ""

"""The harness in Python: `evaluate` and what it returns, and that every setting counts."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

import ropex
import ropex_eval
from ropex_eval.api import Evaluation
from ropex_eval.report.terminal import render
from ropex_eval.scores.protocol import Protocol
from ropex_eval.study.corpus import load_corpus
from ropex_eval.study.study import Study, live_fingerprint
from ropex_eval.training.in_training import bare
from tests.support.models import tiny_causal, tiny_tokenizer
from tests.support.options import unread, watched
from tests.support.tiny_eval import Watch, start, tree, words

SMALL: dict[str, Any] = {"lengths": (8, 48), "excerpts": 2, "data": "book.txt", "device": "cpu"}
LIVE: dict[str, Any] = {**SMALL, "device": "auto", "tokenizer": tiny_tokenizer()}
QUESTIONS: dict[str, Any] = {"tasks": ("induction",), "depths": (0.0,), "samples": 1}


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a checkpoint and a text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "ropex_eval.running.cost.speed", lambda *given: 1e9
    )  # which is tried for a while
    Path("tiny").symlink_to(checkpoint)
    Path("book.txt").write_text(words(400), encoding="utf-8")


@pytest.fixture
def model() -> Any:
    """As in the middle of a training: in training mode but for a part, with a gradient."""
    model = tiny_causal(attention_dropout=0.5).train()
    model.model.layers[0].eval()
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    return model


def state(model: Any) -> dict[str, Any]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {
        "values": {name: each.detach().clone() for name, each in named},
        "modes": [module.training for module in model.modules()], "config": model.config.to_dict(),
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "gradient": model.lm_head.weight.grad.clone(), "random": torch.get_rng_state(),
    }  # fmt: skip


def test_evaluate_measures_what_a_study_does_and_leaves_no_file() -> None:
    before = tree(Path())
    results = ropex_eval.evaluate("tiny", "yarn:4", **SMALL)
    assert tree(Path()) == before
    protocol = Protocol.of((8, 48))
    corpus = load_corpus("book.txt", tiny_tokenizer(), 0, 48, 2)
    model = tiny_causal()
    study = Study("tiny", Path("tiny"), model, lambda: model, corpus, protocol)
    assert results.results == start(study, Path("by-hand"), "none", "yarn:4").results
    ropex_eval.evaluate("tiny", ["yarn:4"], **SMALL, out="out")
    assert {"report.html", "results.json", "ppl.png"} <= {
        each.name for each in Path("out").iterdir()
    }
    assert ropex_eval.Results.load("out").results == results.results


def test_live_model_has_the_numbers_of_its_checkpoint_and_is_left_as_it_was(model: Any) -> None:
    before = state(model)
    found = ropex_eval.evaluate(model, ["yarn:4", "dynamic"], **LIVE)
    after = state(model)
    for name in ("values", "gradient", "random"):
        torch.testing.assert_close(after.pop(name), before.pop(name), rtol=0, atol=0)
    assert after == before
    named = ropex_eval.evaluate("tiny", ["yarn:4", "dynamic"], **SMALL)
    assert found.results == named.results
    assert found.about["model"]["id"] == "LlamaForCausalLM"


def test_run_of_a_live_model_is_continued_while_its_weights_stay(
    model: Any, measured: Watch
) -> None:
    ropex_eval.evaluate(model, **LIVE, out="out")
    assert measured.take() == ["none", "yarn:length=48"]
    ropex_eval.evaluate(model, **LIVE, out="out")
    assert measured.take() == []
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    with pytest.raises(FileExistsError, match=r"different model \(model.sha256\)"):
        ropex_eval.evaluate(model, **LIVE, out="out")


@pytest.mark.filterwarnings("ignore")  # of peft
def test_adapters_make_a_different_model_while_they_are_on(model: Any) -> None:
    peft = pytest.importorskip("peft")
    plain = live_fingerprint(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=1, target_modules=["q_proj"]))
    on = live_fingerprint(bare(adapted))
    with adapted.disable_adapter():
        off = live_fingerprint(bare(adapted))
    adapted.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] *= 2
    assert len({plain, on, off, live_fingerprint(bare(adapted))}) == 4


def test_live_model_that_cannot_be_measured_as_it_is_is_refused(model: Any) -> None:
    for settings, message in (
        ({"dtype": "bfloat16"}, "--dtype: a live model stays as it is loaded"),
        ({"tokenizer": None}, "does not say where it comes from; give its tokenizer"),
    ):
        with pytest.raises(ValueError, match=message):
            ropex_eval.evaluate(model, **{**LIVE, **settings})
    with ropex.patch(model, "yarn:4"), pytest.raises(ValueError, match="is patched with yarn:4; r"):
        ropex_eval.evaluate(model, **LIVE)
    with pytest.raises(TypeError, match="a loaded model of transformers"):
        ropex_eval.evaluate(model.config, **LIVE)


def test_tokenizer_of_a_live_model_is_that_of_its_folder() -> None:
    model = type(tiny_causal()).from_pretrained("tiny")
    found = ropex_eval.evaluate(model, ["none"], **SMALL | {"device": "auto"})
    assert found.about["model"]["id"] == "tiny"


# What is returned.


def test_results_become_tables_a_picture_and_a_frame() -> None:
    results = ropex_eval.evaluate("tiny", ["yarn:4"], **SMALL, **QUESTIONS | {"tasks": ()})
    assert results.table() == render(results)
    assert results.table("markdown").startswith("| local  |")
    with pytest.raises(ValueError, match="unknown format 'html'"):
        results.table("html")
    assert results.verdict["yarn:4"] == results.verdicts[1]
    results.plot("ppl.png")
    assert Path("ppl.png").read_bytes().startswith(b"\x89PNG")
    frame = results.frame()
    assert len(frame) == len(results.results) == 2 * 3 * 2
    one = frame.query("strategy == 'yarn:4' and definition == 'fixed' and length == 48").iloc[0]
    wanted = results.of("fixed")["yarn:4"][48]
    assert (one.nll, one.perplexity, one.low, one.high) == (
        wanted.nll, wanted.perplexity, wanted.low, wanted.high,
    )  # fmt: skip
    suites = dataclasses.replace(results, suites={"none": {"niah": {"8,none": 0.5}}})
    assert suites.table().endswith("lm-evaluation-harness\n      niah 8\nnone   0.500")


def test_evaluate_takes_what_an_evaluation_takes() -> None:
    assert inspect.signature(ropex_eval.evaluate).parameters == (
        inspect.signature(Evaluation).parameters
    )
    with pytest.raises(TypeError, match="length_"):
        ropex_eval.evaluate("tiny", length_=(8,))  # type: ignore[call-arg]
    with pytest.raises(AttributeError, match="has no attribute 'evaluated'"):
        _ = ropex_eval.evaluated
    assert {"evaluate", "Results"} <= set(dir(ropex_eval))


# Every setting counts.


@pytest.mark.parametrize("mode", ["run", "plan", "check"])
def test_every_setting_is_read_or_refused(mode: str) -> None:
    kind, seen = watched(Evaluation)
    place = {} if mode == "check" else {"out": "out"}
    asked = kind("tiny", ["none"], **{**SMALL, "lengths": (36, 72)}, **place)
    found = getattr(asked, mode)()
    assert found
    assert {each.name for each in dataclasses.fields(Evaluation)} - seen <= {"tell", "begin"}


@pytest.mark.parametrize("mode", [(), ("--dry-run",), ("--check",)])
def test_every_option_of_eval_is_read(mode: tuple[str, ...], capsys: Any) -> None:
    assert unread("eval", "tiny", "--lengths", "36,72", "--data", "book.txt", *mode) == set()


def test_plan_counts_the_texts_that_there_are_and_the_questions() -> None:
    settings: dict[str, Any] = {"lengths": (72, 96), "max_memory": 2**30}
    imagined = Evaluation("tiny", ["none"], **settings).plan().costs["none"]
    found = Evaluation("tiny", ["none"], **settings, data="book.txt").plan()
    assert (imagined.passes, found.costs["none"].passes) == (2 * 32, 2 * 4)
    asked = Evaluation("tiny", ["none"], **settings, data="book.txt", **QUESTIONS).plan()
    assert asked.costs["none"].passes == 2 * 4 + 2
    assert asked.costs["none"].tokens == found.costs["none"].tokens + 72 + 96
    assert dataclasses.replace(found, budget=0.0).begun == 1
    assert dataclasses.replace(found, budget=0.5 * found.seconds["none"]).begun == 2
    for setting in ({"lm_eval": ("ruler",)}, {"cp": 2}, {"device_map": "auto"}):
        with pytest.raises(ValueError, match="a dry run cannot tell what that takes"):
            Evaluation("tiny", **settings, **setting).plan()
    nothing = Evaluation("tiny", ["none"], definitions=("none",), budget=1.0).plan()
    assert (nothing.begun, nothing.costs["none"].passes) == (32, 0)
    with pytest.raises(FileNotFoundError, match="no such file or folder: nowhere"):
        Evaluation("tiny", **settings, data="nowhere").plan()

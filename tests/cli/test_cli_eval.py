"""`ropex eval` and `ropex demo`: what they print and write."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from ropex_eval.api import Evaluation
from ropex_eval.report.terminal import render
from ropex_eval.scores.results import Results
from tests.support.models import TRAINED, save_checkpoint, save_with_tokenizer, tiny_causal
from tests.support.rounding import LOSS
from tests.support.shell import Shell, evaluation, write
from tests.support.tiny_eval import strict_json, tree, words


def test_eval_prints_the_table_and_writes_the_run(world: Shell) -> None:
    status, out, err = world.eval("-s", "none", "-s", "yarn:4", "-s", "dynamic")
    assert status == 0
    results = Results.load(Path("out"))
    assert out == render(results) + "\n"
    assert list(results.strategies) == ["none", "yarn:4", "dynamic"]
    assert f"trained at {TRAINED} tokens, float32 on " in err
    assert "2 excerpts of 48 tokens from 1 document" in err
    assert "ropex: warning: all excerpts come from one document" in err
    files = [name for name in tree(Path("out")) if not name.startswith("nll/")]
    assert files == [
        ".lock", "excerpts.safetensors", "nll", "ppl.png", "report.html", "results.csv",
        "results.json",
    ]  # fmt: skip
    assert all(f"out/{name}" in err for name in files[2:])
    assert Path("out/ppl.png").read_bytes().startswith(b"\x89PNG")


def test_eval_as_json_prints_the_file_alone(world: Shell) -> None:
    status, out, _ = world.eval("-s", "none", "--json")
    assert status == 0
    assert out == Path("out/results.json").read_text(encoding="utf-8")
    assert strict_json(out)["about"]["model"]["id"] == "tiny"


def test_eval_chooses_strategies_lengths_and_folder(world: Shell) -> None:
    write("book.txt", words(400))
    status, _, _ = world("eval", "./tiny/", "--data", "book.txt", "--excerpts", "2")
    assert status == 0
    results = Results.load(Path("runs/tiny"))
    assert results.protocol.lengths == (8, 16, 32, 64, 128)
    assert results.protocol.targets == 4
    assert list(results.strategies) == ["none", "yarn:length=128"]


def test_eval_names_the_folder_of_a_run_after_the_model(
    world: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("tiny")
    status, _, _ = world("eval", ".", "--lengths", "8,48", "--data", "../book.txt", "-s", "none")
    assert status == 0
    assert Path("runs/tiny/results.json").is_file()


def test_eval_within_the_trained_length_compares_nothing_unasked(world: Shell) -> None:
    assert world.eval("--lengths", "8,32")[0] == 0
    assert list(Results.load(Path("out")).strategies) == ["none"]


@pytest.mark.parametrize(
    ("budget", "seconds"), [("90s", 90.0), ("20m", 1200.0), ("1h30m", 5400.0), ("1H2M3S", 3723.0)]
)
def test_budget_is_read_as_people_write_it(
    world: Shell, monkeypatch: pytest.MonkeyPatch, budget: str, seconds: float
) -> None:
    given: list[float] = []

    def stop(*positional: Any, **named: Any) -> None:
        given.append(named["effort"].budget)
        raise ValueError("enough")

    monkeypatch.setattr("ropex_eval.api.run", stop)
    assert "enough" in world.refused(*evaluation("-s", "none", "--budget", budget)())
    assert given == [seconds]


def test_windows_slide_in_excerpts_that_are_longer(world: Shell) -> None:
    status, out, err = world.eval(
        "-s", "none", "--definitions", "sliding,overlapping", "--stride", "5", "--excerpt", "90"
    )
    assert status == 0
    assert "2 excerpts of 90 tokens from 1 document" in err
    assert "read in windows of L tokens that move on by 5 tokens" in out
    results = Results.load(Path("out"))
    assert results.protocol.stride == 5
    assert results.about["data"]["tokens"] == 90
    assert {row.tokens for row in results.results if row.definition == "sliding"} == {2 * 89}


@pytest.mark.parametrize("bos", ["none", "</s>"])
def test_model_without_bos_is_measured_on_request(world: Shell, bos: str) -> None:
    save_checkpoint(Path("bare"), bos=False)
    status, _, _ = world.eval("-s", "none", "--bos", bos, model="bare")
    assert status == 0
    assert Results.load(Path("out")).about["data"]["bos"] == {"none": None, "</s>": 1}[bos]


def test_data_is_read_from_every_kind_of_source(world: Shell) -> None:
    record = json.dumps({"body": words(200), "id": 1}) + "\n"
    write("docs.jsonl", record)
    write("set/train.jsonl", record)
    write("texts/book.txt", words(200))
    sources = ("book.txt", "texts", "docs.jsonl:body", "hf:set:train:body")
    hashes = set()
    for source in sources:
        out = source.partition(":")[0] + "-run"
        assert world.eval("-s", "none", "--data", source, "-o", out)[0] == 0
        data = Results.load(Path(out)).about["data"]
        assert data["source"] == source
        hashes.add((data["tokens_sha256"], data["excerpts"]))
    assert len(hashes) == 1


def test_eval_reads_the_standard_library_unless_told(world: Shell) -> None:
    status, _, err = world("eval", "tiny", "--lengths", "8,48", "-s", "none", "-o", "out")
    assert status == 0
    assert "text   stdlib: 32 excerpts of 48 tokens from 12 documents\n" in err


@pytest.mark.parametrize("names", ["prefix", "local, prefix", "fixed,fixed,local"])
def test_eval_has_every_number_that_is_asked_for_once(world: Shell, names: str) -> None:
    assert world.eval("-s", "none", "--definitions", names)[0] == 0
    rows = [(row.definition, row.length) for row in Results.load(Path("out")).results]
    assert rows == list(dict.fromkeys((m.strip(), n) for m in names.split(",") for n in (8, 48)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_eval_runs_in_the_type_that_is_asked_for(world: Shell, dtype: str) -> None:
    assert world.eval("-s", "none", "--dtype", dtype, "--device", "cpu")[0] == 0
    assert Results.load(Path("out")).about["model"]["dtype"] == dtype


def test_model_that_accelerate_spreads_has_the_same_numbers(world: Shell) -> None:
    assert world.eval("-s", "yarn:4", "-o", "alone")[0] == 0
    assert world.eval("-s", "yarn:4", "--device-map", "auto")[0] == 0
    assert Results.load(Path("out")).results == Results.load(Path("alone")).results


def test_sliding_window_is_told_and_lifted_on_request(world: Shell) -> None:
    save_with_tokenizer(tiny_causal("mistral", sliding_window=16).double(), Path("window"))
    with pytest.warns(UserWarning, match="attention sees only the last 16 tokens"):
        assert world.eval("-s", "yarn:4", model="window")[0] == 0
    windowed = Results.load(Path("out"))
    lifted = ("--lift-sliding-window", "-o", "lifted")
    assert world.eval("-s", "yarn:4", *lifted, model="window")[0] == 0
    results = Results.load(Path("lifted"))
    assert results.about["model"]["sliding_window_lifted"]
    within, beyond = (
        [run.of("local")["yarn:4"][length].nll for run in (windowed, results)] for length in (8, 48)
    )
    assert within[0] == pytest.approx(within[1], abs=LOSS)
    assert beyond[0] != pytest.approx(beyond[1], rel=1e-3)


# ropex demo


def test_demo_compares_strategies_on_the_shipped_model(
    world: Shell, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = Evaluation.run, []

    def shrunk(asked: Evaluation) -> Any:
        seen.append((asked.model, asked.lengths, asked.data))
        small = {"lengths": (8, 48), "excerpts": 2, "targets": 4, "data": "book.txt"}
        return real(dataclasses.replace(asked, **small))  # type: ignore[arg-type]

    monkeypatch.setattr("ropex.checkpoints.find.demo_checkpoint", lambda: checkpoint)
    monkeypatch.setattr(Evaluation, "run", shrunk)
    status, out, err = world("demo")
    assert status == 0
    assert seen == [("demo", (64, 128, 256, 512, 1024, 2048, 4096), None)]
    results = Results.load(Path("ropex-demo"))
    assert out == render(results) + "\n"
    assert {"none", "yarn:16", "linear:16", "ntk:16", "dynamic"} <= results.strategies.keys()
    assert "ropex patch MODEL" in err


def test_copies_of_a_file_count_once_and_that_is_told(world: Shell) -> None:
    for name in ("a", "b", "c"):
        write(f"texts/{name}.txt", words(200))
    status, _, err = world.eval("--data", "texts")
    assert status == 0
    assert "2 excerpts of 48 tokens from 1 document (2 repeated)" in err
    assert "2 documents repeated others word for word and were left out" in err
    data = strict_json(Path("out/results.json").read_text(encoding="utf-8"))["about"]["data"]
    assert (data["documents"], data["repeated"], data["clusters"]) == (["a.txt"], 2, "excerpts")

"""Retrieval in a run: every question asked once, of the model as a user would patch it."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import ropex
from ropex_eval.measure.answers import AnswerScorer
from ropex_eval.running import retrieving
from ropex_eval.running.retrieving import Questions, Retriever
from ropex_eval.scores.protocol import Protocol
from ropex_eval.scores.results import Results, Retrieval
from ropex_eval.study.study import Study
from ropex_eval.tasks import TASKS, Source, ask, contexts, rows
from tests.support.models import tiny_tokenizer
from tests.support.tiny_eval import corpus_of, start, strict_json, tree

READ = Protocol.of((72, 96))
QUESTIONS = Questions(("induction",), (0.0, 1.0), 2)
STRATEGIES = ("none", "yarn:4", "dynamic", "yarn:4+logn")


@pytest.fixture
def study(make: Callable[..., Study]) -> Study:
    return make(READ)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Task, length and number of each context that is asked from now on."""
    found: list[tuple[str, int, int]] = []

    def watched(scorer: Any, task: Any, context: Any) -> Any:
        found.append((task.name, context.setting.length, context.setting.sample))
        return ask(scorer, task, context)

    monkeypatch.setattr(retrieving, "ask", watched)
    return found


def run(study: Study, out: Path, *texts: str, questions: Questions = QUESTIONS) -> Results:
    retriever = Retriever(study, questions, tiny_tokenizer(), out)
    return start(study, out, *texts, retriever=retriever)


def by_hand(study: Study, text: str, questions: Questions = QUESTIONS) -> list[Retrieval]:
    """The rows of one strategy, from a model that is patched for each length."""
    found: list[Retrieval] = []
    source = Source.of(study.skeleton, tiny_tokenizer(), study.corpus.bos)
    grid = (questions.depths, questions.samples, questions.seed)
    for task in (TASKS[name] for name in questions.tasks):
        for length in study.protocol.lengths:
            held = text.replace("dynamic", f"dynamic:length={length}")
            with ropex.patch(study.load(), held) as patch:
                scorer = AnswerScorer(patch.model)
                asked = contexts(task, source, [length], *grid)
                samples = [each for context in asked for each in ask(scorer, task, context)]
            found += rows(text, samples)
    return found


@pytest.mark.parametrize(
    "questions",
    [QUESTIONS, Questions(("induction", "passkey"), (0.5,), 3, seed=4)],
    ids=["two depths", "two tasks"],
)
def test_rows_are_those_of_the_model_patched_by_hand(
    study: Study, tmp_path: Path, out: Path, questions: Questions
) -> None:
    if len(questions.tasks) > 1:
        protocol = Protocol.of((300, 340))
        corpus = corpus_of(tmp_path / "longer", 340)
        study = dataclasses.replace(study, protocol=protocol, corpus=corpus)
    found = run(study, out, *STRATEGIES, questions=questions).retrieval
    wanted = [row for text in STRATEGIES for row in by_hand(study, text, questions)]
    assert [dataclasses.astuple(row)[:4] for row in found] == [
        dataclasses.astuple(row)[:4] for row in wanted
    ]
    for ours, theirs in zip(found, wanted, strict=True):
        assert dataclasses.astuple(ours)[4:] == pytest.approx(dataclasses.astuple(theirs)[4:])
        assert ours.trials == questions.samples
    assert len({row.logprob for row in found}) == len(found)  # so that any mistake is seen


# Nothing is asked twice.


def test_second_start_asks_nothing_loads_no_weights_and_changes_no_byte(
    study: Study, out: Path, asked: list[Any]
) -> None:
    first = run(study, out, *STRATEGIES)
    assert len(asked) == 4 * 2 * 2
    assert len(set(asked)) == 2 * 2
    before = tree(out)
    bare = dataclasses.replace(study, load=lambda: pytest.fail("weights are loaded"))
    asked.clear()
    again = run(bare, out, *STRATEGIES)
    assert asked == []
    assert again.to_json() == first.to_json()
    assert tree(out) == before


@pytest.mark.parametrize(
    ("text", "questions", "bos"),
    [
        ("linear:4", QUESTIONS, 0),
        ("yarn:4", dataclasses.replace(QUESTIONS, seed=1), 0),
        ("yarn:4", dataclasses.replace(QUESTIONS, depths=(0.0, 0.9)), 0),
        ("yarn:4", QUESTIONS, 1),
    ],
)
def test_answers_to_other_questions_are_never_taken(
    study: Study, tmp_path: Path, out: Path, asked: list[Any], text: str, questions: Questions,
    bos: int,
) -> None:  # fmt: skip
    run(study, out, "yarn:4")
    asked.clear()
    changed = dataclasses.replace(study, corpus=dataclasses.replace(study.corpus, bos=bos))
    found = run(changed, out, text, questions=questions).retrieval
    assert len(asked) == 2 * 2
    fresh = run(changed, tmp_path / "fresh", text, questions=questions).retrieval
    assert [row for row in found if row.strategy == text] == list(fresh)


def test_what_is_asked_for_later_costs_only_what_is_missing(
    study: Study, tmp_path: Path, out: Path, asked: list[Any]
) -> None:
    short = dataclasses.replace(study, protocol=Protocol.of((72,), excerpt=96))
    run(short, out, "yarn:4")
    asked.clear()
    more = dataclasses.replace(QUESTIONS, samples=3)
    found = run(study, out, "yarn:4", questions=more)
    assert asked == [("induction", 72, 2), *(("induction", 96, sample) for sample in range(3))]
    assert found.retrieval == run(study, tmp_path / "fresh", "yarn:4", questions=more).retrieval


def test_length_that_has_a_plan_of_its_own_is_asked_under_it(
    study: Study, tmp_path: Path, out: Path, asked: list[Any]
) -> None:
    run(study, out, "dynamic")
    asked.clear()
    other = dataclasses.replace(study, protocol=Protocol.of((72, 90), excerpt=96))
    run(other, out, "dynamic")
    assert asked == [("induction", 90, 0), ("induction", 90, 1)]


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b"\xff", b"cut", b"changed"])
def test_damaged_answers_are_told_and_asked_again(
    study: Study, tmp_path: Path, out: Path, asked: list[Any], damage: bytes
) -> None:
    run(study, out, "yarn:4")
    before = tree(out)
    path = sorted((out / "answers").iterdir())[1]
    content = path.read_bytes()
    number = json.loads(content)["answers"][0]["logprob"]
    damages = {b"cut": content[:-9], b"changed": content.replace(str(number).encode(), b"-1.5")}
    path.write_bytes(damages.get(damage, damage))
    asked.clear()
    told: list[str] = []
    retriever = Retriever(study, QUESTIONS, tiny_tokenizer(), out)
    start(study, out, "yarn:4", retriever=retriever, tell=told.append)
    assert told == [f"{path} is damaged, and what it held is asked again"]
    assert len(asked) == 1
    assert tree(out) == before


def test_run_that_breaks_off_between_questions_goes_on(
    study: Study, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        turns = iter(range(3))

        def broken(*given: Any) -> Any:
            if next(turns) == 2:
                raise KeyboardInterrupt
            return ask(*given)

        patched.setattr(retrieving, "ask", broken)
        with pytest.raises(KeyboardInterrupt):
            run(study, out, "none", "yarn:4")
    assert len(list((out / "answers").iterdir())) == 2
    run(study, out, "none", "yarn:4")
    run(study, tmp_path / "whole", "none", "yarn:4")
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.parametrize("answered", [False, True])
def test_question_that_another_process_is_at_is_put_off(
    study: Study, out: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    run(study, out, "yarn:4")
    (first, *_) = (path for path in (out / "answers").iterdir() if _sample(path) == (72, 0))
    content = first.read_bytes()
    for path in list((out / "answers").iterdir()):
        if _sample(path)[0] == 72:
            path.unlink()
    asked.clear()
    (out / "locks").mkdir()
    lock = FileLock(out / "locks" / f"{first.stem}.lock", thread_local=False)
    lock.acquire()
    late = threading.Timer(5, lock.release)  # so that who waits for it does not wait for ever
    late.start()

    def freed(scorer: Any, task: Any, context: Any) -> Any:
        if answered:
            first.write_bytes(content)
        lock.release()  # the other process ends
        asked.append((task.name, context.setting.length, context.setting.sample))
        return ask(scorer, task, context)

    monkeypatch.setattr(retrieving, "ask", freed)
    run(study, out, "yarn:4")
    late.cancel()
    assert asked == [("induction", 72, 1), ("induction", 72, 0)][: 1 if answered else 2]
    assert first.read_bytes() == content


def _sample(path: Path) -> tuple[int, int]:
    answer = json.loads(path.read_text(encoding="utf-8"))["answers"][0]
    return answer["length"], answer["sample"]


# What a run keeps of it.


def test_prompts_and_expected_answers_are_written_one_a_line(study: Study, out: Path) -> None:
    questions = dataclasses.replace(QUESTIONS, tasks=("induction", "vt"))
    corpus = dataclasses.replace(study.protocol, lengths=(400,), excerpt=96)
    study = dataclasses.replace(study, protocol=dataclasses.replace(corpus, definitions=()))
    run(study, out, "none", questions=questions)
    for name, count in (("induction", 2 * 2), ("vt", 2)):
        lines = (out / "samples" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        records = [strict_json(line) for line in lines]
        assert len(records) == count
        assert {(each["task"], each["length"]) for each in records} == {(name, 400)}
        assert all(each["expected"] and each["prompt"] for each in records)
    assert records[0]["prompt"].startswith("<s>")
    assert "VAR" in records[0]["prompt"]


def test_rows_of_tasks_of_an_earlier_start_are_kept(study: Study, out: Path) -> None:
    first = run(study, out, "none", "yarn:4")
    read = start(study, out, "none")
    assert read.retrieval == first.retrieval
    other = dataclasses.replace(QUESTIONS, tasks=("kv",))
    longer = dataclasses.replace(study, protocol=Protocol.of((72, 96), definitions=()))
    longer = dataclasses.replace(longer, protocol=dataclasses.replace(longer.protocol,
                                                                      lengths=(500,)))  # fmt: skip
    both = run(longer, out, "none", "yarn:4", questions=other).retrieval
    assert [row for row in both if row.task == "induction"] == list(first.retrieval)
    assert {(row.task, row.strategy) for row in both if row.length == 500} == {
        ("kv", "none"), ("kv", "yarn:4"),
    }  # fmt: skip
    assert {path.name for path in (out / "samples").iterdir()} == {"induction.jsonl", "kv.jsonl"}

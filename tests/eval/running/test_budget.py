"""Runs that are short of time, and numbers that are none or stand alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from ropex_eval.measure.reader import Reader
from ropex_eval.running import work
from ropex_eval.scores.protocol import Protocol
from ropex_eval.scores.results import Results
from ropex_eval.study.study import Study
from tests.support.tiny_eval import Watch, break_reading, start, tree


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that have passed; each batch takes one."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    real = Reader.read

    def slow(self: Reader, *given: Any) -> Tensor:
        now[0] += 1
        return real(self, *given)

    monkeypatch.setattr(Reader, "read", slow)
    return now


@pytest.mark.parametrize(
    ("budget", "excerpts"), [(None, 6), (24.0, 6), (23.9, 5), (13.0, 3), (1.0, 1), (0.0, 1)]
)
def test_budget_ends_a_run_after_whole_turns_of_all_strategies(
    make: Callable[..., Study], tmp_path: Path, measured: Watch, monkeypatch: pytest.MonkeyPatch,
    clock: list[float], budget: float | None, excerpts: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(work, "BATCH_TOKENS", 48)  # an excerpt a turn: four seconds
    study = make(Protocol.of((8, 48)), excerpts=6)
    results = start(study, tmp_path / "out", "none", "yarn:4", budget=budget)
    assert results.about["data"]["excerpts"] == excerpts
    assert clock == [4.0 * excerpts]  # no turn was begun and not ended
    for strategy in ("none", "yarn:4"):
        read = {each.excerpt for text, each in measured.passes if text == strategy}
        assert read == set(range(excerpts))
    assert {row.tokens for row in results.results if row.definition == "local"} == {4 * excerpts}
    measured.take()
    start(study, tmp_path / "out", "none", "yarn:4")
    assert len(measured.passes) == 4 * (6 - excerpts)
    assert start(study, tmp_path / "whole", "none", "yarn:4").results == (
        Results.load(tmp_path / "out").results
    )


def test_strategy_that_was_read_as_far_as_the_others_stays(
    make: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    monkeypatch.setattr(work, "BATCH_TOKENS", 48)
    study = make(Protocol.of((8, 48)), excerpts=6)
    start(study, tmp_path / "out", "none", "yarn:4", budget=9.0)
    results = start(study, tmp_path / "out", "none", "linear:4", budget=4.0)
    assert results.about["data"]["excerpts"] == 2
    assert list(results.strategies) == ["none", "yarn:4", "linear:4"]


def test_long_run_writes_what_is_finished_from_time_to_time(
    make: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    monkeypatch.setattr(work, "BATCH_TOKENS", 48)
    study = make(Protocol.of((8, 48)), excerpts=6)
    with monkeypatch.context() as patched:
        break_reading(patched, KeyboardInterrupt(), 18)
        with pytest.raises(KeyboardInterrupt):
            start(study, tmp_path / "out", "none", "yarn:4")
    early = Results.load(tmp_path / "out")
    assert early.about["data"]["excerpts"] in (2, 3, 4)
    start(study, tmp_path / "out", "none", "yarn:4")
    start(study, tmp_path / "whole", "none", "yarn:4")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize(("excerpts", "warning"), [(1, "one excerpt gives no intervals"), (3, "")])
def test_reader_is_warned_of_numbers_without_intervals(
    make: Callable[..., Study], tmp_path: Path, excerpts: int, warning: str
) -> None:
    results = start(make(Protocol.of((8, 32, 48)), excerpts=excerpts), tmp_path / "out", "none")
    assert [text[: len(warning)] for text in results.about["warnings"]] == [warning] * bool(warning)
    assert all((row.se is None) == bool(warning) for row in results.results)


def test_excerpts_of_one_document_are_clusters_with_a_warning(
    make: Callable[..., Study], tmp_path: Path
) -> None:
    study = make(Protocol.of((8, 32, 48)), excerpts=4)
    one = [each for each in study.corpus.excerpts if each.document == "a.txt"]
    corpus = dataclasses.replace(study.corpus, excerpts=tuple(one))
    alone = start(dataclasses.replace(study, corpus=corpus), tmp_path / "one", "none")
    assert alone.about["data"]["clusters"] == "excerpts"
    assert "all excerpts come from one document" in alone.about["warnings"][0]
    assert len(one) == 2
    assert all(row.se is not None for row in alone.results)
    both = start(study, tmp_path / "both", "none")
    assert both.about["data"]["clusters"] == "documents"
    assert both.about["warnings"] == []

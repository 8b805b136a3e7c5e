"""A run that goes on: nothing is computed twice, and nothing stale is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from ropex_eval.running import work
from ropex_eval.scores.protocol import Protocol
from ropex_eval.scores.results import Results
from ropex_eval.study.study import Study
from tests.support.rounding import LOSS
from tests.support.tiny_eval import Watch, break_reading, start, tree

PROTOCOL = Protocol.of((8, 48))
TEXTS = ("none", "yarn:4", "dynamic")


def unloaded(study: Study) -> Study:
    """The same, with weights that must not be asked for."""

    def load() -> Any:
        raise AssertionError("the weights were loaded")

    return dataclasses.replace(study, load=load)


def numbers(results: Results) -> dict[tuple[str, str, int], float]:
    return {(row.strategy, row.definition, row.length): row.nll for row in results.results}


def test_second_start_loads_no_weights_and_changes_no_byte(
    make: Callable[..., Study], out: Path, measured: Watch
) -> None:
    first = start(make(), out, *TEXTS)
    before = tree(out)
    assert measured.take() == list(TEXTS)
    again = start(unloaded(make()), out, *TEXTS)
    assert again == first
    assert tree(out) == before
    assert start(unloaded(make()), out, *reversed(TEXTS)) == first
    assert tree(out) == before


def test_strategy_is_the_same_in_any_spelling(
    make: Callable[..., Study], out: Path, measured: Watch
) -> None:
    start(make(), out, "yarn:4", "yarn:factor=4.0")
    start(make(), out, "YARN:factor=4,beta_fast=32", "yarn:4")
    assert [strategy for strategy, _ in measured.batches] == ["yarn:4"] * 2  # 8 and 48 tokens


def test_added_strategy_is_measured_alone_and_joins_the_others(
    make: Callable[..., Study], out: Path, measured: Watch
) -> None:
    first = start(make(), out, "none", "yarn:4")
    before = tree(out / "nll")
    measured.take()
    both = start(make(), out, "linear:4")
    assert measured.take() == ["linear:4"]
    assert list(both.strategies) == ["none", "yarn:4", "linear:4"]
    assert both.results[: len(first.results)] == first.results
    assert before.items() <= tree(out / "nll").items()
    parts = start(make(), out.parent / "whole", "none", "yarn:4", "linear:4")
    assert parts == both


FEWER = Protocol.of((48,), 4)
MORE = Protocol.of((8, 24, 48), 4)


@pytest.mark.parametrize(
    ("first", "then", "strategy", "passes"),
    [
        ((PROTOCOL, 3), (PROTOCOL, 2), "yarn:4", []),
        ((PROTOCOL, 3), (FEWER, 3), "yarn:4", []),
        ((PROTOCOL, 3), (Protocol.of((8, 48), 3), 3), "yarn:4", []),
        ((PROTOCOL, 3), (Protocol.of((8, 48), 4, ("local",)), 3), "yarn:4", []),
        ((PROTOCOL, 3), (Protocol.of((8, 48), 4, ("mean_perplexity",)), 3), "yarn:4", []),
        ((PROTOCOL, 3), (MORE, 3), "yarn:4", [(0, 24), (1, 24), (2, 24)]),
        ((FEWER, 3), (PROTOCOL, 3), "yarn:4", [(0, 8), (1, 8), (2, 8)]),
        ((PROTOCOL, 3), (Protocol.of((8, 48), 5), 3), "yarn:4", [(0, 8), (1, 8), (2, 8)]),
        ((PROTOCOL, 3), (PROTOCOL, 4), "yarn:4", [(3, 8), (3, 48)]),
        ((PROTOCOL, 1), (PROTOCOL, 3), "yarn:4", [(1, 8), (2, 8), (1, 48), (2, 48)]),
        ((PROTOCOL, 2), (FEWER, 3), "yarn:4", [(2, 48)]),
        ((PROTOCOL, 2), (FEWER, 3), "dynamic", [(2, 48)]),
        ((PROTOCOL, 2), (MORE, 2), "dynamic", [(0, 24), (1, 24), (0, 24), (1, 24)]),
        ((Protocol.of((8, 48), 4, ("local",)), 2),
         (Protocol.of((8, 48), 4, ("local", "prefix")), 2), "yarn:4", [(0, 48), (1, 48)]),
        ((PROTOCOL, 1), (Protocol.of((48,), 4, ("sliding", "prefix"), 30, 48), 1), "yarn:4", []),
    ],
)  # fmt: skip
def test_what_is_asked_for_later_costs_only_what_is_missing(
    make: Callable[..., Study], out: Path, measured: Watch, first: tuple[Protocol, int],
    then: tuple[Protocol, int], strategy: str, passes: list[tuple[int, int]],
) -> None:  # fmt: skip
    start(make(first[0], excerpts=first[1]), out, strategy)
    measured.take()
    later = make(then[0], excerpts=then[1])
    continued = start(later if passes else unloaded(later), out, strategy)
    assert [(each.excerpt, each.length) for _, each in measured.passes] == passes
    fresh = start(later, out.parent / "fresh", strategy)
    assert numbers(continued) == pytest.approx(numbers(fresh), abs=LOSS)
    assert continued.about == fresh.about
    assert start(unloaded(later), out, strategy) == continued


def test_longer_texts_of_the_same_documents_are_read_anew(
    make: Callable[..., Study], out: Path, measured: Watch
) -> None:
    start(make(), out, "yarn:4")
    measured.take()
    longer = make(Protocol.of((8, 48, 96), 4), excerpts=2)
    continued = start(longer, out, "yarn:4")
    assert {each.length for _, each in measured.passes} == {8, 48, 96}
    fresh = start(longer, out.parent / "fresh", "yarn:4")
    assert numbers(continued) == pytest.approx(numbers(fresh), abs=LOSS)


def turned(study: Study) -> Study:
    excerpts = [dataclasses.replace(e, ids=e.ids.flip(0)) for e in study.corpus.excerpts]
    return dataclasses.replace(
        study, corpus=dataclasses.replace(study.corpus, excerpts=tuple(excerpts))
    )


def with_another_bos(study: Study) -> Study:
    return dataclasses.replace(study, corpus=dataclasses.replace(study.corpus, bos=1))


@pytest.mark.parametrize("change", [turned, with_another_bos])
def test_other_tokens_are_read_anew_and_strategies_that_lack_them_are_left_out(
    make: Callable[..., Study], out: Path, measured: Watch, change: Callable[[Study], Study]
) -> None:
    told: list[str] = []
    first = start(make(), out, "none", "yarn:4")
    measured.take()
    other = start(change(make()), out, "none", tell=told.append)
    assert [strategy for strategy, _ in measured.batches] == ["none"] * 2
    assert list(other.strategies) == ["none"]
    assert told == ["yarn:4 was measured on other texts or lengths; -s yarn:4 adds it here"]
    assert numbers(other) != pytest.approx(numbers(first), abs=1e-3)
    assert start(change(make()), out.parent / "fresh", "none") == other
    assert start(unloaded(make()), out, "none", "yarn:4") == first  # which was not thrown away


def test_plans_that_are_alike_share_their_passes(
    make: Callable[..., Study], out: Path, measured: Watch
) -> None:
    start(make(Protocol.of((8, 24, 48), 4)), out, "none")
    measured.take()
    start(make(Protocol.of((8, 24, 48), 4)), out, "dynamic", "linear:1")
    assert {(text, each.length) for text, each in measured.passes} == {("dynamic", 48)}


@pytest.mark.parametrize("turn", [0, 1, 2, 4])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("full"), ZeroDivisionError()])
def test_run_that_breaks_off_and_goes_on_equals_one_that_never_did(
    make: Callable[..., Study], out: Path, measured: Watch, monkeypatch: pytest.MonkeyPatch,
    turn: int, error: BaseException,
) -> None:  # fmt: skip
    study = make(Protocol.of((8, 24, 48), 4))
    whole = out.parent / "whole"
    start(study, whole, *TEXTS)
    all_passes = measured.passes.copy()
    measured.take()
    with monkeypatch.context() as patched:
        break_reading(patched, error, turn)
        with pytest.raises(type(error)):
            start(study, out, *TEXTS)
    assert len(measured.batches) == turn
    assert Results.load(out).results == ()
    results = start(study, out, *TEXTS)
    assert measured.passes == all_passes
    assert list(results.strategies) == list(TEXTS)
    assert tree(out) == tree(whole)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-8]),
        lambda path: path.write_bytes(b"\xff" * 300),
        lambda path: path.unlink(),
    ],
)
def test_damaged_file_is_measured_again_and_no_other(
    make: Callable[..., Study], out: Path, measured: Watch, damage: Callable[[Path], None]
) -> None:
    told: list[str] = []
    start(make(), out, *TEXTS)
    before, first = tree(out), measured.batches.copy()
    measured.take()
    path = sorted((out / "nll").iterdir())[1]
    damage(path)
    start(make(), out, *TEXTS, tell=told.append)
    assert len(measured.batches) == 1
    assert measured.batches[0] in first
    assert tree(out) == before
    assert [sentence.split(" (")[0] for sentence in told] in (
        [],  # for a file that is gone
        [f"{path} is damaged, and what it held is measured again"],
    )


@pytest.mark.parametrize("known", [1, 3])
def test_what_another_process_measures_meanwhile_is_not_measured_again(
    make: Callable[..., Study], out: Path, measured: Watch, known: int
) -> None:
    start(make(excerpts=known), out, "none")
    results: list[Results] = []

    def other() -> None:  # once this one knows what is missing
        results.append(start(make(excerpts=5), out, *TEXTS))
        measured.take()

    results.append(start(make(excerpts=5), out, *TEXTS, begin=other))
    assert measured.passes == []
    assert results[0] == results[1]


def test_strategies_that_another_process_adds_meanwhile_are_kept(
    make: Callable[..., Study], out: Path, causal: Any
) -> None:
    def load() -> Any:  # with a lock in hand, which the other process does not need
        start(make(), out, "none")
        return causal

    results = start(dataclasses.replace(make(), load=load), out, "yarn:4")
    assert list(results.strategies) == ["none", "yarn:4"]


def test_work_that_another_process_is_at_is_put_off_and_waited_for(
    make: Callable[..., Study], out: Path, measured: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real: Any = FileLock

    class Busy(real):  # type: ignore[misc]
        def acquire(self, timeout: float) -> Any:
            asked.append(int(timeout))
            if len(asked) == 1:
                raise Timeout(str(self.lock_file))
            return super().acquire(timeout=timeout)

    monkeypatch.setattr(work, "FileLock", Busy)
    start(make(), out, "none", "yarn:4")
    assert measured.strategies == ["yarn:4", "none"]
    assert asked == [0, 0, -1]
    assert not (out / "locks").exists()

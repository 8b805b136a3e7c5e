"""Which passes a study needs, and that one of them speaks for all lengths that share its plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import ropex
from ropex.rope import Plan, Rope
from ropex.strategies.base import Length, LengthClass, Strategy
from ropex.strategies.frozen import Frozen
from ropex_eval.scores.protocol import Protocol
from ropex_eval.study.passes import Pass, batches, length_classes, passes
from tests.support.models import TRAINED
from tests.support.rounding import LOSS
from tests.support.tiny_eval import (
    BY_LENGTH,
    LENGTHS,
    STATIC,
    corpus_of,
    plain_nll,
    start,
    study_of,
)

ROPE = Rope.standard(8, 10_000.0, TRAINED)
TWO = "longrope:factor=4,long_factor=1/1.5/2/4,short_factor=1/1/1/1"


@dataclass(frozen=True)
class Classed(Strategy):
    name: ClassVar[str] = "classed"
    paper: ClassVar[str] = ""
    kind: LengthClass = "static"

    @property
    def length_class(self) -> LengthClass:
        return self.kind

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        return plan


@pytest.mark.parametrize(
    ("kind", "lengths", "groups"),
    [
        ("static", [8, 32, 33, 96], [[8, 32, 33, 96]]),
        ("two", [8, 32, 33, 96], [[8, 32], [33, 96]]),
        ("per_length", [8, 32, 33, 96], [[8, 32], [33], [96]]),
        ("static", [8], [[8]]),
        ("two", [8, 16], [[8, 16]]),
        ("two", [64, 96], [[64, 96]]),
        ("per_length", [96, 64, 96], [[64], [96]]),
        ("per_length", [32], [[32]]),
    ],
)
def test_lengths_share_a_pass_where_they_share_a_plan(
    kind: LengthClass, lengths: list[int], groups: list[list[int]]
) -> None:
    classes = length_classes(Classed(kind), ROPE, lengths)
    assert classes == {length: group[-1] for group in groups for length in group}


@pytest.mark.parametrize("text", [*STATIC, *BY_LENGTH, TWO])
def test_lengths_of_a_class_have_the_plan_that_is_held(text: str) -> None:
    strategy = ropex.strategy(text)
    lengths = [2, 8, TRAINED - 1, TRAINED, TRAINED + 1, 48, 96]
    for length, at in length_classes(strategy, ROPE, lengths).items():
        live, held = strategy.plan(ROPE, length), Frozen(strategy, at).plan(ROPE, 7)
        assert torch.equal(live.inv_freq, held.inv_freq)
        assert live.attention_scale == held.attention_scale


@pytest.mark.parametrize("text", [*STATIC, *BY_LENGTH, TWO])
def test_numbers_of_each_length_are_those_of_a_pass_of_its_own(
    tmp_path: Path, checkpoint: Path, causal: Any, text: str
) -> None:
    study = study_of(tmp_path, checkpoint, causal, Protocol.of(LENGTHS, 5), excerpts=2)
    results = start(study, tmp_path / "out", text)
    for length in LENGTHS:
        first, last = [], []
        with ropex.patch(causal, text):
            for excerpt in study.corpus.excerpts:
                ids = excerpt.ids
                assert len(ids) == LENGTHS[-1] - 1
                bos = ids.new_tensor([0])
                first.append(plain_nll(causal, torch.cat([bos, ids[: length - 1]])))
                last.append(plain_nll(causal, torch.cat([bos, ids[LENGTHS[-1] - length :]])))
        for name, scores in (
            ("prefix", first),
            ("local", [row[-5:] for row in first]),
            ("fixed", [row[-5:] for row in last]),
        ):
            found = results.of(name)[text][length]
            assert found.nll == pytest.approx(float(torch.cat(scores).mean()), abs=LOSS)


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        ("yarn:4", ("local", "prefix"), [(0, 96, 96)]),
        ("none", ("fixed",), [(0, 96, 96), (48, 48, 96), (72, 24, 96), (88, 8, 96)]),
        ("dynamic", ("local",), [(0, 24, 24), (0, 48, 48), (0, 96, 96)]),
        (TWO, ("local",), [(0, 24, 24), (0, 96, 96)]),
        ("dynamic", ("local", "fixed"),
         [(0, 24, 24), (0, 48, 48), (0, 96, 96), (48, 48, 48), (72, 24, 24), (88, 8, 24)]),
        ("yarn:4", ("disjoint", "prefix"), [*((n, 8, 96) for n in range(7, 91, 7)), (91, 5, 96)]),
    ],
)  # fmt: skip
def test_passes_are_the_fewest_that_serve_and_the_longer_ones_come_last(
    tmp_path: Path, text: str, names: tuple[str, ...], expected: list[tuple[int, int, int]]
) -> None:
    corpus = corpus_of(tmp_path / "texts", 96, 2)
    protocol = Protocol.of(LENGTHS, 5, names)
    planned = passes(corpus, protocol, ropex.strategy(text), ROPE)
    for index in range(2):
        here = [each for each in planned if each.excerpt == index]
        found = sorted((each.start, each.length, each.at) for each in here)
        assert set(expected) <= set(found)
        assert len({(start, at) for start, _, at in found}) == len(found)
        if names[0] != "disjoint":
            assert found == sorted(expected)
        lengths = [each.length for each in here]
        assert lengths == sorted(lengths)
    assert [each.excerpt for each in planned] == sorted(each.excerpt for each in planned)


def test_passes_run_side_by_side_where_they_are_alike() -> None:
    rows, other = ((0, 7),), ((3, 7),)
    todo = [
        *(Pass(n, 0, True, 8, 8, rows) for n in range(5)), Pass(5, 3, True, 8, 8, rows),
        Pass(0, 0, False, 8, 8, rows), Pass(0, 0, True, 8, 96, rows), Pass(0, 0, True, 8, 8, other),
        Pass(0, 0, True, 96, 96, rows),
    ]  # fmt: skip
    run = batches(todo, 33)
    assert sorted(map(len, run)) == [1, 1, 1, 1, 2, 4]  # four of eight are not more than 33
    assert sorted((each for batch in run for each in batch), key=str) == sorted(todo, key=str)
    for batch in run:
        assert len({(each.length, each.at, each.bos, each.rows) for each in batch}) == 1

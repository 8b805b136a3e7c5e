"""Tax, gain, winners, verdicts and the curve of a run, from plain passes and by plain loops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_eval import TRAINED, plain_nll, start, study_of

import ropex
from ropex_eval.protocol import Protocol
from ropex_eval.results import Results

TEXTS = ("none", "yarn:4", "dynamic")
LENGTHS = (8, 24, 48)
TARGETS = 3
Rows = list[tuple[str, list[float]]]
"""Document and NLLs, for each excerpt."""


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, causal: Any
) -> tuple[Results, dict[tuple[str, str, int], Rows]]:
    """A run, and what a plain pass says of each strategy, definition and length."""
    folder = tmp_path_factory.mktemp("numbers")
    study = study_of(folder, checkpoint, causal, Protocol.of(LENGTHS, TARGETS), excerpts=5)
    results = start(study, folder / "out", *TEXTS)
    plain: dict[tuple[str, str, int], Rows] = {}
    for text in TEXTS:
        for length in LENGTHS:
            for excerpt in study.corpus.excerpts:
                ids = excerpt.ids.tolist()
                with ropex.patch(causal, text):
                    first = plain_nll(causal, torch.tensor([0, *ids[: length - 1]])).tolist()
                    last = plain_nll(causal, torch.tensor([0, *ids[48 - length :]])).tolist()
                name = excerpt.document
                plain.setdefault((text, "prefix", length), []).append((name, first))
                plain.setdefault((text, "local", length), []).append((name, first[-TARGETS:]))
                plain.setdefault((text, "fixed", length), []).append((name, last[-TARGETS:]))
    return results, plain


def mean_and_error(rows: Rows) -> tuple[float, float]:
    """Over tokens; two documents are two clusters."""
    mean = sum(sum(values) for _, values in rows) / sum(len(values) for _, values in rows)
    residuals = dict.fromkeys((name for name, _ in rows), 0.0)
    for name, values in rows:
        residuals[name] += sum(values) - mean * len(values)
    assert len(residuals) == 2
    spread = sum(residual**2 for residual in residuals.values()) * 2 / (2 - 1)
    return mean, math.sqrt(spread) / sum(len(values) for _, values in rows)


def difference(new: Rows, old: Rows) -> Rows:
    return [
        (name, [a - b for a, b in zip(left, right, strict=True)])
        for (name, left), (_, right) in zip(new, old, strict=True)
    ]


def test_every_number_has_the_error_of_its_documents(measured: Any) -> None:
    results, plain = measured
    assert len(results.results) == len(plain)
    for row in results.results:
        mean, error = mean_and_error(plain[row.strategy, row.definition, row.length])
        assert (row.nll, row.se) == pytest.approx((mean, error), abs=1e-5)
        ends = [math.exp(mean - 12.706 * error), math.exp(mean + 12.706 * error)]
        assert [row.low, row.high] == pytest.approx(ends, rel=1e-3)


def test_tax_and_gain_are_paired_with_no_scaling(measured: Any) -> None:
    results, plain = measured
    expected = {}
    for text in TEXTS:
        for name in ("local", "fixed"):
            for length in LENGTHS:
                if length <= TRAINED and text != "none":
                    expected[text, "tax", name, length] = length
                if length > TRAINED and name == "fixed":
                    expected[text, "gain", name, length] = 24
    found = {(c.strategy, c.kind, c.definition, c.length): c.against for c in results.changes}
    assert found == expected
    for change in results.changes:
        rows = difference(
            plain[change.strategy, change.definition, change.length],
            plain["none", change.definition, change.against],
        )
        mean, error = mean_and_error(rows)
        assert (change.nll, change.se) == pytest.approx((mean, error), abs=1e-5)
        half = 12.706 * error
        assert (change.low, change.high) == pytest.approx((mean - half, mean + half), abs=1e-3)


def test_winner_is_the_least_surprised_by_the_same_tokens(measured: Any) -> None:
    results, plain = measured
    assert [winner.length for winner in results.winners] == list(LENGTHS)
    for winner in results.winners:
        means = {text: mean_and_error(plain[text, "fixed", winner.length])[0] for text in TEXTS}
        best, second = sorted(means.values())[:2]
        assert means[winner.strategy] == pytest.approx(best, abs=1e-5)
        assert means[winner.second] == pytest.approx(second, abs=1e-5)
        assert winner.strategy != winner.second
        rows = difference(
            plain[winner.strategy, "fixed", winner.length],
            plain[winner.second, "fixed", winner.length],
        )
        assert (winner.nll, winner.se) == pytest.approx(mean_and_error(rows), abs=1e-5)


def test_steps_of_a_verdict_are_what_more_context_changes(measured: Any) -> None:
    results, plain = measured
    assert [verdict.strategy for verdict in results.verdicts] == list(TEXTS)
    for verdict in results.verdicts:
        assert [(step.start, step.end) for step in verdict.steps] == [(8, 24), (24, 48)]
        for step in verdict.steps:
            rows = difference(
                plain[verdict.strategy, "fixed", step.end],
                plain[verdict.strategy, "fixed", step.start],
            )
            assert (step.nll, step.se) == pytest.approx(mean_and_error(rows), abs=1e-5)


def test_curve_is_the_longest_pass_cut_at_growing_positions(measured: Any) -> None:
    results, plain = measured
    for text in TEXTS:
        points = [point for point in results.curve if point.strategy == text]
        assert [point.start for point in points] == [1, *(point.end for point in points[:-1])]
        assert points[-1].end == LENGTHS[-1]
        assert len(points) > 3
        for point in points:
            rows = [
                (name, values[point.start - 1 : point.end - 1])
                for name, values in plain[text, "prefix", LENGTHS[-1]]
            ]
            assert (point.nll, point.se) == pytest.approx(mean_and_error(rows), abs=1e-5)


@pytest.mark.parametrize(
    ("definitions", "texts", "missing"),
    [
        (("prefix",), TEXTS, {"changes", "verdicts", "winners"}),
        (("local",), TEXTS, {"verdicts", "winners", "curve"}),
        (("fixed",), ("none",), {"winners", "curve"}),
        (("fixed", "prefix"), ("yarn:4", "dynamic"), {"changes"}),
    ],
)
def test_what_was_not_measured_is_left_out(
    tmp_path: Path,
    checkpoint: Path,
    causal: Any,
    definitions: tuple[str, ...],
    texts: tuple[str, ...],
    missing: set[str],
) -> None:
    protocol = Protocol.of((8, 48), TARGETS, definitions, None, 60)
    results = start(study_of(tmp_path, checkpoint, causal, protocol), tmp_path / "out", *texts)
    parts = ("changes", "verdicts", "winners", "curve")
    assert {name for name in parts if not getattr(results, name)} == missing

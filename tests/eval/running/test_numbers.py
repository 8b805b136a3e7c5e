"""Tax, gain, winners, verdicts and the curve of a run, from plain passes and by plain loops."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import ropex
from ropex_eval.report.page import render as page_of
from ropex_eval.report.terminal import render
from ropex_eval.scores.protocol import Protocol
from ropex_eval.scores.results import Results
from tests.support.models import TRAINED, tiny_causal
from tests.support.rounding import LOSS
from tests.support.tiny_eval import plain_nll, start, study_of

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
        assert (row.nll, row.se) == pytest.approx((mean, error), abs=LOSS)
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
        assert (change.nll, change.se) == pytest.approx((mean, error), abs=LOSS)
        half = 12.706 * error
        assert (change.low, change.high) == pytest.approx((mean - half, mean + half), abs=1e-3)


def test_winner_is_the_least_surprised_by_the_same_tokens(measured: Any) -> None:
    results, plain = measured
    assert [winner.length for winner in results.winners] == list(LENGTHS)
    for winner in results.winners:
        means = {text: mean_and_error(plain[text, "fixed", winner.length])[0] for text in TEXTS}
        best, second = sorted(means.values())[:2]
        assert means[winner.strategy] == pytest.approx(best, abs=LOSS)
        assert means[winner.second] == pytest.approx(second, abs=LOSS)
        assert winner.strategy != winner.second
        rows = difference(
            plain[winner.strategy, "fixed", winner.length],
            plain[winner.second, "fixed", winner.length],
        )
        assert (winner.nll, winner.se) == pytest.approx(mean_and_error(rows), abs=LOSS)


def test_steps_of_a_verdict_are_paired_with_no_scaling_at_the_trained_length(measured: Any) -> None:
    results, plain = measured
    assert [verdict.strategy for verdict in results.verdicts] == list(TEXTS)
    for verdict in results.verdicts:
        assert [(step.start, step.end) for step in verdict.steps] == [(24, 24), (24, 48)]
        for step in verdict.steps:
            rows = difference(
                plain[verdict.strategy, "fixed", step.end], plain["none", "fixed", step.start]
            )
            assert (step.nll, step.se) == pytest.approx(mean_and_error(rows), abs=LOSS)
            assert step.hurt == share_above(0.05, rows)
            assert step.collapsed == share_above(0.3, rows)


def share_above(limit: float, rows: Rows) -> float:
    """Of the documents, by the mean of all their tokens."""
    by_document: dict[str, list[float]] = {}
    for name, values in rows:
        by_document.setdefault(name, []).extend(values)
    means = [sum(values) / len(values) for values in by_document.values()]
    return sum(mean > limit for mean in means) / len(means)


def test_share_of_documents_hurt_stands_beside_every_change_and_in_the_csv(
    measured: Any, tmp_path: Path
) -> None:
    results, plain = measured
    shares = {}
    for change in results.changes:
        rows = difference(
            plain[change.strategy, change.definition, change.length],
            plain["none", change.definition, change.against],
        )
        assert change.hurt == share_above(0.05, rows)
        shares[change.strategy, change.definition, str(change.length)] = str(change.hurt)
    assert {"0.0", "1.0"} <= set(shares.values())
    results.save(tmp_path)
    with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(results.results)
    for row in read:
        assert row["hurt"] == shares.get((row["strategy"], row["definition"], row["length"]), "")


def test_weights_that_are_no_numbers_give_no_verdict_and_no_best(
    tmp_path: Path, checkpoint: Path
) -> None:
    model = tiny_causal()
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    protocol = Protocol.of(LENGTHS, TARGETS)
    results = start(study_of(tmp_path, checkpoint, model, protocol), tmp_path / "out", *TEXTS)
    for verdict in results.verdicts:
        assert (verdict.safe, verdict.useful, verdict.finite) == (None, None, False)
    assert results.winners == ()
    told = render(results)
    assert "no verdict, as losses are NaN or infinite: none, yarn:4, dynamic" in told
    assert "best" not in told
    assert any("gets no verdict" in text for text in results.about["warnings"])
    page = page_of(results, {})
    assert "No verdict, as losses are NaN or infinite: none, yarn:4 and dynamic." in page
    assert "safe up to" not in page.partition("Safe context:")[0]
    assert Results.load(tmp_path / "out").to_json() == results.to_json()


@pytest.mark.parametrize(
    ("lengths", "told"),
    [
        ((48, 96), "no length is within the 32 tokens"),
        ((8, 48), "the trained length, 32, is not among --lengths"),
    ],
)
def test_what_a_verdict_is_drawn_against_is_told(
    tmp_path: Path, checkpoint: Path, causal: Any, lengths: tuple[int, ...], told: str
) -> None:
    study = study_of(tmp_path, checkpoint, causal, Protocol.of(lengths, TARGETS))
    results = start(study, tmp_path / "out", "none", "yarn:4")
    assert any(text.startswith(told) for text in results.about["warnings"])
    assert bool(results.verdicts) == (lengths[0] == 8)


def test_results_of_the_version_before_load_without_their_verdicts(
    tmp_path: Path, measured: Any
) -> None:
    results, _ = measured
    content = json.loads(results.to_json())
    content["schema"] = 2
    content["verdicts"] = [
        {
            "strategy": "none", "safe": 48, "safe_decided": False, "useful": None,
            "useful_decided": False, "clusters_needed": 41,
            "steps": [{"start": 24, "end": 48, "nll": 0.1, "se": 0.1}],
        }
    ]  # fmt: skip
    for change in content["changes"]:
        del change["hurt"]
    (tmp_path / "results.json").write_text(json.dumps(content), encoding="utf-8")
    loaded = Results.load(tmp_path)
    assert loaded.verdicts == ()
    assert loaded.results == results.results
    assert {change.hurt for change in loaded.changes} == {None}
    assert "rested on another test" in loaded.about["warnings"][-1]
    assert "verdict:" not in render(loaded)
    page_of(loaded, {})


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
            assert (point.nll, point.se) == pytest.approx(mean_and_error(rows), abs=LOSS)


@pytest.mark.parametrize(
    ("definitions", "texts", "missing"),
    [
        (("prefix",), TEXTS, {"changes", "verdicts", "winners"}),
        (("local",), TEXTS, {"verdicts", "winners", "curve"}),
        (("fixed",), ("none",), {"winners", "curve"}),
        (("fixed", "prefix"), ("yarn:4", "dynamic"), {"changes", "verdicts"}),
    ],
)
def test_what_was_not_measured_is_left_out(
    tmp_path: Path, checkpoint: Path, causal: Any, definitions: tuple[str, ...],
    texts: tuple[str, ...], missing: set[str],
) -> None:  # fmt: skip
    protocol = Protocol.of((8, 48), TARGETS, definitions, None, 60)
    results = start(study_of(tmp_path, checkpoint, causal, protocol), tmp_path / "out", *texts)
    parts = ("changes", "verdicts", "winners", "curve")
    assert {name for name in parts if not getattr(results, name)} == missing

"""One picture of a run."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from ropex.files.locks import locked
from ropex_eval.report import written
from ropex_eval.report.plot import plot
from ropex_eval.scores.definitions import DEFINITIONS, HEADLINE
from ropex_eval.scores.results import Results
from tests.support.models import TRAINED
from tests.support.tiny_eval import results_of


@pytest.mark.parametrize(
    "values",
    [
        {"local": {"none": [3.0, 4.0], "yarn:4": [3.5, 3.6]}},
        {definition: {"none": [3.0, 4000.0]} for definition in HEADLINE},
        {"local": {"none": [3.0, math.inf], "yarn:4": [3.5, 3.6]}},
        {"local": {"none": [math.inf, math.inf]}}, {"local": {"none": [math.nan, 3.0]}},
        {"local": {"none": [math.nan, math.nan]}}, {"local": {"none": [1e300, 3.0]}},
        {"local": {"none": [3.0, 3.0]}},
    ],
)  # fmt: skip
def test_picture_is_drawn_whatever_the_numbers(
    tmp_path: Path, values: dict[str, dict[str, list[float]]]
) -> None:
    plot(results_of(values, [24, 100]), tmp_path / "ppl.png")
    picture = (tmp_path / "ppl.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) > 5_000
    assert [path.name for path in tmp_path.iterdir()] == ["ppl.png"]


def picture(results: Results, folder: Path) -> Figure:
    """The figure that is saved."""
    drawn: list[Figure] = []
    save = Figure.savefig

    def remembered(self: Figure, *given: Any, **others: Any) -> None:
        drawn.append(self)
        save(self, *given, **others)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Figure, "savefig", remembered)
        plot(results, folder / "ppl.png")
    return drawn[0]


def labels(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_xticklabels()]


def test_picture_shows_every_strategy_and_the_trained_length(tmp_path: Path) -> None:
    values = {"local": {"none": [3.0, 40.0], "yarn:4": [3.5, 3.6]}, "fixed": {"none": [3.0, 9.0]}}
    values["fixed"]["yarn:4"] = [3.4, 3.5]
    figure = picture(results_of(values, [16, 64]), tmp_path)
    for axis, definition in zip(figure.axes, values, strict=True):
        lines = {str(line.get_label()): line for line in axis.get_lines()}
        for text, perplexities in values[definition].items():
            assert np.asarray(lines[text].get_xdata()).tolist() == [16, 64]
            assert np.asarray(lines[text].get_ydata()).tolist() == perplexities
        assert [TRAINED, TRAINED] in [
            np.asarray(line.get_xdata()).tolist() for line in axis.get_lines()
        ]
        assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
        assert labels(axis) == ["16", "64"]


@pytest.mark.parametrize(
    ("lengths", "shown"),
    [
        ([1000, 1500, 2500], ["1000", "1500", "2500"]),
        ([1024 * n for n in range(1, 17)], ["1k", "2k", "4k", "8k", "16k"]),
        ([2**n for n in range(6, 21)], ["64", "256", "1k", "4k", "16k", "64k", "256k", "1M"]),
        ([24], ["24"]),
    ],
)
def test_picture_names_lengths_that_were_measured(
    tmp_path: Path, lengths: list[int], shown: list[str]
) -> None:
    figure = picture(results_of({"local": {"none": [3.0] * len(lengths)}}, lengths), tmp_path)
    assert labels(figure.axes[0]) == shown


@pytest.mark.parametrize(
    "ends", [(3.1, 3.15), (3.0, 3.0), (9.7, 9.9), (1.0, 70.0), (3.0, 9e5), (99.0, 101.0)]
)
def test_picture_has_some_perplexities_to_read_off(
    tmp_path: Path, ends: tuple[float, float]
) -> None:
    axis = picture(results_of({"local": {"none": [*ends]}}, [24, 96]), tmp_path).axes[0]
    low, high = axis.get_ylim()
    assert low < ends[0] <= ends[1] < high
    assert 3 <= sum(low <= tick <= high for tick in axis.get_yticks()) <= 10
    assert all(label.get_text() for label in axis.get_yticklabels())


@pytest.mark.parametrize("huge", [math.inf, 1e6, 1e300])
def test_picture_marks_what_is_above_it(tmp_path: Path, huge: float) -> None:
    values = {"local": {"none": [3.0, 4.0], "yarn:4": [3.5, huge]}}
    figure = picture(results_of(values, [24, 96]), tmp_path)
    top = figure.axes[0].get_ylim()[1]
    assert top < 10
    (marks,) = (line for line in figure.axes[0].get_lines() if line.get_marker() == "^")
    assert np.asarray(marks.get_xydata()).tolist() == [[96, top]]
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "1e6 or more"


def test_picture_names_strategies_beside_the_curves_and_as_they_are(tmp_path: Path) -> None:
    names = ["none", "a$x_1$", "yarn:factor=4,beta_fast=16,beta_slow=2,truncate=false+logn"]
    names += [f"linear:{n}" for n in range(2, 32)]
    values = {definition: {name: [3.0, 4.0] for name in names} for definition in HEADLINE}
    figure = picture(results_of(values, [24, 96]), tmp_path)
    figure.draw_without_rendering()  # at the resolution that boxes are asked for in
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    assert not any(text.get_parse_math() for text in legend.get_texts())
    box = legend.get_window_extent()
    assert box.x0 > max(axis.bbox.x1 for axis in figure.axes)
    assert (box.x1, box.y1) < (figure.bbox.x1, figure.bbox.y1)
    assert box.y0 > 0


@pytest.mark.parametrize(("trained", "shown"), [(8, False), (16, True), (160, True), (4096, False)])
def test_picture_is_not_stretched_to_a_trained_length_far_away(
    tmp_path: Path, trained: int, shown: bool
) -> None:
    results = results_of({"local": {"none": [3.0, 4.0]}}, [24, 96], trained)
    figure = picture(results, tmp_path)
    low, high = figure.axes[0].get_xlim()
    assert 24 / 2.2 < low < 24 < 96 < high < 96 * 2.2
    assert (low < trained < high) == shown
    assert figure.get_suptitle().endswith("(dotted)") == shown


@pytest.mark.parametrize(
    ("definitions", "shown"),
    [
        (("prefix", "local", "sliding", "fixed"), ["local", "fixed"]),
        (("fixed", "prefix"), ["fixed"]),
        (("sliding", "prefix"), ["sliding", "prefix"]),
        (tuple(name for name in DEFINITIONS if name not in HEADLINE), None),
    ],
)
def test_picture_shows_the_headline_definitions_or_a_few_others(
    tmp_path: Path, definitions: tuple[str, ...], shown: list[str] | None
) -> None:
    values = {name: {"none": [3.0, 4.0]} for name in definitions}
    axes = picture(results_of(values, [24, 96]), tmp_path).axes
    assert [axis.get_title() for axis in axes] == (shown or list(definitions)[:3])


@pytest.mark.parametrize(
    ("low", "high", "drawn"),
    [(2.5, 3.5, 1), (2.5, math.inf, 1), (None, None, 0), (0.0, 3.5, 0), (9.0, 9.5, 0)],
)
def test_picture_shades_intervals_that_are_known(
    tmp_path: Path, low: float | None, high: float | None, drawn: int
) -> None:
    results = results_of({"local": {"none": [3.0, 4.0]}}, [24, 96])
    rows = tuple(dataclasses.replace(row, low=low, high=high) for row in results.results)
    axis = picture(dataclasses.replace(results, results=rows), tmp_path).axes[0]
    assert len(axis.collections) == drawn
    for band in axis.collections:
        ends = np.concatenate([path.vertices for path in band.get_paths()])[:, 1]
        assert ends.min() == low
        assert ends.max() == min(high or 0, axis.get_ylim()[1])


def test_a_run_that_starts_waits_until_the_picture_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It removes what killed runs have left half written, and this is none of that."""

    def at_work(results: Results, path: Path) -> None:
        with pytest.raises(FileExistsError, match="at work"), locked(path.parent):
            pass

    monkeypatch.setattr(written, "plot", at_work)
    monkeypatch.setattr("ropex_eval.report.page.write", lambda *given: None)
    results = results_of({"local": {"none": [3.0, 4.0]}}, [24, 100])
    monkeypatch.setattr(written, "_explanations", lambda results: {})
    written.write_report(results, tmp_path)

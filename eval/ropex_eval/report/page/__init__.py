"""`report.html`: everything about a run, or two side by side, on one page that needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ropex_eval.report.page import data, words
from ropex_eval.report.page.comparison import Difference, compare
from ropex_eval.report.page.document import document
from ropex_eval.report.page.headline import headline
from ropex_eval.report.page.heatmaps import retrieval
from ropex_eval.report.page.markup import Markup, join
from ropex_eval.report.page.origin import head, protocol
from ropex_eval.report.page.sections import changes, curve, how, perplexities, section, wavelengths
from ropex_eval.report.page.steps import STEPS, steps
from ropex_eval.report.page.verdicts import HOW, verdicts
from ropex_eval.scores import results as files
from ropex_eval.scores.results import Results

__all__ = ["Difference", "compare", "render", "write"]


def render(results: Results, explanations: Mapping[str, str]) -> str:
    """The page of a run.

    Args:
        results: Of the run; a part that is empty has no section.
        explanations: Name of a definition of perplexity, or of a retrieval task, to a sentence that
            says how its number is computed.
    """
    chosen = words.styles(results.strategies)
    body = join(
        [
            head(results),
            _verdict(results, chosen),
            perplexities(results, explanations, chosen),
            curve(results),
            changes(results, chosen),
            retrieval(results, explanations, chosen),
            wavelengths(results),
            _steps(results, chosen),
            protocol(results),
        ]
    )
    title = f"{words.model_name(results.about)}, measured by ropex"
    return document(title, body, data.charts(results, chosen))


def write(results: Results, explanations: Mapping[str, str], path: Path) -> None:
    """Write the page of a run, complete or not at all."""
    files.write(path, render(results, explanations))


def _verdict(results: Results, chosen: Mapping[str, str]) -> Markup:
    rows = [verdicts(results, chosen)] if results.verdicts else []
    return section("Verdict", headline(results), *rows, *map(how, HOW), place="verdict")


def _steps(results: Results, chosen: Mapping[str, str]) -> Markup:
    if not any(each.steps for each in results.verdicts):
        return Markup()
    return section("Steps of the verdict", steps(results, chosen), how(STEPS), place="steps")

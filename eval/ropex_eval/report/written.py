"""The files that are written beside the numbers of a run: its page and its picture."""

from __future__ import annotations

from pathlib import Path

from ropex.files.locks import locked
from ropex_eval.report import page
from ropex_eval.report.plot import plot
from ropex_eval.running.claim import WAIT
from ropex_eval.scores.definitions import explain
from ropex_eval.scores.results import Results
from ropex_eval.tasks import TASKS


def write_report(results: Results, folder: Path) -> None:
    """Write `report.html`, and `ppl.png` if perplexity was measured."""
    with locked(folder, WAIT):  # a run that starts removes what others have left half written
        page.write(results, _explanations(results), folder / "report.html")
        if results.results:
            plot(results, folder / "ppl.png")


def _explanations(results: Results) -> dict[str, str]:
    """How each number of the page is computed."""
    settings = results.protocol.settings
    perplexities = {
        name: f"perplexity of {explain(name, settings)}" for name in results.protocol.definitions
    }
    return perplexities | {task.name: task.help for task in TASKS.values()}

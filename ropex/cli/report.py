"""`ropex report`."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from ropex.cli.common import Verbs, add_verb, refuse, say
from ropex.cli.eval_arguments import add_definitions

if TYPE_CHECKING:
    from ropex_eval.scores.results import Results

_NUMBERS = ("definitions", "lengths", "targets", "stride", "short", "evaluator")


def add_verbs(verbs: Verbs) -> None:
    """Add `report`."""
    parser = add_verb(
        verbs, "report", _report,
        "print the tables of a finished run and write its page again, or print other numbers of "
        "what it read; no model is needed",
        "ropex report runs/llama --open",
        "ropex report runs/llama --definitions mean_perplexity --lengths 4k,8k",
    )  # fmt: skip
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder of a ropex eval")
    parser.add_argument(
        "--format", default="text", choices=("text", "markdown", "latex", "csv", "json"),
        help="of the tables (default: text)",
    )  # fmt: skip
    parser.add_argument("--open", action="store_true", help="show the page in a browser")
    other = parser.add_argument_group(
        "other numbers", "printed alone, the page stays; by default those that were measured"
    )
    add_definitions(other)


def _report(arguments: argparse.Namespace) -> None:
    from ropex_eval.scores.results import require_run

    folder, given = arguments.run_folder, {name: getattr(arguments, name) for name in _NUMBERS}
    wanted = {name: value for name, value in given.items() if value is not None}
    if wanted:
        refuse(arguments, "shows the page of what was measured; leave out other numbers", "open")
    require_run(folder)
    from ropex_eval.running.archive import Archive

    run = Archive.open(folder)
    if wanted:
        _print(run.rescore(**wanted), arguments.format)
        return
    from ropex_eval.report.written import write_report

    write_report(run.results, folder)
    _print(run.results, arguments.format)
    page = folder / "report.html"
    say(f"\n{page}  {folder / 'ppl.png'}")
    if arguments.open:
        webbrowser.open(page.resolve().as_uri())


def _print(results: Results, form: str) -> None:
    from ropex_eval.report import tables, terminal

    if form == "text":
        print(terminal.render(results))
    elif form == "json":
        print(results.to_json(), end="")
    else:
        print(tables.render(results, form, intervals=True), end="")

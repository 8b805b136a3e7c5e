"""`ropex report`, `ropex rescore` and `ropex compare`: of runs that are finished."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from ropex.cli.common import Verbs, add_verb, say
from ropex.cli.eval_arguments import add_definitions

if TYPE_CHECKING:
    from ropex_eval.report.page import Difference
    from ropex_eval.running.archive import Archive
    from ropex_eval.scores.results import Results

_FORMATS = ("text", "markdown", "latex", "csv", "json")


def add_verbs(verbs: Verbs) -> None:
    """Add `report`, `rescore` and `compare`."""
    report = add_verb(
        verbs,
        "report",
        _report,
        "write the page and the picture of a run again, and print its tables; no model is needed",
        "ropex report runs/llama --open",
    )
    _add_run(report)
    report.add_argument("--open", action="store_true", help="show the page in a browser")
    rescore = add_verb(
        verbs,
        "rescore",
        _rescore,
        "print other numbers of a run's table; no model is needed",
        "ropex rescore runs/llama --definitions mean_perplexity --lengths 4k,8k",
    )
    _add_run(rescore)
    add_definitions(rescore)
    compare = add_verb(
        verbs,
        "compare",
        _compare,
        "compare two runs on the tokens that both have read",
        "ropex compare runs/base runs/tuned -o compared.html",
    )
    compare.add_argument("left", type=Path, metavar="RUN")
    compare.add_argument("right", type=Path, metavar="RUN")
    compare.add_argument("-o", "--out", type=Path, metavar="FILE", help="write a page")
    compare.add_argument("--force", action="store_true", help="replace FILE")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder of a ropex eval")
    parser.add_argument(
        "--format", default="text", choices=_FORMATS, help="of the tables (default: text)"
    )


def _report(arguments: argparse.Namespace) -> None:
    from ropex_eval.report.written import write_report
    from ropex_eval.running.archive import Archive

    results = Archive.open(arguments.run_folder).results
    write_report(results, arguments.run_folder)
    _print(results, arguments.format)
    page = arguments.run_folder / "report.html"
    say(f"\n{page}  {arguments.run_folder / 'ppl.png'}")
    if arguments.open:
        webbrowser.open(page.resolve().as_uri())


def _rescore(arguments: argparse.Namespace) -> None:
    from ropex_eval.running.archive import Archive

    run = Archive.open(arguments.run_folder)
    _print(
        run.rescore(
            arguments.definitions,
            arguments.lengths,
            arguments.targets,
            arguments.stride,
            arguments.short,
            arguments.evaluator,
        ),
        arguments.format,
    )


def _print(results: Results, form: str) -> None:
    from ropex_eval.report import tables, terminal

    if form == "text":
        print(terminal.render(results))
    elif form == "json":
        print(results.to_json(), end="")
    else:
        print(tables.render(results, form, intervals=True), end="")


def _compare(arguments: argparse.Namespace) -> None:
    from ropex_eval.report import page
    from ropex_eval.running.archive import Archive, common
    from ropex_eval.scores.results import write

    if arguments.out and arguments.out.exists() and not arguments.force:
        raise FileExistsError(f"{arguments.out} exists; --force replaces it")
    left, right = common(Archive.open(arguments.left), Archive.open(arguments.right))
    found = _differences(left, right)
    if not found:
        raise ValueError(f"{arguments.left} and {arguments.right} have no strategy in common")
    print(_table(found, left, right))
    if arguments.out:
        write(arguments.out, page.compare(left.rescore(), right.rescore(), found))
        say(f"\n{arguments.out}")


def _differences(left: Archive, right: Archive) -> list[Difference]:
    from ropex_eval.report.page import Difference
    from ropex_eval.running.archive import difference

    found = []
    for strategy in (text for text in left.tables if text in right.tables):
        for name in left.protocol.definitions:
            for length in left.protocol.lengths:
                change = difference(left, right, strategy, name, length)
                ends = change.interval
                found.append(Difference(strategy, name, length, change.mean, change.se, *ends))
    return found


def _table(found: list[Difference], left: Archive, right: Archive) -> str:
    """Differences in percent of perplexity: strategies down, lengths across."""
    from ropex.sizes import format_size
    from ropex_eval.report.terminal import align, percent

    lengths, parts = left.protocol.lengths, []
    for name in left.protocol.definitions:
        rows = [["L =", *map(format_size, lengths)]]
        for strategy in dict.fromkeys(each.strategy for each in found):
            here = [e for e in found if e.strategy == strategy and e.definition == name]
            rows.append([strategy, *(percent(e.nll, e.low, e.high) for e in here)])
        parts.append(
            f"{name}: perplexity in {right.folder} against {left.folder}, on the same tokens\n"
            f"{align(rows)}"
        )
    return "\n\n".join(parts)

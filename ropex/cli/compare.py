"""`ropex compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ropex.cli.common import Verbs, add_verb, refuse, say


def add_verbs(verbs: Verbs) -> None:
    """Add `compare`."""
    parser = add_verb(
        verbs, "compare", _compare,
        "compare two runs of ropex eval on the tokens that both have read, or training runs by "
        "perplexity before and after; no model is needed",
        "ropex compare runs/base runs/tuned -o compared.html",
        "ropex compare runs/demo-linear runs/demo-yarn",
    )  # fmt: skip
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a ropex eval or a ropex train"
    )
    parser.add_argument(
        "--format", default="text", choices=("text", "markdown"),
        help="of the tables (default: text)",
    )  # fmt: skip
    measured = parser.add_argument_group("runs of ropex eval")
    measured.add_argument("-o", "--out", type=Path, metavar="FILE", help="write a page as well")
    measured.add_argument("--force", action="store_true", help="replace FILE")
    trained = parser.add_argument_group("runs of ropex train")
    trained.add_argument(
        "--steps", type=_steps, metavar="N,N", help="to show (default: the first and the last)"
    )


def _steps(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are no steps; write 0,50,200") from None


def _compare(arguments: argparse.Namespace) -> None:
    from ropex.train.recipes.folder import RECIPE

    runs: list[Path] = arguments.runs
    trained = [run for run in runs if (run / RECIPE).is_file()]
    if len(trained) == len(runs):
        refuse(arguments, "is for runs of ropex eval", "out", "force")
        _print_trained(runs, arguments.steps or (), arguments.format)
        return
    missing = [run for run in runs if run not in trained and not (run / "results.json").is_file()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} holds no run of ropex eval or ropex train")
    if trained:
        raise ValueError(f"{trained[0]} is a run of ropex train; compare it with others")
    if len(runs) != 2:
        raise ValueError(f"two runs of ropex eval are compared, and {len(runs)} are given")
    refuse(arguments, "is for runs of ropex train", "steps")
    if arguments.out is None:
        refuse(arguments, "is for a page (-o)", "force")
    elif arguments.out.exists() and not arguments.force:
        raise FileExistsError(f"{arguments.out} exists; --force replaces it")
    left, right = runs
    _compare_measured(left, right, arguments.format, arguments.out)


def _print_trained(runs: list[Path], steps: tuple[int, ...], form: str) -> None:
    from ropex_eval.training.trained import Trained, table

    print(table([Trained.read(run) for run in runs], steps, as_markdown=form == "markdown"))


def _compare_measured(left: Path, right: Path, form: str, out: Path | None) -> None:
    from ropex_eval.report import page
    from ropex_eval.report.differences import differences, tables
    from ropex_eval.running.archive import Archive, common
    from ropex_eval.scores.results import write

    one, other = common(Archive.open(left), Archive.open(right))
    found = differences(one, other)
    if not found:
        raise ValueError(f"{left} and {right} have no strategy in common")
    titled = (
        f"{name}: perplexity in {right} against {left}, on the same tokens\n{table}"
        for name, table in tables(found, as_markdown=form == "markdown").items()
    )
    print("\n\n".join(titled))
    if out:
        write(out, page.compare(one.rescore(), other.rescore(), found))
        say(f"\n{out}")

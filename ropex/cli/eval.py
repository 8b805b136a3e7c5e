"""`ropex eval`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropex.cli.common import Verbs, add_verb, name_of, quiet, say
from ropex.cli.eval_arguments import SETTINGS, add_arguments
from ropex.sizes import count, format_size, gib

if TYPE_CHECKING:
    from ropex_eval.api import Evaluation
    from ropex_eval.running.cost import Plan


def add_verbs(verbs: Verbs) -> None:
    """Add `eval`."""
    parser = add_verb(
        verbs, "eval", _eval,
        "measure perplexity beyond the trained length under several strategies",
        "ropex eval ./llama -s yarn:4 --lengths 1k..16k --data book.txt -o runs/llama",
    )  # fmt: skip
    add_arguments(parser)


def _eval(arguments: argparse.Namespace) -> None:
    if arguments.json and (arguments.dry_run or arguments.check):
        raise ValueError("--json prints results, and neither --dry-run nor --check has any")
    given = {name: getattr(arguments, name) for name in SETTINGS}
    usual = None if arguments.check else Path("runs") / name_of(arguments.model)
    evaluation = evaluation_of(
        arguments.model, arguments.strategy, out=arguments.out or usual,
        **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip
    if arguments.dry_run:
        print(_described(evaluation.plan()))
    elif arguments.check:
        _check(evaluation)
    else:
        run(evaluation, arguments.json)


def evaluation_of(model: str, strategies: list[str], **settings: Any) -> Evaluation:
    """An evaluation that reports on the terminal."""
    quiet()
    from ropex_eval.api import Evaluation

    return Evaluation(
        model, strategies, command=shlex.join(["ropex", *sys.argv[1:]]),
        tell=lambda text: say(f"ropex: {text}"), begin=say, **settings,
    )  # fmt: skip


def run(evaluation: Evaluation, as_json: bool = False) -> None:
    """Measure, print what was found, and name the files."""
    from ropex_eval.running.processes import speaks

    results, out = evaluation.run(), evaluation.out
    if not speaks():
        return
    print(results.to_json() if as_json else f"{results.table()}\n", end="")
    say("".join(f"\nropex: warning: {text}" for text in results.about["warnings"]).lstrip("\n"))
    say(f"\n{out}/report.html  {out}/results.json  {out}/results.csv  {out}/ppl.png  {out}/nll/")


def _check(evaluation: Evaluation) -> None:
    from ropex_eval.running.check import described

    findings = evaluation.check(lambda finding: print(described(finding), flush=True))
    if not all(each.passed for each in findings):
        raise SystemExit(1)


def _described(plan: Plan) -> str:
    """Passes, tokens, time and memory."""
    from ropex_eval.report.terminal import align
    from ropex_eval.running.cost import in_words

    study, shape, worst = plan.study, plan.shape, plan.worst
    rows = [
        [text, f"{each.passes:,}", f"{each.tokens:,}", in_words(plan.seconds[text])]
        for text, each in plan.costs.items()
    ]
    pieces = f"in pieces of {worst.chunk:,}" if worst.chunk else "at once"
    texts = count(len(study.corpus.excerpts), "excerpt")
    budget = "" if plan.budget is None else f"; --budget begins {plan.begun} of the {texts}"
    return (
        f"model   {study.model_id}: {study.skeleton.config.model_type}, "
        f"{shape.weights / 1e9:.3g} billion weights, trained at "
        f"{format_size(study.rope.trained_length)} tokens, {study.dtype}\n"
        f"text    {texts} of {format_size(study.protocol.excerpt)} tokens\n"
        f"memory  {gib(worst.peak)} at most: {gib(shape.held())} of weights, and a pass of "
        f"{format_size(worst.longest)} tokens, read {pieces}\n"
        f"time    about {in_words(sum(plan.seconds.values()))} on this {study.device}, once the "
        f"weights are loaded{budget}\n\n"
        f"{align([['strategy', 'passes', 'tokens', 'time'], *rows])}"
    )

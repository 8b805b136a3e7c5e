"""`ropex check`."""

from __future__ import annotations

import argparse

from ropex.cli.common import Verbs, add_model, add_verb, quiet, read_model, size
from ropex.cli.eval import study_of
from ropex.cli.eval_arguments import add_device, add_text

_LONGEST = 8192


def add_verbs(verbs: Verbs) -> None:
    """Add `check`."""
    parser = add_verb(
        verbs,
        "check",
        _check,
        "prove on a model that what ropex eval does to be fast changes no number",
        "ropex check ./llama -s yarn:4 -s dynamic",
    )
    add_model(parser)
    parser.add_argument(
        "-s", "--strategy", action="append", default=[], metavar="S", help="(default: none, yarn:4)"
    )
    parser.add_argument(
        "--length", type=size, default=512, metavar="N", help="tokens to check on (default: 512)"
    )
    add_text(parser, excerpts=1)
    add_device(parser)


def _check(arguments: argparse.Namespace) -> None:
    from ropex.config.from_file import read_strategy

    chosen = [read_strategy(text) for text in arguments.strategy or ("none", "yarn:4")]
    quiet()
    from ropex_eval.measure.losses import Scorer
    from ropex_eval.running.check import Checker, described
    from ropex_eval.scores.protocol import Protocol

    if not 32 <= arguments.length <= _LONGEST:
        raise ValueError(
            f"--length is {arguments.length}, it must be from 32 to {_LONGEST}: each text is read "
            "some twenty times, and all its logits are held"
        )
    folder, skeleton, _ = read_model(arguments)
    protocol = Protocol.of((arguments.length // 2, arguments.length))
    study = study_of(arguments, folder, skeleton, protocol)
    failed = 0
    for finding in Checker(study, Scorer(study.load())).run(chosen):
        print(described(finding), flush=True)
        failed += not finding.passed
    if failed:
        raise SystemExit(1)

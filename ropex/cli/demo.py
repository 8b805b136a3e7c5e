"""`ropex demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ropex.cli.common import Verbs, add_verb, say

_STRATEGIES = ("none", "dynamic", "linear:16", "ntk:16", "llama3:16", "yarn:16")


def add_verbs(verbs: Verbs) -> None:
    """Add `demo`."""
    demo = add_verb(
        verbs, "demo", _demo, "see it work on a small model that ropex ships", "ropex demo"
    )
    demo.add_argument("-o", "--out", type=Path, default=Path("ropex-demo"), metavar="DIR")


def _demo(arguments: argparse.Namespace) -> None:
    from ropex.cli import build_parser

    strategies = [part for text in _STRATEGIES for part in ("-s", text)]
    options = ["--lengths", "64..4k", "--excerpts", "8", "--targets", "48"]
    given = ["eval", "demo", *strategies, *options, "-o", str(arguments.out)]
    evaluate = build_parser().parse_args(given)
    evaluate.run(evaluate)
    say(
        "\nThe model was trained at 256 tokens. The same on a model of yours:\n"
        "  ropex eval MODEL -s yarn:4 --data book.txt\n"
        "Keep what you chose:\n"
        "  ropex patch MODEL -s yarn:4 -o OUT"
    )

"""`ropex demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ropex.cli.common import Verbs, add_verb, say
from ropex.cli.eval import evaluation_of, run

_STRATEGIES = ("none", "dynamic", "linear:16", "ntk:16", "llama3:16", "yarn:16")
_LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)


def add_verbs(verbs: Verbs) -> None:
    """Add `demo`."""
    parser = add_verb(
        verbs, "demo", _demo, "see it work on a small model that ropex ships", "ropex demo"
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("ropex-demo"), metavar="DIR")


def _demo(arguments: argparse.Namespace) -> None:
    settings = {"lengths": _LENGTHS, "excerpts": 8, "targets": 48, "out": arguments.out}
    run(evaluation_of("demo", [*_STRATEGIES], **settings))
    say(
        "\nThe model was trained at 256 tokens. The same on a model of yours:\n"
        "  ropex eval MODEL -s yarn:4 --data book.txt\n"
        "Keep what you chose:\n"
        "  ropex patch MODEL -s yarn:4 -o OUT"
    )

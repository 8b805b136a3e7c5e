"""The command line: one module for each verb, named as the verb; heavy imports lie inside them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from ropex.cli import (
    demo,
    doctor,
    export,
    families,
    show,
    suggest,
    tasks,
    train,
)
from ropex.cli import (
    eval as evaluate,
)
from ropex.cli import (
    patch as checkpoints,
)
from ropex.cli import (
    report as reports,
)
from ropex.cli import (
    strategies as listing,
)
from ropex.cli import (
    verify as verifying,
)
from ropex.cli.common import add_traceback
from ropex.cli.terminal import STDOUT, drop_stdout, escaping
from ropex.errors import UnsupportedModel
from ropex.version import __version__

_VERBS = (
    evaluate, demo, reports, tasks, show, suggest, checkpoints, verifying, export, doctor,
    train, listing, families,
)  # fmt: skip


_FORMER = {"plan": "eval --dry-run", "check": "eval --check"}
"""Verbs that have become something else."""


class _Parser(argparse.ArgumentParser):
    """A parser whose error is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = _Parser(
        prog="ropex", description="Make Hugging Face models read further than they were trained to."
    )
    parser.add_argument("--version", action="version", version=f"ropex {__version__}")
    add_traceback(parser)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_Parser)
    for module in _VERBS:
        module.add_verbs(verbs)
    return parser


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; changes of a recipe may also come after options, which argparse denies."""
    parser = build_parser()
    given = sys.argv[1:] if argv is None else argv
    verb = next((word for word in given if not word.startswith("-")), "")
    if verb in _FORMER:
        parser.exit(2, f"ropex: error: ropex {verb} is now ropex {_FORMER[verb]}\n")
    arguments, rest = parser.parse_known_args(argv)
    if hasattr(arguments, "changes") and not any(each.startswith("-") for each in rest):
        arguments.changes += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 2 for a mistake of the user, which is told in one line on stderr.
    """
    with escaping():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    arguments = _parsed(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        drop_stdout()
    except (ValueError, OSError, MemoryError, UnsupportedModel) as error:  # others are bugs
        if arguments.traceback:
            raise
        if isinstance(error, OSError) and error.filename == STDOUT:
            drop_stdout()
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"ropex: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ropex: interrupted; what is finished is kept", file=sys.stderr)
        return 130
    return 0

"""The command line: one module for each verb, named as the verb; heavy imports lie inside them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

from ropex.cli.common import add_traceback, check_arguments
from ropex.cli.terminal import STDOUT, drop_stdout, escaping
from ropex.errors import UnsupportedModel
from ropex.version import __version__

VERBS = (
    "suggest", "strategies", "show", "patch", "verify", "export", "doctor",
    "eval", "demo", "tasks", "report", "compare", "train", "recipes", "families",
)  # fmt: skip
"""In the order of `ropex --help`; each is a module of this package."""

_FORMER = {
    "plan": "eval --dry-run", "check": "eval --check", "rescore": "report", "trained": "compare",
}  # fmt: skip
"""Verbs of earlier versions, and what does the same now."""


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
    for name in VERBS:
        import_module(f"ropex.cli.{name}").add_verbs(verbs)
    return parser


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; changes of a recipe may also come after options, which argparse denies."""
    parser = build_parser()
    verb = next((word for word in argv if not word.startswith("-")), None)
    if verb is not None and verb not in VERBS:
        parser.exit(2, f"ropex: error: {_unknown(verb)}\n")
    arguments, rest = parser.parse_known_args(argv)
    if hasattr(arguments, "changes") and not any(each.startswith("-") for each in rest):
        arguments.changes += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _unknown(verb: str) -> str:
    """What to type in place of a verb that does not exist."""
    if now := _FORMER.get(verb):
        return f"ropex {verb} is now ropex {now} (see ropex {now.split()[0]} --help)"
    close = get_close_matches(verb, VERBS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown verb {verb!r}{hint} (verbs: {', '.join(VERBS)})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 2 for a mistake of the user, which is reported in one line on stderr.
    """
    with escaping():
        return _main(sys.argv[1:] if argv is None else argv)


def _main(argv: Sequence[str]) -> int:
    arguments = _parsed(argv)
    try:
        check_arguments(arguments)
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

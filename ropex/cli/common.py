"""What several verbs share: arguments, checks, and how they print."""

from __future__ import annotations

import argparse
import logging
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from ropex.sizes import count as count
from ropex.sizes import parse_length

if TYPE_CHECKING:
    from ropex.rope import Rope

Verbs: TypeAlias = Any
"""What `ArgumentParser.add_subparsers` returns; argparse does not name it publicly."""


def add_verb(
    verbs: Verbs, name: str, run: Callable[[argparse.Namespace], None], help: str, *examples: str
) -> argparse.ArgumentParser:
    """Add a verb that calls `run`, with examples under its help."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=help, description=textwrap.fill(help),
        epilog=f"example{'s' if len(examples) > 1 else ''}:\n  " + "\n  ".join(examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(run=run)
    add_traceback(parser, default=argparse.SUPPRESS)  # else it would undo one before the verb
    return parser


def add_traceback(parser: argparse.ArgumentParser, **settings: Any) -> None:
    """Add `--traceback`, which goes before a verb or after it."""
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error came from", **settings
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add MODEL, and what is needed to read its rotary embedding."""
    add_checkpoint(parser)
    parser.add_argument(
        "--trained-length", type=size, metavar="N",
        help="tokens the model was trained at, where its config does not say or is wrong",
    )  # fmt: skip


def add_checkpoint(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add MODEL and what is needed to load one; it may be left out if there is a default."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?" if default else None,
        default=default,
        help="a folder, a hub id, or demo for the model that ropex ships"
        + (f" (default: {default})" if default else ""),
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code that comes with the checkpoint"
    )


def add_lift(parser: argparse._ActionsContainer) -> None:
    """Add `--lift-sliding-window`."""
    parser.add_argument(
        "--lift-sliding-window", action="store_true",
        help="let every token see all before it, in a model whose attention has a window",
    )  # fmt: skip


def add_strategy(parser: argparse.ArgumentParser, help: str, **settings: Any) -> None:
    """Add `-s`."""
    help = f"{help}: such as yarn:4, or @FILE"
    parser.add_argument("-s", "--strategy", metavar="S", help=help, **settings)


_T = TypeVar("_T")


def argument(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """The type of an argument that argparse refuses with the words of the parser's ValueError."""

    def parsed(text: str) -> _T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


size = argument(parse_length)


def read_model(arguments: argparse.Namespace, *, weights: bool = True) -> tuple[Path, Any, Rope]:
    """The folder of MODEL, the model without its weights, and its rotary embedding.

    Args:
        arguments: What `add_model` added.
        weights: As for `ropex.checkpoints.find.find`.

    Raises:
        UnsupportedModel: It has no rotary embedding that ropex can patch.
        ValueError: Neither its config nor the user says the trained length, or the strategy of a
            file scales another base.
    """
    from ropex.checkpoints.skeleton import read_skeleton
    from ropex.config.from_file import require_base

    folder, model, rope = read_skeleton(
        arguments.model, trained_length=arguments.trained_length,
        trust_remote_code=arguments.trust_remote_code, weights=weights,
    )  # fmt: skip
    for text in getattr(arguments, "strategy", None) or ():
        require_base(text, rope.base)
    return folder, model, rope


def check_arguments(arguments: argparse.Namespace) -> None:
    """Find mistakes in the strategies, MODEL and the text before anything heavy is imported.

    Raises:
        FileNotFoundError: There is no such folder, no config.json in it, or no such text.
        ValueError: There is no such strategy, or MODEL is a file.
    """
    given = getattr(arguments, "strategy", None) or ()
    for text in (given,) if isinstance(given, str) else given:
        from ropex.config.from_file import read_strategy

        read_strategy(text)
    if (model := getattr(arguments, "model", None)) is not None:
        from ropex.checkpoints.find import find, local

        if local(model) is not None:  # else only the hub knows
            find(model, weights=False)
    data = getattr(arguments, "data", None)
    if data and not data.startswith(("hf:", "stdlib")) and not Path(data).exists():
        from ropex.texts.sources import read_texts

        next(read_texts(data), None)  # which says what is missing


def refuse(arguments: argparse.Namespace, why: str, *names: str) -> None:
    """Refuse options that mean nothing beside others.

    Args:
        arguments: What was given; options that may be refused have no default.
        why: What follows the option in the message.
        names: Attributes of `arguments`.

    Raises:
        ValueError: One of them was given.
    """
    for name in names:
        if getattr(arguments, name) not in (None, False):
            raise ValueError(f"--{name.replace('_', '-')} {why}")


def name_of(model: str) -> str:
    """What to call what is made of MODEL: the last part of a folder's path or of a hub id."""
    return Path(model).resolve().name if Path(model).is_dir() else Path(model).name


def quiet() -> None:
    """Keep the libraries' bars and advice off the user's terminal; warnings short."""
    import datasets
    from transformers.utils import logging as transformers_logging

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # else it retries aloud
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.formatwarning = lambda message, *_, **__: f"ropex: warning: {message}\n"


def say(text: str) -> None:
    """Print to stderr, where everything goes that is not a result."""
    if text:
        print(text, file=sys.stderr)

"""Arguments and manners that several verbs share."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

from ropex.sizes import parse_size

Verbs: TypeAlias = Any
"""What `ArgumentParser.add_subparsers` returns; argparse does not name it publicly."""


def add_verb(
    verbs: Verbs, name: str, run: Callable[[argparse.Namespace], None], help: str, example: str
) -> argparse.ArgumentParser:
    """Add a verb that calls `run`, with an example under its help."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=help,
        description=help,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add MODEL and what is needed to read one."""
    parser.add_argument(
        "model", metavar="MODEL", help="a folder, a hub id, or demo for the model that ropex ships"
    )
    parser.add_argument(
        "--trained-length",
        type=size,
        metavar="N",
        help="tokens the model was trained at, where its config does not say or is wrong",
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run code that comes with the checkpoint",
    )


def size(text: str) -> int:
    """`parse_size`, with its message kept by argparse."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def quiet() -> None:
    """Keep transformers' and datasets' bars and advice off the user's terminal; warnings short."""
    import datasets
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.formatwarning = lambda message, *_, **__: f"ropex: warning: {message}\n"

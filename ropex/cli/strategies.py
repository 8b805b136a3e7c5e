"""`ropex strategies`."""

from __future__ import annotations

import argparse
import inspect
import sys
from dataclasses import MISSING
from pathlib import Path
from typing import TYPE_CHECKING

from ropex.cli.common import Verbs, add_verb, count

if TYPE_CHECKING:
    from ropex.strategies.base import Strategy


def add_verbs(verbs: Verbs) -> None:
    """Add `strategies`."""
    parser = add_verb(
        verbs, "strategies", _strategies, "list the strategies", "ropex strategies '*ntk*'"
    )
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="a wildcard")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="as a table for a document")
    form.add_argument(
        "--page",
        type=Path,
        metavar="DIR",
        help="write a page on all of them with pictures, DIR/strategies.md",
    )


def _strategies(arguments: argparse.Namespace) -> None:
    if arguments.page:
        _write_page(arguments.pattern, arguments.page)
        return
    from ropex.strategies.registry import list_strategies, registry

    names = list_strategies(arguments.pattern)
    if not names:
        raise ValueError(f"no strategy matches {arguments.pattern!r}")
    classes = [registry()[name] for name in names]
    if arguments.markdown:
        print(markdown(classes), end="")
        return
    for cls in classes:
        aliases = f" (also {', '.join(cls.aliases)})" if cls.aliases else ""
        print(f"{cls.name}{aliases}\n  {summary(cls)}")
        if parameters(cls):
            print(f"  parameters: {', '.join(parameters(cls))}")
        print(f"  {cls.paper}")


def _write_page(pattern: str, folder: Path) -> None:
    from ropex.advice.strategies_page import write_page

    if pattern != "*":
        raise ValueError("--page is about all strategies; leave the wildcard out")
    written = write_page(folder)
    print(f"written: {written[0]} and {count(len(written) - 1, 'picture')}", file=sys.stderr)


def markdown(classes: list[type[Strategy]]) -> str:
    """The strategies as a Markdown table."""
    lines = ["| strategy | what it does | parameters |", "|---|---|---|"]
    for cls in classes:
        listed = ", ".join(f"`{parameter}`" for parameter in parameters(cls)) or "none"
        lines.append(f"| [`{cls.name}`]({cls.paper}) | {summary(cls)} | {listed} |")
    return "\n".join(lines) + "\n"


def summary(cls: type[Strategy]) -> str:
    """First line of the docstring."""
    return (inspect.getdoc(cls) or "").splitlines()[0]


def parameters(cls: type[Strategy]) -> list[str]:
    """Parameters, with their defaults where they have one that is not worked out."""
    from ropex.strategies.base import parameters as known_parameters

    return [
        field.name
        if field.default in (MISSING, None, ())
        else f"{field.name}={str(field.default).lower().removesuffix('.0')}"
        for field in known_parameters(cls)
    ]

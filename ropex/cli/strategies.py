"""`ropex strategies`."""

from __future__ import annotations

import argparse
import inspect
from dataclasses import MISSING
from typing import TYPE_CHECKING

from ropex.cli.common import Verbs, add_verb

if TYPE_CHECKING:
    from ropex.strategies.base import Strategy


def add_verbs(verbs: Verbs) -> None:
    """Add `strategies`."""
    parser = add_verb(
        verbs, "strategies", _strategies, "list the strategies", "ropex strategies '*ntk*'"
    )
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="a wildcard")


def _strategies(arguments: argparse.Namespace) -> None:
    from ropex.strategies.registry import list_strategies, registry

    names = list_strategies(arguments.pattern)
    if not names:
        raise ValueError(f"no strategy matches {arguments.pattern!r}")
    classes = [registry()[name] for name in names]
    for cls in classes:
        aliases = f" (also {', '.join(cls.aliases)})" if cls.aliases else ""
        print(f"{cls.name}{aliases}\n  {summary(cls)}")
        if parameters(cls):
            print(f"  parameters: {', '.join(parameters(cls))}")
        print(f"  {cls.paper}")


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

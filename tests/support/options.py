"""Which options of a verb are read by it."""

from __future__ import annotations

import argparse
from typing import Any

from ropex.cli import build_parser


def watched(kind: type[Any]) -> tuple[type[Any], set[str]]:
    """A class like another one, and the attributes of its instances that were looked at."""
    seen: set[str] = set()

    def look(self: Any, name: str) -> Any:
        seen.add(name)
        return object.__getattribute__(self, name)

    return type(kind.__name__, (kind,), {"__getattribute__": look}), seen


def unread(*command: str) -> set[str]:
    """Run a command; the options of its verb that it did not look at."""
    kind, seen = watched(argparse.Namespace)
    arguments = build_parser().parse_args(command, namespace=kind())
    options = set(vars(arguments)) - {"run", "verb", "traceback"}
    seen.clear()
    arguments.run(arguments)
    return options - seen

"""One change to a JSON file, and how keys and values are shown to a person."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeAlias

Path: TypeAlias = tuple[str, ...]
"""Keys that lead to a value of a JSON file."""

_LONGEST_SHOWN = 60


@dataclass(frozen=True)
class Edit:
    """One change to a JSON file.

    Attributes:
        file: Its name.
        path: Which value.
        value: The new one.
        remove: Whether the key goes instead.
    """

    file: str
    path: Path
    value: Any = None
    remove: bool = False

    def __str__(self) -> str:
        if self.remove:
            return f"remove {dotted(self.path)}"
        return f"set {dotted(self.path)} to {shown(self.value)}"

    def to_json(self) -> dict[str, Any]:
        """The edit for programs."""
        what = {"remove": True} if self.remove else {"value": self.value}
        return {"file": self.file, "path": list(self.path), **what}


def dotted(path: Path) -> str:
    """Keys as a person writes them; odd ones quoted, so that no terminal acts on them."""
    return ".".join(key if key.isidentifier() and key.isascii() else shown(key) for key in path)


def shown(value: Any) -> str:
    """A value as JSON in ASCII, cut where it is long."""
    try:
        text = json.dumps(value)
    except ValueError:  # an integer of thousands of digits
        text = "a number too long to print"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 4]} ..."

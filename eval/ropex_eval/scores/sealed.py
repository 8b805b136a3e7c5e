"""Frozen rows out of JSON that somebody may have changed, and the hash that shows it."""

from __future__ import annotations

import hashlib
import json
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Row = TypeVar("Row")


def seal(content: dict[str, Any]) -> str:
    """Hash of everything else in a file, whatever the order and the spaces."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_rows(kind: type[Row], rows: list[dict[str, Any]]) -> tuple[Row, ...]:
    """A frozen dataclass for each row.

    Raises:
        TypeError: A row lacks a value, has one too many, or one that is not of its type.
        OverflowError: A number is too large to compute with.
    """
    hints = get_type_hints(kind)
    return tuple(
        kind(**{key: _value(key, value, hints.get(key)) for key, value in row.items()})
        for row in rows
    )


def _value(key: str, value: Any, hint: Any) -> Any:
    if get_origin(hint) is tuple and isinstance(value, list):
        kind = get_args(hint)[0]
        if hasattr(kind, "__dataclass_fields__"):
            return read_rows(kind, value)
        return tuple(_value(key, each, kind) for each in value)
    kinds = get_args(hint) or (hint,)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if float in kinds and (number or value in ("inf", "-inf", "nan")):
        return float(value)
    if type(value) not in kinds:
        raise TypeError(f"{key[:60]} is {str(value)[:60]!r}")
    return value

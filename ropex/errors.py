"""The one exception that Python has no name for, and what is said of a value of a wrong type."""

from __future__ import annotations

from typing import Any


class UnsupportedModel(TypeError):
    """The model has no rotary embedding that ropex can patch exactly; the message says why."""


def wrong_type(name: str, value: Any, wanted: str) -> TypeError:
    """The error for an argument that is something else than it should be.

    Args:
        name: Of the argument.
        value: What was given.
        wanted: What to give instead.
    """
    if isinstance(value, type):
        given = f"the class {value.__name__}"
    elif value is None or isinstance(value, (bool, int, float, str, bytes)):
        given = repr(value) if len(repr(value)) < 40 else f"{repr(value)[:40]}..."
    else:
        given = f"of type {type(value).__name__}"
    return TypeError(f"{name} is {given}, it must be {wanted}")

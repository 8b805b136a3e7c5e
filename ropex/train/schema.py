"""Make frozen values of what a YAML file holds, and refuse what is no part of them."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

from ropex.sizes import parse_size

_LARGEST = 10**18
_LONGEST_SHOWN = 200

Value = TypeVar("Value")
Size = NewType("Size", int)
"""A number of tokens, which may be written as `32k`."""


def build(kind: type[Value], given: Any, place: str = "") -> Value:
    """A frozen dataclass from a mapping, with its inner dataclasses, lists and choices.

    Args:
        kind: The dataclass.
        given: What a YAML file says.
        place: Keys that lead to it, for messages.

    Raises:
        ValueError: A key is unknown or missing, or a value is not of its type.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{place or 'the recipe'} is {_shown(given)}; it must be keys and values")
    hints = get_type_hints(kind)
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    for key in given:
        if key not in known:
            raise ValueError(_unknown(f"{place}.{key}".lstrip("."), str(key), list(known)))
    for name, each in known.items():
        required = each.default is MISSING and each.default_factory is MISSING
        if required and name not in given:
            raise ValueError(f"{place}.{name}".lstrip(".") + " is missing")
    values = {
        key: convert(hints[key], value, f"{place}.{key}".lstrip("."))
        for key, value in given.items()
    }
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{place}: {error}" if place else str(error)) from None


def convert(wanted: Any, value: Any, place: str) -> Any:
    """A value of the wanted type.

    Raises:
        ValueError: It is none.
    """
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return convert(next(each for each in inner if each is not type(None)), value, place)
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{place} is {_shown(value)}; choose {_list(inner)}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"{place} is {_shown(value)}; it must be a list")
        return tuple(convert(inner[0], each, f"{place}.{i}") for i, each in enumerate(value))
    if isinstance(wanted, type) and is_dataclass(wanted):
        return build(wanted, value, place)
    return _plain(wanted, value, place)


def _plain(wanted: Any, value: Any, place: str) -> Any:
    """Text, a number or a truth value; YAML takes `2e-5` for text, and people do not."""
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    if wanted is Size and isinstance(value, str):
        try:
            return parse_size(value)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    wanted = int if wanted is Size else wanted
    if wanted is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    elif type(value) is wanted and _sound(value):
        return value
    raise ValueError(f"{place} is {_shown(value)}; it must be {names[wanted]}")


def _sound(value: Any) -> bool:
    """Whether a value is neither an absurd number nor a text that no file can hold."""
    if isinstance(value, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in value)
    return not isinstance(value, int) or abs(value) <= _LARGEST


def _shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a number too long to print"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]} ..."


def _unknown(place: str, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {_list(known)}"
    return f"{place} is no key of a recipe; {hint}"


def _list(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names))

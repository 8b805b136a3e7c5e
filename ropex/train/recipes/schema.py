"""Turn the content of a YAML file into frozen values, and refuse unknown keys."""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Literal, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

from ropex.sizes import parse_size

_LARGEST = 10**18
_LONGEST_SHOWN = 60

Value = TypeVar("Value")
Size = NewType("Size", int)
"""A number of tokens, such as `32k`."""


@dataclass(frozen=True)
class Bounds:
    """Bounds of a number: `Annotated[int, Bounds(least=1)]`.

    Attributes:
        least: The smallest.
        above: Exclusive lower bound.
        most: The largest.
        below: Exclusive upper bound; by default infinity.
    """

    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf

    def hold(self, number: float) -> bool:
        """Whether a number is allowed; NaN never is."""
        return self.least <= number <= self.most and self.above < number < self.below

    def __str__(self) -> str:
        names = {"least": "at least", "above": "above", "most": "at most", "below": "below"}
        limits = ((text, getattr(self, name)) for name, text in names.items())
        return " and ".join(f"{text} {limit:,}" for text, limit in limits if abs(limit) < math.inf)


def check_numbers(values: Any) -> None:
    """Check that the numbers of a dataclass are within their bounds.

    Raises:
        ValueError: One is not.
    """
    for name, hint in get_type_hints(type(values), include_extras=True).items():
        given = getattr(values, name)
        numbers = given if isinstance(given, tuple) else () if given is None else (given,)
        for bounds in bounds_in(hint):
            if wrong := [number for number in numbers if not bounds.hold(number)]:
                raise ValueError(f"{name} is {shown(wrong[0])}; it must be {bounds}")


def bounds_in(hint: Any) -> Iterator[Bounds]:
    """The bounds in a type, such as `Annotated[int, Bounds(least=1)] | None`."""
    yield from (each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Bounds))
    for inner in get_args(hint):
        yield from bounds_in(inner)


def build(kind: type[Value], given: Any, place: str = "") -> Value:
    """A frozen dataclass from a mapping, with its inner dataclasses, lists and choices.

    Args:
        kind: The dataclass.
        given: The content of a YAML file.
        place: Keys that lead to it, for messages.

    Raises:
        ValueError: A key is unknown or missing, or a value is not of its type.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{place or 'the recipe'} is {shown(given)}; it must be keys and values")
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
        ValueError: It is not of that type.
    """
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return convert(next(each for each in inner if each is not type(None)), value, place)
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{place} is {shown(value)}; choose {_list(inner)}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"{place} is {shown(value)}; it must be a list")
        return tuple(convert(inner[0], each, f"{place}.{i}") for i, each in enumerate(value))
    if isinstance(wanted, type) and is_dataclass(wanted):
        return build(wanted, value, place)
    return _plain(wanted, value, place)


def _plain(wanted: Any, value: Any, place: str) -> Any:
    """Text, a number or a boolean; YAML takes `2e-5` for text, which people mean as a number."""
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
    limit = f" of at most {_LARGEST:.0e}" if type(value) is int and wanted is int else ""
    raise ValueError(f"{place} is {shown(value)}; it must be {names[wanted]}{limit}")


def _sound(value: Any) -> bool:
    """Whether a value is neither an absurdly large number nor text that UTF-8 cannot encode."""
    if isinstance(value, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in value)
    return not isinstance(value, int) or abs(value) <= _LARGEST


def shown(value: Any) -> str:
    """A value for a message, truncated if long."""
    try:
        return cut(repr(value))
    except ValueError:  # an integer of thousands of digits
        return "a number too long to print"


def cut(text: str) -> str:
    """A text short enough for a message."""
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]} ..."


def _unknown(place: str, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {_list(known)}"
    return f"{place} is not a key of a recipe; {hint}"


def _list(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names))

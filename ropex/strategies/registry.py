"""Names to strategies: the text form, aliases, wildcards and did-you-mean."""

from __future__ import annotations

import difflib
import importlib
import math
import pkgutil
import re
from collections.abc import Iterable
from dataclasses import MISSING
from fnmatch import fnmatchcase
from functools import cache
from types import MappingProxyType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import ropex.strategies
from ropex.errors import wrong_type
from ropex.sizes import parse_size
from ropex.strategies.base import Strategy, parameters
from ropex.strategies.composed import Composed

_LONGEST_SHOWN = 80


@cache
def registry() -> MappingProxyType[str, type[Strategy]]:
    """Every strategy by name, in alphabetical order, found in the folder `ropex/strategies`.

    Raises:
        RuntimeError: Two strategies claim one name.
    """
    found: dict[str, type[Strategy]] = {}
    taken: dict[str, type[Strategy]] = {}
    for info in pkgutil.iter_modules(ropex.strategies.__path__, "ropex.strategies."):
        for value in vars(importlib.import_module(info.name)).values():
            if not isinstance(value, type) or not issubclass(value, Strategy):
                continue
            if value.__module__ != info.name or not isinstance(vars(value).get("name"), str):
                continue
            for name in (value.name, *value.aliases):
                if taken.setdefault(name, value) is not value:
                    raise RuntimeError(f"{taken[name]} and {value} are both named {name!r}")
            found[value.name] = value
    return MappingProxyType(dict(sorted(found.items())))


def list_strategies(pattern: str = "*") -> list[str]:
    """Names of the strategies that match a shell wildcard, by name or by alias.

    Example:
        >>> list_strategies("ntk*")
        ['ntk', 'ntk_by_parts', 'ntk_fixed', 'ntk_mixed']
    """
    if not isinstance(pattern, str):
        raise wrong_type("pattern", pattern, "a text such as 'ntk*'")
    return [
        name
        for name, cls in registry().items()
        if any(fnmatchcase(alias, pattern.lower()) for alias in (name, *cls.aliases))
    ]


def strategy(text: str | Strategy) -> Strategy:
    """The strategy that `text` describes; a strategy is returned unchanged.

    Args:
        text: `NAME`, `NAME:VALUE`, `NAME:KEY=VALUE,...`, or several of these joined with `+`.

    Raises:
        ValueError: The text names an unknown strategy or parameter, or a value is not allowed.
        TypeError: It is neither a text nor a strategy.

    Example:
        >>> strategy("yarn:factor=4,beta_fast=16").plan(rope)
    """
    if isinstance(text, Strategy):
        return text
    if not isinstance(text, str):
        raise wrong_type("strategy", text, "a text such as 'yarn:4', or a ropex.Strategy")
    # A plus sign before a letter joins strategies; one before a digit belongs to a number.
    parts = tuple(_parse(part.strip()) for part in re.split(r"\+(?!\d)", text))
    return parts[0] if len(parts) == 1 else Composed(parts)


def _parse(text: str) -> Strategy:
    name, _, arguments = text.partition(":")
    cls = _lookup(name.strip().lower())
    values: dict[str, Any] = {}
    known = parameters(cls)
    names = [each.name for each in known]
    if arguments.strip() and not names:
        raise ValueError(f"{_short(text)}: {cls.name} takes no parameters")
    for index, argument in enumerate(arguments.split(",") if arguments.strip() else ()):
        key, equals, value = (part.strip() for part in argument.partition("="))
        if not key:
            raise ValueError(f"{_short(text)} has an empty parameter")
        if not equals and index == 0 and key not in names and not known[0].kw_only:
            key, value = names[0], key
        elif not equals:
            raise ValueError(f"{_short(text)}: write {_short(key)} as KEY=VALUE")
        if key not in names:
            raise ValueError(f"{cls.name} has no parameter {_short(key)}{_hint(key, names)}")
        if key in values:
            raise ValueError(f"{_short(text)} gives {key} twice")
        values[key] = _convert(cls, key, value)
    lacking = [f.name for f in known if f.default is MISSING and f.name not in values]
    if lacking:
        raise ValueError(f"{cls.name} takes {lacking[0]}: {cls.name}:{lacking[0]}=VALUE")
    return cls(**values)


def _lookup(name: str) -> type[Strategy]:
    names = {alias: cls for cls in registry().values() for alias in (cls.name, *cls.aliases)}
    if not name:
        raise ValueError("a strategy has no name; write yarn:4, or yarn:4+logn for two")
    if name not in names:
        raise ValueError(f"unknown strategy {_short(name)}{_hint(name, names, list(registry()))}")
    return names[name]


def _short(text: str) -> str:
    """What was given, in quotes, truncated if long."""
    return repr(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]} ...")


def _hint(given: str, names: Iterable[str], shown: Iterable[str] | None = None) -> str:
    close = difflib.get_close_matches(given, list(names), n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return "; known: " + ", ".join(names if shown is None else shown)


def _convert(cls: type[Strategy], key: str, value: str) -> Any:
    """`value` as the type that the field declares."""
    hint = get_type_hints(cls)[key]
    if hint == int | float:  # tokens, or a share of the trained length
        hint = float if re.fullmatch(r"\d*\.\d*|1", value) else int
    if get_origin(hint) in (Union, UnionType):  # a type or None; None is given by omission
        hint = next(arg for arg in get_args(hint) if arg is not type(None))
    try:
        if get_origin(hint) is Literal:
            return {choice: choice for choice in get_args(hint)}[value.lower()]
        if get_origin(hint) is tuple:
            return tuple(_number(float, part) for part in value.split("/"))
        if hint is bool:
            return {"true": True, "false": False}[value.lower()]
        return _number(hint, value)
    except (KeyError, ValueError, OverflowError):
        allowed = _allowed(hint, key)
        raise ValueError(f"{cls.name}: {key} is {_short(value)}, it must be {allowed}") from None


def _number(kind: type[int] | type[float], text: str) -> float:
    if not re.fullmatch(r"[-+.\w]+", text, re.ASCII) or "_" in text:
        raise ValueError(text)
    number = parse_size(text) if kind is int else float(text)
    if math.isnan(number):
        raise ValueError(text)
    return number


def _allowed(hint: Any, key: str) -> str:
    if get_origin(hint) is Literal:
        *most, last = get_args(hint)
        return f"{', '.join(most)} or {last}"
    if get_origin(hint) is tuple:
        return "numbers with slashes between them, 1/1.5/4"
    whole = "a length such as 32k" if key.endswith("length") else "a whole number"
    return {bool: "true or false", int: whole, float: "a number"}[hint]

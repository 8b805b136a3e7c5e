"""Strategies and ropes drawn at random, for the whole registry."""

from __future__ import annotations

import re
from dataclasses import fields
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from ropex.rope import Rope
from ropex.strategies.base import Scaled, Strategy
from ropex.strategies.registry import registry
from ropex.strategies.yarn import Yarn

ROPES = st.builds(
    Rope.standard,
    st.integers(1, 256).map(lambda pairs: 2 * pairs),
    st.floats(10, 1e9),
    st.integers(8, 131072),
)
# Fields that do not take every number from 1/100 to 100; by name, or by class and name.
RANGES: dict[str, SearchStrategy[Any]] = {
    "factor": st.floats(1, 1024), "temperature.factor": st.floats(0.01, 100),
    "base": st.floats(10, 1e9), "p": st.floats(0, 1, exclude_min=True),
    "attention_factor": st.floats(0.001, 1000), "pairs": st.integers(2, 256),
    "skip_layers": st.integers(0, 100), "power": st.floats(0.01, 4),
    "min_wavelength": st.floats(0, 1e5), "range_length": st.integers(1, 2**20),
}  # fmt: skip
# Fields of which the first must be below the second, and those where it may be the same.
ORDERED = (("beta_slow", "beta_fast"),)
SORTED = (("alpha", "beta"),)


@st.composite
def values(draw: DrawFn, name: str, rope: Rope | None = None) -> Strategy:
    """A strategy of this name, with lengths and lists that fit `rope` if it is given."""
    cls = registry()[name]
    drawn = {key: draw(field(name, key, hint, rope)) for key, hint in hints_of(cls).items()}
    if issubclass(cls, Scaled):
        drawn["length" if draw(st.booleans()) else "factor"] = None
        if drawn["factor"] is None and drawn["length"] is None:
            drawn["factor"] = draw(RANGES["factor"])
    for low, high in (*ORDERED, *SORTED):
        if low in drawn:
            drawn[low], drawn[high] = sorted((drawn[low], drawn[high]))
            drawn[high] += 0.5 * (drawn[low] == drawn[high] and (low, high) in ORDERED)
    if issubclass(cls, Yarn):
        drawn.update(together(drawn))
    return cls(**drawn)


def hints_of(cls: type[Strategy]) -> dict[str, Any]:
    """The types that the fields of a strategy declare."""
    hints = get_type_hints(cls)
    return {each.name: hints[each.name] for each in fields(cls)}


def together(drawn: dict[str, Any]) -> dict[str, Any]:
    """What must change so that YaRN takes all these parameters at once."""
    changes: dict[str, Any] = {}
    if drawn["ramp"] == "rotations":
        changes.update(truncate=True, clamp="dim")
    pair = (drawn["mscale"], drawn["mscale_all_dim"])
    if None in pair or drawn["attention_factor"] is not None:
        changes.update(mscale=None, mscale_all_dim=None)
    return changes


def field(name: str, key: str, hint: Any, rope: Rope | None) -> SearchStrategy[Any]:
    """Values of one field, by the type that it declares."""
    if get_origin(hint) is UnionType:
        inner = next(kind for kind in get_args(hint) if kind is not type(None))
        return st.none() | field(name, key, inner, rope)
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is tuple:
        factors = st.lists(st.floats(0.1, 1024), min_size=1, max_size=6)
        return factors.map(lambda few: repeated(few, rope))
    if hint is bool:
        return st.booleans()
    if key == "length":
        least, most = (2, 2**40)
        if rope is not None:
            least, most = rope.trained_length, 1024 * rope.trained_length
        return st.integers(least, most)
    return RANGES.get(f"{name}.{key}", RANGES.get(key, st.floats(0.01, 100)))


def repeated(few: list[float], rope: Rope | None) -> tuple[float, ...]:
    return tuple(few if rope is None else (few * (rope.dim // 2))[: rope.dim // 2])


def sentence(error: pytest.ExceptionInfo[ValueError]) -> str:
    """The message, which is one sentence."""
    text = str(error.value)
    assert "\n" not in text
    assert not re.search(r"\. |\.$", text)
    assert 20 < len(text) < 200
    return text

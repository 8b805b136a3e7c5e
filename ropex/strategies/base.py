"""What a strategy is: a frozen dataclass with one pure method, and a text form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from ropex.rope import Plan, Rope
from ropex.sizes import LARGEST as LARGEST
from ropex.sizes import LONGEST, format_size

if TYPE_CHECKING:
    from torch import Tensor

Length: TypeAlias = "int | Tensor"
"""A number of tokens; a 0-dimensional tensor when it is decided inside a compiled forward."""

LengthClass: TypeAlias = Literal["static", "two", "per_length"]
"""Which lengths share a plan: all of them, those on one side of the trained length, or none."""

LARGEST_FACTOR = 2**20
"""The largest factor; a float32 table still represents the result."""

SMALLEST = 1 / LARGEST
"""What float32 and bfloat16 hold with room for what is made of it."""

LARGEST_SCALE = 1000
"""The largest factor of cos and sin, and the inverse of the smallest."""


@dataclass(frozen=True)
class Strategy(ABC):
    """A way to make a rotary embedding reach further than it was trained to.

    A subclass is a method: its fields are the method's parameters with the paper's defaults. The
    first field may be given without its name in the text form, as in `yarn:4`.

    Attributes:
        name: The name in text forms, results and listings.
        aliases: Other names that mean the same.
        paper: Where the formula comes from.
        changes_frequencies: Whether it changes frequencies, or only how sharp attention is.
        comes_last: Whether no later strategy may change the frequencies that it leaves.
    """

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    paper: ClassVar[str]
    changes_frequencies: ClassVar[bool] = True
    comes_last: ClassVar[bool] = False

    @abstractmethod
    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """The plan for sequences of `length` tokens, starting from `plan`.

        `plan` is what the strategies before this one made of `rope`. Nothing is changed in place.
        """

    @property
    def length_class(self) -> LengthClass:
        """Which sequence lengths share one plan."""
        return "static"

    @property
    def keeps_lists(self) -> bool:
        """Whether it leaves a checkpoint's own switch between two lists; see `ropex.rope.Lists`."""
        return not self.changes_frequencies or self.length_class == "per_length"

    def class_on(self, rope: Rope) -> LengthClass:
        """Which sequence lengths share one plan in a model that may switch by length itself."""
        switches = rope.lists is not None and self.keeps_lists
        return "two" if switches and self.length_class == "static" else self.length_class

    def shared_up_to(self, rope: Rope) -> tuple[int, ...]:
        """Lengths, ascending, up to each of which sequences share one plan."""
        kind, own = self.class_on(rope), rope.lists if self.keeps_lists else None
        if kind == "static":
            return ()
        if own is None:
            return (rope.trained_length,)
        if kind == "two":
            return (own.length,)
        return tuple(sorted({min(own.length, rope.trained_length), rope.trained_length}))

    def plan(self, rope: Rope, length: Length | None = None) -> Plan:
        """The plan for sequences of `length` tokens (by default `rope.trained_length`)."""
        tokens = rope.trained_length if length is None else length
        start = Plan.unchanged(rope, tokens if self.keeps_lists else None)
        return self.apply(start, rope, tokens)

    def scale(self, rope: Rope) -> float:
        """How many times the trained length this strategy is meant to reach; 1 if unstated."""
        return 1.0

    def target_length(self, rope: Rope) -> int:
        """Tokens of context that this strategy is meant to reach on `rope`."""
        return round(self.scale(rope) * rope.trained_length)

    def fixed(self, length: int) -> Strategy:
        """The same with one plan for sequences of all lengths, that of `length` tokens."""
        return self

    def native(self, rope: Rope) -> dict[str, Any] | None:
        """The rope entry with which transformers computes the same frequencies by itself.

        Returns:
            Keys and values of the config entry; empty if the frequencies stay as they are, None
            if transformers has no such type.
        """
        return None

    def __str__(self) -> str:
        """The text form; it parses back to an equal strategy."""
        known = parameters(type(self))
        given = {
            each.name: _format(each.name, getattr(self, each.name))
            for each in known
            if each.default is MISSING or getattr(self, each.name) != each.default
        }
        if not given:
            return self.name
        if list(given) == [known[0].name] and not known[0].kw_only:
            return f"{self.name}:{given[known[0].name]}"
        return f"{self.name}:" + ",".join(f"{key}={value}" for key, value in given.items())


def parameters(cls: type[Strategy]) -> tuple[Field[Any], ...]:
    """The parameters of a strategy, in the order of its text form."""
    return tuple(sorted(fields(cls), key=lambda each: bool(each.kw_only)))


@dataclass(frozen=True)
class Scaled(Strategy):
    """A strategy for a stated factor, or for a stated length from which the factor follows.

    Args:
        factor: Target length over trained length, at least 1.
        length: Target length in tokens, instead of `factor`.
    """

    factor: float | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        if (self.factor is None) == (self.length is None):
            raise ValueError(
                f"{self.name} takes a factor or a target length, one of the two: "
                f"{self.name}:4 or {self.name}:length=32k"
            )
        if self.factor is not None:
            require_factor(self, self.factor)
        require_length(self)

    def scale(self, rope: Rope) -> float:
        """The factor, given or derived from the target length.

        Raises:
            ValueError: The target length is shorter than the trained length.
        """
        if self.length is None:
            assert self.factor is not None  # checked in __post_init__
            return float(self.factor)
        require_longer(self, self.length, rope)
        factor = self.length / rope.trained_length
        require_factor(self, factor)
        return factor


@dataclass(frozen=True)
class PerLength(Strategy):
    """A strategy that depends on the length of each sequence, unless one length is fixed for all.

    Args:
        length: Treat every sequence as one of this many tokens.
    """

    length: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        require_length(self)

    @property
    def length_class(self) -> LengthClass:
        """Its own plan for each length, unless one length is fixed for all."""
        return "per_length" if self.length is None else "static"

    def growth(self, rope: Rope, length: Length) -> Tensor:
        """Length over trained length, at least 1; 0-dimensional, float64.

        Raises:
            ValueError: The fixed length is shorter than the trained length.
        """
        import torch

        if self.length is not None:
            require_longer(self, self.length, rope)
        tokens = torch.as_tensor(self.length or length, dtype=torch.float64)
        return tokens.clamp(min=rope.trained_length) / rope.trained_length

    def fixed(self, length: int) -> Strategy:
        """The same with `length` stated."""
        return replace(self, length=length)

    def scale(self, rope: Rope) -> float:
        """The fixed length over the trained length; 1 if every sequence has its own."""
        return 1.0 if self.length is None else self.length / rope.trained_length


def require_factor(strategy: Strategy, factor: float) -> None:
    """Raise a ValueError unless a factor is in range."""
    if not 1 <= factor <= LARGEST_FACTOR:
        raise ValueError(
            f"{strategy.name}: factor is {factor}, it must be from 1 to {LARGEST_FACTOR}"
        )


def require_length(strategy: Any) -> None:
    """Raise a ValueError unless a length, where it is given, is in range."""
    allowed = "at least 2 and at most 2**40"
    require(strategy, "length", strategy.length is None or 2 <= strategy.length <= LONGEST, allowed)


def require_longer(strategy: Strategy, length: int, rope: Rope) -> None:
    """Raise a ValueError if a target length is shorter than the trained length."""
    if length < rope.trained_length:
        raise ValueError(
            f"{strategy}: the model is trained for {format_size(rope.trained_length)} tokens "
            "already; state a longer length"
        )


def require_positive(strategy: Strategy, *names: str) -> None:
    """Raise a ValueError unless these parameters, where given, are positive and in range."""
    for name in names:
        value = getattr(strategy, name)
        allowed = f"above 0: from {SMALLEST:g} to {LARGEST:g}"
        require(strategy, name, value is None or SMALLEST <= value <= LARGEST, allowed)


def require_scale(strategy: Strategy, *names: str) -> None:
    """Raise a ValueError unless these factors of cos and sin, where given, are in range."""
    for name in names:
        value = getattr(strategy, name)
        fits = value is None or 1 / LARGEST_SCALE <= value <= LARGEST_SCALE
        require(strategy, name, fits, f"above 0: from {1 / LARGEST_SCALE:g} to {LARGEST_SCALE}")


def require_growth(strategy: Any) -> None:
    """Raise a ValueError unless `beta`, the growth of queries at each step, is in range."""
    fits = SMALLEST <= strategy.beta <= LARGEST_SCALE
    require(strategy, "beta", fits, f"above 0: from {SMALLEST:g} to {LARGEST_SCALE}")


def require(strategy: Strategy, field: str, condition: bool, allowed: str) -> None:
    """Raise a ValueError that names the field, what it is and what is allowed."""
    if not condition:
        value = getattr(strategy, field)
        raise ValueError(f"{strategy.name}: {field} is {value}, it must be {allowed}")


def _format(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return "/".join(_format(name, each) for each in value)
    if isinstance(value, int) and name.endswith("length"):
        return format_size(value)
    # Shortest text that parses back; no "+" in a number, since it separates strategies.
    return repr(float(value)).removesuffix(".0").replace("e+", "e")

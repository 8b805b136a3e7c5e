"""Rotary tables that a model keeps or makes in a form of its own: sinusoids, rows of cos and sin.

A patch does not touch such tables. It answers in their place, from the planned frequencies.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ropex.errors import UnsupportedModel
from ropex.model.attributes import set_attribute
from ropex.model.options import Options
from ropex.model.sites.base import Site, checked_length
from ropex.model.tables import Native, Rows, outside_config
from ropex.model.trained_length import require_length
from ropex.rope import Plan, Rope
from ropex.strategies.base import Strategy


@dataclass(frozen=True, eq=False)
class Answer:
    """Stands in for a method of a module; it holds no module, so that models can be copied.

    Attributes:
        kind: How the module is asked.
        rows: What it answers with.
        own: The module's own rows, where `rows` only continue them.
    """

    kind: type[ComputedSite]
    rows: Rows
    own: Tensor | None = None

    def __call__(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """What the method returns."""
        return self.kind.answer(self, module, *args, **kwargs)


class ComputedSite(Site):
    """A module with tables of one layout: how they are asked for, and what they look like."""

    attribute = "forward"  # what a patch answers in the place of
    base = 10000.0
    given_length = True  # whether a call says how long the sequence is
    has_last_row = False  # whether the model's own table ends
    kept: tuple[str, ...] = ()  # where an owner keeps what the module has answered

    @classmethod
    @abstractmethod
    def fits(cls, module: Any, model: Any) -> bool:
        """Whether a module of `model` has tables of this kind, by what it holds and is called."""

    @classmethod
    @abstractmethod
    def answer(cls, given: Answer, module: Any, *args: Any, **kwargs: Any) -> Any:
        """What the module returns, from planned rows."""

    @abstractmethod
    def frequencies(self) -> Tensor:
        """What the model was trained with, `(dim // 2,)`, float64."""

    @abstractmethod
    def first_angles(self, length: int) -> Tensor:
        """Live phases at position 1 for a sequence of `length` tokens, `(dim // 2,)`."""

    def check(self) -> None:
        """Raise an UnsupportedModel if the model has lost more than its tables."""
        return

    def base_of(self) -> float:
        """The constant whose powers are the frequencies."""
        return float(getattr(self.module, "base", self.base))

    def stretch(self) -> float:
        """What positions are divided by, so that the config's length is reached so many times."""
        return 1.0

    def by_length(self) -> bool:
        """Whether the model itself changes its frequencies with the length."""
        return False

    def lost(self) -> bool:
        """Whether the tables are not what the model was trained with."""
        return False

    def attach(self, answer: Answer, undo: ExitStack) -> None:
        """Let the module answer by `answer`."""
        set_attribute(self.module, self.attribute, partial(answer, self.module), undo)

    def earlier(self) -> Answer | None:
        """What an earlier patch answers with."""
        given = getattr(vars(self.module).get(self.attribute), "func", None)
        return given if isinstance(given, Answer) else None

    def save(self, answer: Answer, homes: tuple[Any, ...], undo: ExitStack) -> bool:
        """Keep the table where the model is saved; whether that says all of it."""
        return False

    @property
    def ends(self) -> bool:
        """Whether the model's own table has a last row."""
        return self.has_last_row and self.earlier() is None

    @property
    def damaged(self) -> bool:
        """Whether the live tables are not what the model was trained with."""
        return self.earlier() is None and self.lost()

    def said_length(self) -> int | None:
        """Tokens that it is made for by its config, its own scaling included."""
        said = super().said_length()
        return said and round(said * self.stretch())

    def scaled_by(self) -> str | None:
        """How the checkpoint itself was scaled, in words; None if it was not."""
        if self.earlier() is not None:
            return None
        if self.by_length():
            return "dynamic"
        factor = self.stretch()
        return None if factor == 1 else f"linear, factor {factor:g}"

    def rope(self, trained_length: int | None = None) -> Rope:
        """What it was trained with, or was given by an earlier patch; see `Site.rope`."""
        earlier = self.earlier()
        said = self.said_length() if earlier is None else earlier.rows.target
        if earlier is None:
            require_length(self, trained_length)
        length = checked_length(said, trained_length)
        if earlier is not None:
            inv_freq, scale = earlier.rows.table_at(torch.tensor(length))
        else:
            inv_freq, scale = self.frequencies(), 1.0
        base = self.base_of()
        by_length = earlier is None and self.by_length()
        return Rope(2 * len(inv_freq), base, length, inv_freq, float(scale), by_length)

    def realise(self, strategy: Strategy, rope: Rope) -> Native:
        """The planned table, which no config entry says."""
        if strategy.class_on(rope) != "static" and not self.given_length:
            raise UnsupportedModel(
                f"{self.config.model_type}: {self.name} is not called with the length of a "
                f"sequence, on which {strategy} depends; fix it (dynamic:length=32k)"
            )
        native = outside_config(strategy, rope)
        plan = strategy.plan(rope)
        return replace(native, rows=Rows.of(strategy, rope, plan, strategy.target_length(rope)))

    def install(
        self, native: Native, exact_at: Any, options: Options, length: int, undo: ExitStack
    ) -> None:
        """Answer in the place of the module; see `Site.install`."""
        assert native.rows is not None  # `realise` saw to it
        self.attach(Answer(type(self), native.rows), undo)
        for name in self.kept:
            if name in vars(self.owner):
                set_attribute(self.owner, name, None, undo)

    def write(
        self, native: Native, lengths: tuple[int, int], homes: tuple[Any, ...], undo: ExitStack
    ) -> bool:
        """Keep the table where the model is saved; see `Site.write`."""
        assert native.rows is not None  # `realise` saw to it
        return self.save(Answer(type(self), native.rows), homes, undo)

    def live(self, length: int) -> Tensor:
        """The phases at position 1 that the module now answers with, on the CPU."""
        return self.first_angles(length).detach().cpu()

    def holds(self, plan: Plan, length: int) -> bool:
        """Whether they are the planned frequencies, to the accuracy of the tables."""
        live, wanted = self.live(length), plan.inv_freq
        rounding = 4 * torch.finfo(live.dtype).eps
        return bool(((live - wanted).abs() <= rounding * wanted.abs().clamp(min=1e-3)).all())


def angles(cos: Tensor, sin: Tensor) -> Tensor:
    """Phases of a row of cos and sin, whatever both are multiplied by."""
    return torch.atan2(sin.float(), cos.float()).to(sin.dtype)


def powers(base: float, dim: int) -> Tensor:
    """`base ** (-2 i / dim)` of each pair, `(dim // 2,)`, float64."""
    return base ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def trusted(live: Any, formula: Tensor) -> Tensor:
    """Live frequencies, unless they are not there, rounded, or not the powers of any base."""
    there = base_of(live)
    known = there is not None and live.shape == formula.shape
    return live.detach().double().cpu() if known else formula


def base_of(live: Any) -> float | None:
    """The base of unrounded frequencies; None if they are lost, rounded, or not its powers."""
    whole = isinstance(live, Tensor) and live.dtype in (torch.float32, torch.float64)
    if not whole or live.is_meta or live.ndim != 1 or len(live) < 2:
        return None
    there = live.detach().double().cpu()
    steps = torch.arange(len(there), dtype=torch.float64)
    alike = torch.allclose(there, there[1] ** steps, rtol=1e-3, atol=0) and 0 < there[1] < 1
    return float(there[1]) ** -len(there) if alike else None

"""The interface between a patch and a place where a model computes its rotary embedding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import Tensor

from ropex.errors import wrong_type
from ropex.model.options import Options
from ropex.model.sites.hooks import Tables
from ropex.model.tables import Native, TableAt, close
from ropex.rope import Plan, Rope
from ropex.sizes import LONGEST
from ropex.strategies.base import Strategy


@dataclass(frozen=True)
class Site(ABC):
    """One table of frequencies of a model.

    Attributes:
        name: Path of the module in the model, such as `model.rotary_emb`.
        module: The module that computes or keeps the table.
        owner: The module whose config describes it.
        latent: Attention modules whose logits are scaled by the same config entry.
        layer: What holds the module: attention, where each layer has a table of its own.
        origin: The config that knows from which file the model came; None if from none.
        lengths: Where the config says the trained length, first what is believed most.
        in_weights: Whether the table is saved with the weights.
    """

    name: str
    module: Any
    owner: Any
    latent: tuple[Any, ...] = field(default=(), kw_only=True)
    layer: Any = field(default=None, kw_only=True)
    origin: Any = field(default=None, kw_only=True)
    lengths: ClassVar[tuple[str, ...]] = ("max_position_embeddings",)
    in_weights: ClassVar[bool] = False

    @property
    def config(self) -> Any:
        """The config that describes it."""
        return self.owner.config

    @property
    def layer_type(self) -> str:
        """The layers that use this table; empty where the module has one for all."""
        return ""

    def __str__(self) -> str:
        """The path, and the type of the layers if the module has several tables."""
        return f"{self.name}[{self.layer_type}]" if self.layer_type else self.name

    @abstractmethod
    def rope(self, trained_length: int | None = None) -> Rope:
        """What it was trained with.

        Raises:
            UnsupportedModel: A strategy cannot start from it.
            ValueError: The config does not say the base or the trained length.
        """

    @property
    def any_position(self) -> bool:
        """Whether tokens may stand at any positions of the caller's choice, however far apart."""
        return False

    @property
    def ends(self) -> bool:
        """Whether the model's own table has a last row, which a patch goes beyond."""
        return False

    @property
    def damaged(self) -> bool:
        """Whether the live table is not what the model was trained with."""
        return False

    def probe(self, count: int) -> dict[str, Tensor]:
        """Inputs that the model needs besides `count` made-up tokens."""
        return {}

    def said_length(self) -> int | None:
        """Tokens that it is made for by its config; None if unsaid."""
        said = (getattr(self.config, name, None) for name in self.lengths)
        return next((length for length in said if isinstance(length, int)), None)

    def scaled_by(self) -> str | None:
        """How the checkpoint itself was scaled, in words; None if it was not."""
        return None

    @abstractmethod
    def realise(self, strategy: Strategy, rope: Rope) -> Native:
        """The table of a strategy, and the config entry that represents it."""

    @abstractmethod
    def write(
        self, native: Native, lengths: tuple[int, int], homes: tuple[Any, ...], undo: ExitStack
    ) -> bool:
        """Put what represents `native` where the model is saved.

        Args:
            native: Its table.
            lengths: Tokens that the model was trained at, and that it is to reach.
            homes: The configs that are saved with the model and describe this table.
            undo: Where the way back is written, of all but configs.

        Returns:
            Whether a saved model computes the same without ropex.
        """

    @abstractmethod
    def install(
        self, native: Native, exact_at: TableAt, options: Options, length: int, undo: ExitStack
    ) -> Tables | None:
        """Make it compute `native`.

        Args:
            native: Its table.
            exact_at: The float64 table of a length.
            options: How to compute.
            length: What the config now has as `max_position_embeddings`.
            undo: Where the way back is written.

        Returns:
            What rotates un-rotated keys; None where keys cannot stay un-rotated.

        Raises:
            UnsupportedModel: It cannot compute so.
        """

    def fill_later(self, rope: Rope, undo: ExitStack) -> None:
        """Leave the trained table behind where a model had none yet (meta device)."""
        return

    def same(self, other: Site, *, tables: bool) -> bool:
        """Whether two models compute alike here.

        Args:
            other: The site of the other model.
            tables: Whether to compare tables; one that goes by the length has none to compare.
        """
        return str(self) == str(other)

    @abstractmethod
    def live(self, length: int) -> Tensor:
        """The frequencies that it computes with for a sequence of `length` tokens, on the CPU."""

    def holds(self, plan: Plan, length: int) -> bool:
        """Whether it computes as planned for sequences of `length` tokens."""
        live = self.live(length)
        return live.dtype == torch.float32 and close(live, plan.inv_freq)


def checked_length(said: int | None, trained_length: int | None) -> int:
    """The trained length: as given, or as the config says.

    Raises:
        ValueError: It is below 2 or beyond `LONGEST`.
        TypeError: It is not a whole number.
    """
    length = said if trained_length is None else trained_length
    if not isinstance(length, Integral) or isinstance(length, bool):
        raise wrong_type("trained_length", length, "a whole number of tokens, or None")
    if not 2 <= length <= LONGEST:
        raise ValueError(f"trained_length is {length}, it must be at least 2 and at most 2**40")
    return int(length)

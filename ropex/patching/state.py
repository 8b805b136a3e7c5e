"""What a patch does to a model: one immutable value, which every step reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ropex.model.options import Options
from ropex.model.rotary import decoder_of, sites
from ropex.model.sites.base import Site
from ropex.patching.plan import Planned, plan_sites
from ropex.rope import Plan, Rope
from ropex.strategies.base import LengthClass, Strategy


@dataclass(frozen=True, eq=False)
class PatchState:
    """A strategy planned for a model; see `Patch` for what its attributes mean.

    Attributes:
        lifts_window: Whether every token sees all tokens before it, whatever the config says.
        goes_on: Whether a table of the model's own has a last row, which the patch goes beyond.
    """

    model: Any
    strategy: Strategy
    options: Options
    lifts_window: bool
    sites: tuple[Site, ...]
    planned: tuple[Planned, ...]
    rope: Rope
    plan: Plan
    scaled_by: str | None
    rebuilds: bool
    goes_on: bool

    @classmethod
    def of(
        cls,
        model: nn.Module,
        strategy: Strategy,
        trained_length: int | None,
        options: Options,
        lifts_window: bool = False,
    ) -> PatchState:
        """Plan a strategy for a model, which is only read.

        Raises:
            UnsupportedModel: The model has no rotary embedding that ropex can patch.
            ValueError: The strategy does not fit the model.
        """
        found = sites(model)
        planned = plan_sites(found, strategy, trained_length)
        main = next(each for each in planned if not each.kept)
        return cls(
            model,
            strategy,
            options,
            lifts_window,
            found,
            planned,
            rope=main.rope,
            plan=main.plan,
            scaled_by=main.site.scaled_by(),
            rebuilds=any(site.damaged for site in found),
            goes_on=any(site.ends for site in found),
        )

    @property
    def configs(self) -> tuple[Any, ...]:
        """The configs that the rotary modules read now: one, but for an encoder and a decoder."""
        return tuple({id(site.config): site.config for site in self.sites}.values())

    @property
    def decoders(self) -> tuple[nn.Module, ...]:
        """The models that are called with a cache: one, but where sub-models rotate (BLT)."""
        found = [decoder_of(self.model, site) for site in self.sites]
        return tuple({id(decoder): decoder for decoder in found}.values())

    @property
    def target_length(self) -> int:
        """Tokens that the patched model is meant to reach."""
        return self.strategy.target_length(self.rope)

    @property
    def length_class(self) -> LengthClass:
        """Which lengths share one plan, the model's own switch included."""
        return self.strategy.class_on(self.rope)

    @property
    def shares_a_plan(self) -> int:
        """Tokens up to which sequences of all lengths are planned alike; as trained, or fewer."""
        return min((self.rope.trained_length, *self.strategy.shared_up_to(self.rope)))

    @property
    def changes_tables(self) -> bool:
        """Whether the planned table of any rotary module differs from what it was trained with."""
        return any(each.changes for each in self.planned)

    @property
    def changes_rope(self) -> bool:
        """Whether the frequencies or the attention scale change, at this length or at another."""
        if self.rope.lists is not None and self.strategy.native(self.rope) != {}:
            return True  # at one length or the other
        by_length = self.strategy.length_class != "static"
        return self.changes_tables or self.rebuilds or self.goes_on or by_length

    @property
    def replaces_tables(self) -> bool:
        """Whether rotary modules compute with tables of the patch, if only more exact ones."""
        return self.changes_rope or self.options != Options()

    @property
    def changes_anything(self) -> bool:
        """Whether the patched model computes differently, if only in rounding."""
        return self.replaces_tables or self.plan.changes_attention

    @property
    def reads_token_by_token(self) -> bool:
        """Whether each token has a length of its own, which no config can say."""
        return self.options.cache == "unrotated" and self.length_class != "static"

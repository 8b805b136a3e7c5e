"""Which rotary tables are planned for a model, derived independently of the live ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ropex.errors import UnsupportedModel
from ropex.model.rotary import main_site, sites
from ropex.model.sites.base import Site
from ropex.model.sites.buffers import BufferSite
from ropex.model.sites.computed import ComputedSite
from ropex.patching.plan import Planned
from ropex.patching.stack import JOINT, Applied, stack
from ropex.patching.state import PatchState
from ropex.rope import Plan, Rope
from ropex.strategies.base import Strategy
from ropex.strategies.registry import strategy as parse_strategy
from ropex.train.built import Tables, around, built, has_own_type, same_table
from ropex.train.misfit import misfit_of

Spoken = tuple[str, list[tuple[Tensor, float]], list[str]]
"""What all ranks must share, to be sent: words, tables with scales, scales of queries."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """What one rotary module must compute with.

    Attributes:
        tables: Planned frequencies, `(dim // 2,)`, float64, by length.
        module: The module that is patched; None where only the config counts.
        said: Whether a model built from the config must compute the same.
        shared: Whether the module reads a config that is saved, and no copy of its own.
    """

    tables: Tables
    module: Any
    said: bool
    shared: bool


@dataclass(frozen=True, eq=False)
class Expected:
    """What is planned for a model.

    Attributes:
        under: The strategies of its patches, or how its config scales, in words.
        wanted: For each rotary table, in the order of `ropex.model.rotary.sites`.
        applied: The patches in place.
        misfit: Why this is not the requested strategy, in one sentence; None if it is.
    """

    under: str
    wanted: tuple[Wanted, ...]
    applied: tuple[Applied, ...]
    misfit: str | None

    @classmethod
    def of(cls, model: nn.Module, strategy: str | Strategy | None = None) -> Expected:
        """What the patches of a model plan; without a patch, what its config says.

        Args:
            model: The model, possibly wrapped. It is only read.
            strategy: The required strategy; None for any.

        Raises:
            UnsupportedModel: It has no rotary embedding that ropex knows, or is a copy of a patched
                model whose config does not say what it computes.
            ValueError: The strategy is unknown or does not fit the model.
        """
        found = sites(model)
        applied = stack(found)
        if any(each.handle is None and not each.in_config for each in applied):
            raise UnsupportedModel(
                "this is a copy of a patched model, whose config does not say what it computes; "
                "copy the model before it is patched, and patch the copy"
            )
        wanted = tuple(_wanted(model, site, applied) for site in found)
        scaled = main_site(found).scaled_by() or "no scaling"
        under = JOINT.join(each.strategy for each in applied) or scaled
        misfit = None
        if strategy is not None:
            tables = tuple(each.tables for each in wanted)
            misfit = misfit_of(found, applied, tables, under, parse_strategy(strategy))
        return cls(under, wanted, applied, misfit)

    @property
    def spoken(self) -> Spoken:
        """What other ranks must plan as well."""
        plans = [plan for each in self.wanted for _, plan in each.tables]
        tables = [(plan.inv_freq.float().cpu(), float(plan.attention_scale)) for plan in plans]
        states = [each.handle.state for each in self.applied if each.handle is not None]
        queries = [state.plan.attention for state in states]
        return self.under, tables, queries

    def unlike(self, first: Spoken) -> str | None:
        """Why this is not what rank 0 plans, in one sentence; None if it is.

        Args:
            first: What rank 0 plans.
        """
        under, tables, queries = first
        _, ours, our_queries = self.spoken
        same = len(ours) == len(tables) and queries == our_queries
        if same and all(
            same_table(mine, scale, Plan(other.double(), theirs))
            for (mine, scale), (other, theirs) in zip(ours, tables, strict=True)
        ):
            return None
        return (
            f"the model is under {self.under} here and under {under} on rank 0; load it from the "
            "same files and patch it in the same way on every rank"
        )


def _wanted(model: nn.Module, site: Site, applied: tuple[Applied, ...]) -> Wanted:
    shared = any(config is site.config for config in around(model, site))
    for patch in reversed(applied):
        state = patch.handle and patch.handle.state
        each = state and _part_of(state, site)
        if state and each:
            said = patch.in_config and not (each.kept and has_own_type(site.module))
            return Wanted(_planned(state, each), site.module, said, shared)
    if isinstance(site, ComputedSite):
        inv_freq = site.frequencies()
        return Wanted(((2, Plan(inv_freq)),), None, False, shared)
    assert isinstance(site, BufferSite)  # there are two kinds
    length = site.said_length()
    try:
        tables = built(site, site.config, (2, 2 * length) if length else (2,))
    except TypeError:  # a module that is not built from a config, and so takes no scaling
        dim, base = 2 * len(site.slot.table(site.module)), float(site.entry()["rope_theta"])
        return Wanted(((2, Plan(Rope.standard(dim, base, 2).inv_freq)),), None, False, shared)
    return Wanted(tables, None, True, shared)


def _part_of(state: PatchState, site: Site) -> Planned | None:
    """What a patch plans for a table; None if it leaves the table to the model."""
    for each in state.planned if state.replaces_tables else ():
        if each.site.module is site.module and each.site.layer_type == site.layer_type:
            return None if each.kept and each.rope.by_length else each
    return None


def _planned(state: PatchState, each: Planned) -> Tables:
    trained = each.rope.trained_length
    lengths = (trained, 2 * max(state.target_length, trained))
    plans = [each.plan if each.kept else state.strategy.plan(each.rope, n) for n in lengths]
    return tuple(zip(lengths, plans, strict=True))

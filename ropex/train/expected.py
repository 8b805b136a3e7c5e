"""Which rotary tables are planned for a model, worked out apart from the live ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ropex.errors import UnsupportedModel
from ropex.model.options import Options
from ropex.model.rotary import main_site, sites
from ropex.model.sites.base import Site
from ropex.model.sites.buffers import BufferSite
from ropex.model.sites.computed import ComputedSite
from ropex.patching.handle import Patch
from ropex.patching.plan import Planned
from ropex.patching.stack import stack
from ropex.rope import Plan, Rope
from ropex.strategies.base import Strategy
from ropex.strategies.registry import strategy as parse_strategy
from ropex.train.built import Tables, around, built, has_own_type, same_table
from ropex.train.misfit import misfit_of

_JOINT = " then "  # between patches over patches

Spoken = tuple[str, list[tuple[Tensor, float]], list[str]]
"""All that ranks have to share, in a form to send: words, tables with scales, scales of queries."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """What one rotary module is to compute with.

    Attributes:
        tables: Planned frequencies, `(dim // 2,)`, float64, by length.
        module: The module that a patch is in; None where the config alone counts.
        said: Whether a model that is built from the config has to compute the same.
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
        patches: Those in place; None for one that came with a copy of a patched model.
        misfit: Why this is not the strategy that was asked for, in one sentence; None if it is.
    """

    under: str
    wanted: tuple[Wanted, ...]
    patches: tuple[Patch | None, ...]
    misfit: str | None

    @classmethod
    def of(cls, model: nn.Module, strategy: str | Strategy | None = None) -> Expected:
        """What the patches of a model plan; without any, what its config says.

        Args:
            model: The model, or another one around it. It is only read.
            strategy: What it has to be under; None for whichever it is.

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
        patches = tuple(each.handle for each in applied)
        wanted = tuple(_wanted(model, site, patches) for site in found)
        scaled = main_site(found).scaled_by() or "no scaling"
        under = _JOINT.join(each.strategy for each in applied) or scaled
        misfit = None
        if strategy is not None:
            misfit = misfit_of(found, patches, wanted, under, parse_strategy(strategy))
        return cls(under, wanted, patches, misfit)

    @property
    def spoken(self) -> Spoken:
        """What other ranks have to plan as well."""
        plans = [plan for each in self.wanted for _, plan in each.tables]
        tables = [(plan.inv_freq.float().cpu(), float(plan.attention_scale)) for plan in plans]
        queries = [str(patch.plan.query_scale) for patch in self.patches if patch is not None]
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
            "same files and patch it alike on every rank"
        )


def _wanted(model: nn.Module, site: Site, patches: tuple[Patch | None, ...]) -> Wanted:
    shared = any(config is site.config for config in around(model, site))
    for patch in reversed([each for each in patches if each is not None]):
        each = _part_of(patch, site)
        if each is not None:
            said = patch.in_config and not (each.kept and has_own_type(site.module))
            return Wanted(_planned(patch, each), site.module, said, shared)
    if isinstance(site, ComputedSite):
        inv_freq = site.layout.frequencies(site.module, site.config)
        return Wanted(((2, Plan(inv_freq)),), None, False, shared)
    assert isinstance(site, BufferSite)  # there are two kinds
    length = site.said_length()
    try:
        tables = built(site, site.config, (2, 2 * length) if length else (2,))
    except TypeError:  # a module that is not made from a config, and so takes no scaling
        dim, base = 2 * len(site.slot.table(site.module)), float(site.entry()["rope_theta"])
        return Wanted(((2, Plan(Rope.standard(dim, base, 2).inv_freq)),), None, False, shared)
    return Wanted(tables, None, True, shared)


def _part_of(patch: Patch, site: Site) -> Planned | None:
    """What a patch plans for a table; None if it leaves the table to the model."""
    if not (patch.changes_rope or patch.options != Options()):
        return None
    for each in patch.planned:
        if each.site.module is site.module and each.site.layer_type == site.layer_type:
            return None if each.kept and each.rope.by_length else each
    return None


def _planned(patch: Patch, each: Planned) -> Tables:
    trained = each.rope.trained_length
    lengths = (trained, 2 * max(patch.target_length, trained))
    plans = [each.plan if each.kept else patch.strategy.plan(each.rope, n) for n in lengths]
    return tuple(zip(lengths, plans, strict=True))

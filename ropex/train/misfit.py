"""Whether a model is under the strategy that a guard was made for."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch

from ropex.config.write import write_entry
from ropex.errors import UnsupportedModel
from ropex.model.sites.base import Site
from ropex.model.sites.buffers import BufferSite
from ropex.patching.handle import Patch
from ropex.patching.plan import Planned, plan_sites
from ropex.patching.record import fingerprint
from ropex.strategies.base import Strategy
from ropex.strategies.none import Unscaled
from ropex.train.built import same_table

if TYPE_CHECKING:
    from ropex.train.expected import Wanted


def misfit_of(
    found: tuple[Site, ...],
    patches: tuple[Patch | None, ...],
    wanted: tuple[Wanted, ...],
    under: str,
    strategy: Strategy,
) -> str | None:
    """Why a model is not under `strategy`; None if it is."""
    if isinstance(strategy, Unscaled):
        same = not patches or str(strategy) == under
    elif patches:
        same = str(strategy) == under or _plans_the_same(patches, strategy)
    else:
        planned = plan_sites(tuple(map(_unscaled, found)), strategy, None)
        same = all(map(_is_planned, planned, wanted, [strategy] * len(planned)))
    if same:
        return None
    rest = ", after the patch in place is removed" if patches else ""
    return (
        f"the model is under {under}, and the guard was made for {strategy}; apply it before "
        f'training, with ropex.patch(model, "{strategy}"){rest}'
    )


def _plans_the_same(patches: tuple[Patch | None, ...], strategy: Strategy) -> bool:
    """Whether one static strategy makes the tables that static patches have made."""
    first, last = patches[0], patches[-1]
    if first is None or last is None:
        return False
    all_of_them = [strategy, *(patch.strategy for patch in patches if patch is not None)]
    if any(each.length_class != "static" for each in all_of_them):
        return False
    planned = tuple(
        each if each.kept else replace(each, plan=strategy.plan(each.rope))
        for each in first.planned
    )
    return fingerprint(planned) == fingerprint(last.planned)


def _is_planned(each: Planned, wanted: Wanted, strategy: Strategy) -> bool:
    """Whether the tables of a config are those of a strategy, which scales no queries."""
    for length, table in wanted.tables:
        plan = each.plan if each.kept else strategy.plan(each.rope, length)
        scale = float(table.attention_scale)
        if plan.query_scale or not same_table(table.inv_freq.float(), scale, plan):
            return False
    return True


def _unscaled(site: Site) -> Site:
    """The table that a model would have if its config did not scale.

    Raises:
        UnsupportedModel: Its family has none.
    """
    if not isinstance(site, BufferSite):
        return site
    config, entry = copy.deepcopy(site.config), site.entry()
    key = "original_max_position_embeddings"
    said = [entry.get(key), *(getattr(config, n, None) for n in (key, "max_position_embeddings"))]
    try:
        trained = next(length for length in said if length)
        write_entry(config, {"rope_type": "default"}, trained, trained, site.layer_type)
        with torch.device("cpu"):
            module = type(site.module)(config)
    except Exception as error:  # families refuse entries with exceptions of many kinds
        raise UnsupportedModel(
            f"{config.model_type} cannot be built without scaling, so there is no telling which "
            "strategy it is under; make the guard without one"
        ) from error
    return replace(site, module=module, owner=SimpleNamespace(config=config))

"""Whether a model is under the strategy that a guard was made for."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import torch

from ropex.config.write import write_entry
from ropex.errors import UnsupportedModel
from ropex.model.sites.base import Site
from ropex.model.sites.buffers import BufferSite
from ropex.patching.plan import Planned, plan_sites
from ropex.patching.record import fingerprint
from ropex.patching.stack import Applied
from ropex.strategies.base import Strategy
from ropex.strategies.none import Unscaled
from ropex.train.built import Tables, same_table


def misfit_of(
    found: tuple[Site, ...],
    applied: tuple[Applied, ...],
    wanted: tuple[Tables, ...],
    under: str,
    strategy: Strategy,
) -> str | None:
    """Why a model is not under `strategy`; None if it is.

    Args:
        found: The sites of the model.
        applied: The patches in place.
        wanted: What each site is to compute with.
        under: The strategies of the patches, in words.
        strategy: The strategy that it should be under.
    """
    if isinstance(strategy, Unscaled):
        same = not applied or str(strategy) == under
    elif applied:
        same = str(strategy) == under or _plans_the_same(applied, strategy)
    else:
        planned = plan_sites(tuple(map(_unscaled, found)), strategy, None)
        same = all(map(_is_planned, planned, wanted, [strategy] * len(planned)))
    if same:
        return None
    rest = ", after the patch in place is removed" if applied else ""
    return (
        f"the model is under {under}, and the guard was made for {strategy}; apply it before "
        f'training, with ropex.patch(model, "{strategy}"){rest}'
    )


def _plans_the_same(applied: tuple[Applied, ...], strategy: Strategy) -> bool:
    """Whether one static strategy gives the tables that static patches have made."""
    states = [each.handle.state for each in applied if each.handle is not None]
    all_of_them = [strategy, *(state.strategy for state in states)]
    by_length = any(each.length_class != "static" for each in all_of_them)
    if by_length or len(states) < len(applied):  # those of a copy have no state
        return False
    planned = tuple(
        each if each.kept else replace(each, plan=strategy.plan(each.rope))
        for each in states[0].planned
    )
    return fingerprint(planned) == fingerprint(states[-1].planned)


def _is_planned(each: Planned, wanted: Tables, strategy: Strategy) -> bool:
    """Whether the tables of a config are those of a strategy, which leaves attention alone."""
    for length, table in wanted:
        plan = each.plan if each.kept else strategy.plan(each.rope, length)
        scale = float(table.attention_scale)
        if plan.changes_attention or not same_table(table.inv_freq.float(), scale, plan):
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
            f"{config.model_type} cannot be built without scaling, so its strategy is "
            "unknown; make the guard without one"
        ) from error
    return replace(site, module=module, owner=SimpleNamespace(config=config))

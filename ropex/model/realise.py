"""The numbers that transformers computes for a strategy, checked against the float64 plan.

Where transformers has a method, its own float32 table is what a patched model holds. So the patched
model, a checkpoint saved from it and a model built from that config agree to the last bit. Where it
has none, or computes something else than the plan, a `longrope` entry carries the static table.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from ropex.config.notations import keeps_base, misread_by_5
from ropex.config.write import carrier, write_entry
from ropex.model.latent import SOFTMAX_KEYS, same_softmax
from ropex.model.sites.slots import Slot
from ropex.model.tables import Native, PlannedTable, TransformersTable, close, outside_config
from ropex.rope import Plan, Rope
from ropex.strategies.base import Strategy
from ropex.strategies.frozen import Frozen

_IMMENSE = 1e30  # divides a pair that does not turn; a file has no infinite number


class _Built(Protocol):
    """A table of a module that transformers builds from a config; see `BufferSite`."""

    @property
    def config(self) -> Any: ...
    @property
    def slot(self) -> Slot: ...
    @property
    def layer_type(self) -> str: ...
    @property
    def latent(self) -> tuple[Any, ...]: ...
    @property
    def alone(self) -> bool: ...
    def entry(self) -> dict[str, Any]: ...
    def built(self, config: Any) -> tuple[Tensor, float]: ...
    def built_type(self, config: Any) -> str: ...


def realise(site: _Built, strategy: Strategy, rope: Rope) -> Native:
    """Find the config entry and the table of `strategy` for a rotary module.

    Args:
        site: Where; it is not changed.
        strategy: A strategy that changes frequencies or the attention scale.
        rope: What the table was trained with.
    """
    plan = strategy.plan(rope)
    if isinstance(strategy, Frozen):
        return _held(realise(site, strategy.strategy, rope), strategy.at)
    if strategy.class_on(rope) != "static":
        return _by_length(site, strategy, rope, plan)
    for entry in _candidates(site, strategy, rope, plan):
        config = _reloaded(site, entry, strategy, rope)
        if config is not None:
            table, scale = site.built(config)
            stopped = plan.inv_freq == 0  # a file has no infinite divisor, only an immense one
            if bool((table[stopped[: len(table)]] < 1e-20).all()):
                table = table * ~stopped[: len(table)]
            same = close(table, plan.inv_freq) and abs(scale - plan.attention_scale) < 1e-9
            if same and same_softmax(site.latent, config, plan):
                return Native(entry, table, None, scale)
    return outside_config(strategy, rope)


def _held(native: Native, length: int) -> Native:
    """The table of one length, to the last bit, used for every length."""
    if native.table_at is None:
        return native
    table, scale = native.table_at(torch.tensor(length))
    return Native(None, table, None, float(scale))


def _candidates(
    site: _Built, strategy: Strategy, rope: Rope, plan: Plan
) -> Iterator[dict[str, Any]]:
    """Entries that might stand for a plan, best first."""
    old, native = site.entry(), strategy.native(rope)
    latent = {key: old[key] for key in SOFTMAX_KEYS if site.latent and key in old}
    if native is not None:
        dropped = () if site.latent else SOFTMAX_KEYS[1:]
        yield {key: value for key, value in native.items() if key not in dropped}
        latent |= {key: native[key] for key in SOFTMAX_KEYS[1:] if key in native}
        latent |= {"factor": native["factor"]} if "mscale_all_dim" in native else {}
    carried = _carrier(plan, rope, strategy.target_length(rope))
    if "mscale_all_dim" in latent and site.latent:
        carried |= latent
    yield carried | site.slot.beside_lists(plan.attention_scale)
    growth = (rope.inv_freq[0] / plan.inv_freq[0]).clamp(max=_IMMENSE)
    if old["rope_type"] in ("proportional", "linear") and growth > 1:
        yield {**old, "factor": float(growth) * float(old.get("factor") or 1)}


def _by_length(site: _Built, strategy: Strategy, rope: Rope, plan: Plan) -> Native:
    entry = strategy.native(rope)
    config = None if entry is None else _reloaded(site, entry, strategy, rope)
    kind = None if config is None else site.built_type(config)
    if kind not in ("dynamic", "longrope") or not same_softmax(site.latent, config, plan):
        return outside_config(strategy, rope)
    table_at = TransformersTable(kind, config, rope.trained_length, site.layer_type)
    planned = PlannedTable(strategy, rope)
    for tokens in (2, rope.trained_length, rope.trained_length + 1, 5 * rope.trained_length):
        (table, scale), (wanted, factor) = (at(torch.tensor(tokens)) for at in (table_at, planned))
        if not close(table, wanted.double()) or abs(scale - factor) > 1e-9:
            return outside_config(strategy, rope)
    return Native(entry, None, table_at, plan.attention_scale)


def _reloaded(site: _Built, entry: dict[str, Any], strategy: Strategy, rope: Rope) -> Any:
    """The site's config with `entry`, as it comes back from a file and builds a module.

    None if the entry is empty, if the family does not take one of its type (Phi-3 and YaRN), or if
    transformers 4 and 5 make two tables of it.
    """
    family = site.config.model_type
    alone = site.alone and not keeps_base(family)
    if not entry or ("rope_theta" in entry and not alone) or misread_by_5(entry, family):
        return None
    config = copy.deepcopy(site.config)
    target = strategy.target_length(rope)
    try:
        write_entry(config, entry, rope.trained_length, target, site.layer_type)
        config = type(config).from_dict(config.to_dict())
        site.built(config)
    except Exception:  # families refuse entries with exceptions of many kinds
        return None
    return config


def _carrier(plan: Plan, rope: Rope, target: int) -> dict[str, Any]:
    # As transformers computes it in float32, so that pairs which are kept stay so to the last bit.
    places = torch.arange(0, rope.dim, 2).float() / rope.dim
    unscaled = (1.0 / rope.base**places).double()
    divisors = (unscaled / plan.inv_freq).clamp(max=_IMMENSE)
    return carrier(divisors.tolist(), plan.attention_scale, target)

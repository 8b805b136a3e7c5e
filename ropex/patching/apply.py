"""Put the plans of a patch into a live model."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ropex.attention.attend import AttentionGuard
from ropex.attention.caches import CacheGuard, KeyRotation
from ropex.attention.continuous_batching import RefuseBatching, drop_kept, refused_batching
from ropex.attention.keys import MARK, Keys
from ropex.attention.modules import attention_modules, install_attention, part_takes
from ropex.errors import UnsupportedModel
from ropex.model.attributes import set_attribute
from ropex.model.configs import homes_of
from ropex.model.latent import scale_softmax
from ropex.model.options import Options
from ropex.model.rotary import decoder_of
from ropex.model.sites.hooks import Tables
from ropex.model.sites.slots import has_axes
from ropex.model.tables import Native, OneTable, PlannedTable, TableAt, outside_config
from ropex.patching.plan import Planned, realised, several_tables
from ropex.patching.stack import stack
from ropex.strategies.none import Unscaled

if TYPE_CHECKING:
    from ropex.patching.handle import Patch


def check_start(patch: Patch) -> None:
    """Refuse what a patch could not start from.

    Raises:
        ValueError: Options for a checkpoint whose own frequencies would be lost by them, or a
            patch over one that leaves no table to start from.
    """
    dynamic = patch.rope.by_length and patch.rope.lists is None
    if dynamic and not patch.changes_rope and patch.options != Options():
        raise ValueError(
            f"the checkpoint changes its frequencies with the length, and {patch.strategy} "
            "leaves them alone; precision and cache need a strategy that replaces them"
        )
    for earlier in stack(patch.sites):
        by_length = earlier.by_length and patch.changes_anything
        attends = patch.plan.query_scale is not None or patch.options.cache == "unrotated"
        if by_length or (earlier.scales_queries and attends):
            raise ValueError(
                f"the model is patched with {earlier.strategy}, and {patch.strategy} cannot "
                "start from that; remove it first"
            )


def apply_rope(patch: Patch, undo: ExitStack) -> bool:
    """Change the tables of a model, and its config as far as that can say it.

    Returns:
        Whether the config says all of it.
    """
    made = realised(patch.planned, patch.strategy)
    homes = [homes_of(patch.model, e.site.config, e.site.layer_type) for e, _ in made]
    said = [
        each.site.write(native, patch.strategy, each.rope, configs, undo)
        for (each, native), configs in zip(made, homes, strict=True)
    ]
    tables = [_install(patch, each, native, undo) for each, native in made]
    for each in patch.planned:
        if each.kept and not each.rope.by_length:  # .to(bfloat16) shall not round it either
            _install(patch, each, outside_config(Unscaled(), each.rope), undo)
    for site in {id(each.site.config): each.site for each, _ in made}.values():
        scale_softmax(site.latent, patch.plan, undo)
    _guard_keys(patch, undo)
    by_length = made[0][1].table_at if made else None
    if patch.options.cache == "unrotated":
        _keep_unrotated(patch, tables, by_length, undo)
    kept = any(each.kept for each in patch.planned)
    one_entry = kept and any(hasattr(each.site.config, "layer_rope_theta") for each, _ in made)
    return all(said) and not patch.reads_token_by_token and not one_entry  # Granite scales all


def apply_batching(patch: Patch, undo: ExitStack) -> None:
    """Refuse continuous batching where it would not compute what the patch says."""
    drop_kept(patch.model)
    undo.callback(drop_kept, patch.model)
    message = refused_batching(patch)
    if message is None:
        return
    refuse = RefuseBatching(message)
    refuse.install(patch.model, undo)
    for decoder in _decoders(patch):
        undo.callback(decoder.register_forward_pre_hook(refuse.before, with_kwargs=True).remove)


def guard_caches(patch: Patch, undo: ExitStack) -> None:
    """Refuse rotated keys of another length, by which the strategy or the model itself goes."""
    if patch.length_class == "static" or patch.options.cache == "unrotated":
        return
    switches = patch.length_class == "two"
    by_row = all(each.site.any_position for each in patch.planned if not each.kept)
    guard = CacheGuard(str(patch.strategy), patch.shares_a_plan, switches, by_row)
    _hook(patch, guard, undo)


def apply_attention(patch: Patch, undo: ExitStack) -> bool:
    """Change what attention does with queries and keys, which no config can say.

    Returns:
        Whether there was something to change.
    """
    attributes: dict[str, Any] = {}
    if patch.plan.query_scale is not None:
        attributes["ropex_query_scale"] = patch.plan.query_scale
    if patch.options.cache == "unrotated":
        attributes["ropex_unrotated"] = patch.rope.dim
    if attributes:
        split = patch.reads_token_by_token
        install_attention(patch.model, patch.configs, attributes, split, undo)
        guard = AttentionGuard(str(patch.strategy), patch.configs[0])
        for decoder in _decoders(patch):
            undo.callback(decoder.register_forward_pre_hook(guard).remove)
    return patch.plan.query_scale is not None


def _install(patch: Patch, each: Planned, native: Native, undo: ExitStack) -> Tables | None:
    exact_at: TableAt = PlannedTable(patch.strategy, each.rope, torch.float64)
    fixed = each.kept or patch.length_class == "static"
    if fixed:  # no need to plan it again in each forward
        exact_at = OneTable(each.plan)
    each.site.fill_later(each.rope, undo)
    length = getattr(each.site.config, "max_position_embeddings", each.rope.trained_length)
    return each.site.install(native, exact_at, patch.options, length, undo)


def _keep_unrotated(
    patch: Patch, tables: list[Tables | None], table_at: TableAt | None, undo: ExitStack
) -> None:
    rotating = tables[-1]
    attention = attention_modules(patch.model, patch.configs)
    reasons = {
        "has several rotary tables": several_tables(patch.planned),
        "does not ask for its rotary table by position": rotating is None,
        "gives each token three positions": has_axes(patch.sites[-1].module),
        "selects keys by a rotation of its own": any(
            part_takes(module, "position_embeddings") for module in attention
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise UnsupportedModel(
                f"{patch.model.config.model_type} {reason}, so its keys cannot stay un-rotated; "
                'leave cache="unrotated" out'
            )
    assert rotating is not None  # see above
    keys = KeyRotation(patch.sites[-1].module, rotating, table_at)
    _hook(patch, keys, undo)


def _guard_keys(patch: Patch, undo: ExitStack) -> None:
    """Let no cache be continued that was filled without this patch, or under it once removed."""
    keys = Keys.of(patch)
    if keys is None:
        return
    for decoder in _decoders(patch):
        set_attribute(decoder, MARK, keys, undo)
    _hook(patch, keys, undo)
    undo.callback(keys.spend)


def _hook(patch: Patch, hooks: Keys | CacheGuard | KeyRotation, undo: ExitStack) -> None:
    """Let `hooks` see each call that comes with a cache, and what it returns."""
    for decoder in _decoders(patch):
        undo.callback(decoder.register_forward_pre_hook(hooks.before, with_kwargs=True).remove)
        undo.callback(decoder.register_forward_hook(hooks.after, with_kwargs=True).remove)


def _decoders(patch: Patch) -> tuple[nn.Module, ...]:
    """The models that are called with a cache: one, but where sub-models rotate (BLT)."""
    found = [decoder_of(patch.model, site) for site in patch.sites]
    return tuple({id(decoder): decoder for decoder in found}.values())

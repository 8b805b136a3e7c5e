"""Apply a planned patch to a live model."""

from __future__ import annotations

from contextlib import ExitStack

import torch

from ropex.attention.modules import AttentionGuard, install, reachable
from ropex.attention.query_scale import QUERY_SCALE
from ropex.attention.unrotated import UNROTATED, check_split
from ropex.config.families import BASES_BY_LAYER
from ropex.model.configs import homes_of, keep_edits, own_configs
from ropex.model.latent import scale_softmax
from ropex.model.options import Options
from ropex.model.sites.hooks import Tables
from ropex.model.tables import Native, OneTable, PlannedTable, TableAt, outside_config
from ropex.model.window import lift_window
from ropex.patching.cache_hooks import guard_keys, guard_lengths, keep_unrotated
from ropex.patching.continuous_batching import refuse_batching
from ropex.patching.plan import Planned, realised
from ropex.patching.position_map import map_positions
from ropex.patching.saving import install_saving
from ropex.patching.stack import stack
from ropex.patching.state import PatchState
from ropex.strategies.none import Unscaled


def check_start(state: PatchState) -> None:
    """Refuse a model that the patch cannot start from.

    Raises:
        ValueError: Options for a checkpoint whose own frequencies would be lost by them, or a
            patch over one that leaves no table to start from.
    """
    dynamic = state.rope.by_length and state.rope.lists is None
    if dynamic and not state.changes_rope and state.options != Options():
        raise ValueError(
            f"the checkpoint changes its frequencies with the length, and {state.strategy} "
            "leaves them alone; precision and cache need a strategy that replaces them"
        )
    for earlier in stack(state.sites):
        by_length = earlier.by_length and state.changes_anything
        attends = state.plan.changes_attention or state.options.cache == "unrotated"
        if by_length or (earlier.changes_attention and attends):
            raise ValueError(
                f"the model is patched with {earlier.strategy}, and {state.strategy} cannot "
                "start from that; remove it first"
            )


def apply(state: PatchState, undo: ExitStack) -> bool:
    """Do to a live model all that a patch does.

    Args:
        state: What was planned.
        undo: Where the way back is written, before each step.

    Returns:
        Whether the model's config says all of it, and of the patches below.
    """
    in_config = all(earlier.in_config for earlier in stack(state.sites))
    if state.changes_anything or state.lifts_window:
        copies = own_configs(state.model, undo)
        for config in state.configs if state.lifts_window else ():
            lift_window(config)
        if state.replaces_tables:
            in_config = apply_rope(state, undo) and in_config
        if apply_attention(state, undo):
            in_config = False
        refuse_batching(state, undo)
        install_saving(state.model, state.configs, None if in_config else str(state.strategy), undo)
        keep_edits(copies, undo)
    guard_lengths(state, undo)
    return in_config


def apply_rope(state: PatchState, undo: ExitStack) -> bool:
    """Change the tables of a model, and its config as far as that can say it.

    Returns:
        Whether the config says all of it.
    """
    made = realised(state.planned, state.strategy)
    homes = [homes_of(state.model, e.site.config, e.site.layer_type) for e, _ in made]
    said = []
    for (each, native), configs in zip(made, homes, strict=True):
        lengths = each.rope.trained_length, state.strategy.target_length(each.rope)
        said.append(each.site.write(native, lengths, configs, undo))
    tables = [_install(state, each, native, undo) for each, native in made]
    for each in state.planned:
        if each.kept and not each.rope.by_length:  # so that .to(bfloat16) does not round it either
            _install(state, each, outside_config(Unscaled(), each.rope), undo)
    for site in {id(each.site.config): each.site for each, _ in made}.values():
        scale_softmax(site.latent, state.plan, undo)
    guard_keys(state, undo)
    by_length = made[0][1].table_at if made else None
    if state.options.cache == "unrotated":
        keep_unrotated(state, tables, by_length, undo)
    kept = any(each.kept for each in state.planned)
    one_entry = kept and any(hasattr(each.site.config, BASES_BY_LAYER) for each, _ in made)
    return all(said) and not state.reads_token_by_token and not one_entry  # Granite scales all


def apply_attention(state: PatchState, undo: ExitStack) -> bool:
    """Change what attention does with queries and keys, which no config can say.

    Returns:
        Whether there was something to change.
    """
    scale, unrotated = state.plan.query_scale, state.options.cache == "unrotated"
    positions = state.plan.positions
    if scale is None and positions is None and not unrotated:
        return False
    modules = reachable(state.model, state.configs)
    if scale is not None:
        install(modules, QUERY_SCALE, scale, undo)
    if unrotated:
        for config in state.configs if state.reads_token_by_token else ():
            check_split(config._attn_implementation or "eager")
        install(modules, UNROTATED, state.rope.dim, undo)
    if positions is not None:
        map_positions(state, modules, undo)
    guard = AttentionGuard(str(state.strategy), state.configs[0])
    for decoder in state.decoders:
        undo.callback(decoder.register_forward_pre_hook(guard).remove)
    return scale is not None or positions is not None


def _install(state: PatchState, each: Planned, native: Native, undo: ExitStack) -> Tables | None:
    exact_at: TableAt = PlannedTable(state.strategy, each.rope, torch.float64)
    fixed = each.kept or state.length_class == "static"
    if fixed:  # no need to plan it again in each forward
        exact_at = OneTable(each.plan)
    each.site.fill_later(each.rope, undo)
    length = getattr(each.site.config, "max_position_embeddings", each.rope.trained_length)
    return each.site.install(native, exact_at, state.options, length, undo)

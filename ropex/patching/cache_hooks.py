"""What runs around each call of a patched decoder that comes with a key-value cache."""

from __future__ import annotations

from contextlib import ExitStack

import torch

from ropex.attention.cache_guards import MARK, KeyGuard, LengthGuard
from ropex.attention.modules import attention_modules, part_takes
from ropex.attention.unrotated import KeyRotation
from ropex.errors import UnsupportedModel
from ropex.model.attributes import set_attribute
from ropex.model.options import Options
from ropex.model.sites.hooks import Tables
from ropex.model.sites.slots import has_axes
from ropex.model.tables import TableAt
from ropex.patching.plan import Planned, several_tables
from ropex.patching.record import fingerprint
from ropex.patching.state import PatchState


def guard_keys(state: PatchState, undo: ExitStack) -> None:
    """Let no cache be continued that was filled without this patch, or under it once removed."""
    by_length = state.strategy.length_class != "static"
    changed = state.rebuilds or state.changes_tables or by_length
    if not changed and state.options == Options():
        return
    guard = KeyGuard(str(state.strategy), _identity(state, by_length))
    for decoder in state.decoders:
        set_attribute(decoder, MARK, guard, undo)
    _hook(state, guard, undo)
    undo.callback(guard.spend)


def _identity(state: PatchState, by_length: bool) -> str:
    """A text that is equal for patches under which cached keys are equal."""
    if state.options.cache == "unrotated":
        return "unrotated"
    lengths = f"{state.strategy} {state.rope.trained_length}" if by_length else ""
    tables = fingerprint(state.planned, _rotation, torch.float64)
    return f"{state.options.precision} {lengths} {tables}"


def _rotation(each: Planned) -> str:
    return f"{each.site.layer_type} {float(each.plan.attention_scale)!r}"


def guard_lengths(state: PatchState, undo: ExitStack) -> None:
    """Refuse keys rotated for a different length, where the rotation depends on the length."""
    if state.length_class == "static" or state.options.cache == "unrotated":
        return
    switches = state.length_class == "two"
    by_row = all(each.site.any_position for each in state.planned if not each.kept)
    _hook(state, LengthGuard(str(state.strategy), state.shares_a_plan, switches, by_row), undo)


def keep_unrotated(
    state: PatchState, tables: list[Tables | None], table_at: TableAt | None, undo: ExitStack
) -> None:
    """Let caches hold un-rotated keys, which attention rotates.

    Args:
        state: The patch.
        tables: What was installed in its rotary modules.
        table_at: The table of a length; None if all lengths have the same.
        undo: Where the way back is written.

    Raises:
        UnsupportedModel: The model cannot keep them so.
    """
    rotating = tables[-1]
    attention = attention_modules(state.model, state.configs)
    reasons = {
        "has several rotary tables": several_tables(state.planned),
        "does not ask for its rotary table by position": rotating is None,
        "gives each token three positions": has_axes(state.sites[-1].module),
        "selects keys by a rotation of its own": any(
            part_takes(module, "position_embeddings") for module in attention
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise UnsupportedModel(
                f"{state.model.config.model_type} {reason}, so its keys cannot stay un-rotated; "
                'leave cache="unrotated" out'
            )
    assert rotating is not None  # see above
    _hook(state, KeyRotation(state.sites[-1].module, rotating, table_at), undo)


def _hook(state: PatchState, hooks: KeyGuard | LengthGuard | KeyRotation, undo: ExitStack) -> None:
    """Let `hooks` see every call of a decoder, and what it returns."""
    for decoder in state.decoders:
        undo.callback(decoder.register_forward_pre_hook(hooks.before, with_kwargs=True).remove)
        undo.callback(decoder.register_forward_hook(hooks.after, with_kwargs=True).remove)

"""Warnings about a patch that works as planned, but not as a user may expect."""

from __future__ import annotations

import warnings

from ropex.model.window import near_only, window_of
from ropex.patching.stack import stack
from ropex.patching.state import PatchState
from ropex.sizes import format_size


def warn(state: PatchState) -> None:
    """Warn of windows that hide what a strategy does, and of a checkpoint's own scaling."""
    for message in (_window(state), _near(state), _scaling(state), _lost(state)):
        if message is not None:
            warnings.warn(message, stacklevel=3)


def _window(state: PatchState) -> str | None:
    """Where attention cannot reach back over the target length."""
    window = window_of(getattr(state.model, "config", None))
    if state.lifts_window or window is None or window >= state.target_length:
        return None
    return (
        f"attention sees only the last {format_size(window)} tokens (sliding_window), less than "
        f"the target of {format_size(state.target_length)}; lift_sliding_window=True "
        "(--lift-sliding-window) lifts it"
    )


def _near(state: PatchState) -> str | None:
    """Where no rotating layer sees a distance that is new to it."""
    if not state.changes_tables:
        return None
    near = near_only(state.model, state.sites, state.rope.trained_length)
    if near is None:
        return None
    return (
        f"every layer that rotates sees only the last {format_size(near)} tokens, within the "
        f"trained length, so {state.strategy} changes what they know and extends nothing; longer "
        "texts are read by layers without rotation, which no strategy reaches"
    )


def _scaling(state: PatchState) -> str | None:
    """Where the checkpoint itself is scaled, and not by an earlier patch."""
    by_length = state.length_class != "static" and state.changes_rope
    scales = by_length or state.changes_tables
    if state.scaled_by is None or not scales or len(stack(state.sites)) > 1:
        return None
    return (
        f"the checkpoint is scaled already ({state.scaled_by}); {state.strategy} {_place(state)}, "
        f"counted from {format_size(state.rope.trained_length)} tokens"
    )


def _place(state: PatchState) -> str:
    """What a strategy does with the checkpoint's own scaling."""
    lists, at = state.rope.lists, state.rope.trained_length
    if lists is None:
        return "takes its place" if state.rope.by_length else "comes on top"
    if state.strategy.keeps_lists:
        return "comes on top of both its lists"
    which = "long" if at > lists.length else "short"
    return f"starts from its {which} list and gives all sequences what it makes of that"


def _lost(state: PatchState) -> str | None:
    """Where tables were missing, so that the model computed nothing useful."""
    if not state.rebuilds:
        return None
    return (
        "the rotary tables of this model were lost while it was loaded (transformers 5 does not "
        "fill what a checkpoint does not hold); they are rebuilt for as long as the patch lasts"
    )

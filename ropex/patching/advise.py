"""What a patch does right, and a user should know all the same."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from ropex.model.window import near_only, window_of
from ropex.patching.stack import stack
from ropex.sizes import format_size

if TYPE_CHECKING:
    from ropex.patching.handle import Patch


def warn(patch: Patch, lifted: bool) -> None:
    """Warn of windows that hide what a strategy does, and of a checkpoint's own scaling."""
    messages = (None if lifted else _window(patch), _near(patch), _scaling(patch), _lost(patch))
    for message in messages:
        if message is not None:
            warnings.warn(message, stacklevel=3)


def _window(patch: Patch) -> str | None:
    """Where attention cannot reach back over the target length."""
    window = window_of(getattr(patch.model, "config", None))
    if window is None or window >= patch.target_length:
        return None
    return (
        f"attention sees only the last {format_size(window)} tokens (sliding_window), less than "
        f"the target of {format_size(patch.target_length)}; lift_sliding_window=True "
        "(--lift-sliding-window) lifts it"
    )


def _near(patch: Patch) -> str | None:
    """Where no layer that rotates sees a distance which is new to it."""
    if not any(each.changes for each in patch.planned):
        return None
    near = near_only(patch.model, patch.sites, patch.rope.trained_length)
    if near is None:
        return None
    return (
        f"every layer that rotates sees only the last {format_size(near)} tokens, within the "
        f"trained length, so {patch.strategy} changes what they know and extends nothing; longer "
        "texts are read by layers without rotation, which no strategy reaches"
    )


def _scaling(patch: Patch) -> str | None:
    """Where the checkpoint itself was scaled, and not by an earlier patch."""
    by_length = patch.length_class != "static" and patch.changes_rope
    scales = by_length or any(each.changes for each in patch.planned)
    if patch.scaled_by is None or not scales or len(stack(patch.sites)) > 1:
        return None
    return (
        f"the checkpoint is scaled already ({patch.scaled_by}); {patch.strategy} {_place(patch)}, "
        f"counted from {format_size(patch.rope.trained_length)} tokens"
    )


def _place(patch: Patch) -> str:
    """What a strategy does with the checkpoint's own scaling."""
    lists, at = patch.rope.lists, patch.rope.trained_length
    if lists is None:
        return "takes its place" if patch.rope.by_length else "comes on top"
    if patch.strategy.keeps_lists:
        return "comes on top of both its lists"
    which = "long" if at > lists.length else "short"
    return f"starts from its {which} list and gives all sequences what it makes of that"


def _lost(patch: Patch) -> str | None:
    """Where tables were not there, so that the model computed nothing useful."""
    if not patch.rebuilds:
        return None
    return (
        "the rotary tables of this model were lost while it was loaded (transformers 5 does not "
        "fill what a checkpoint does not hold); they are rebuilt for as long as the patch lasts"
    )

"""Patches over patches: what is in place on a model, oldest first."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from ropex.model.attributes import set_attribute
from ropex.model.sites.base import Site
from ropex.patching.state import PatchState

_STACK = "ropex_patches"  # attribute of the first rotary module
JOINT = " then "
"""Stands between the strategies of patches over patches, in words and records."""


class Handle(Protocol):
    """What undoes a patch: `ropex.Patch`."""

    state: PatchState

    def remove(self) -> None:
        """Restore the model."""

    def suspended(self) -> AbstractContextManager[None]:
        """Take the patch off the model for the length of a block."""


@dataclass(frozen=True)
class Applied:
    """A patch that is in place; kept on the model, and copied with it.

    Attributes:
        strategy: Its text.
        by_length: Whether its frequencies are not one table, so that no strategy can start from it.
        changes_attention: Whether it scales queries or maps positions, which is done once.
        in_config: Whether the config says all of it, and of those below.
        handle: What undoes it; None in a copy of the model.
    """

    strategy: str
    by_length: bool
    changes_attention: bool
    in_config: bool
    handle: Handle | None = None

    @classmethod
    def of(cls, handle: Handle, in_config: bool) -> Applied:
        """What to keep of a patch."""
        state = handle.state
        unrotated = state.options.cache == "unrotated"
        by_length = unrotated or (state.changes_rope and state.length_class != "static")
        attends = state.plan.changes_attention
        return cls(str(state.strategy), by_length, attends, in_config, handle)

    def __str__(self) -> str:
        """Its strategy."""
        return self.strategy

    def __reduce__(self) -> Any:
        """A copied model stays patched, but the handle is the first model's."""
        return Applied, (self.strategy, self.by_length, self.changes_attention, self.in_config)


def stack(found: tuple[Site, ...]) -> tuple[Applied, ...]:
    """The patches in place, oldest first.

    Args:
        found: All sites of the model.
    """
    patches: tuple[Applied, ...] = vars(found[0].module).get(_STACK, ())
    return patches


def push(found: tuple[Site, ...], applied: Applied, undo: ExitStack) -> None:
    """Put a patch on top of those in place."""
    set_attribute(found[0].module, _STACK, (*stack(found), applied), undo)


def check_below(strategy: object, wanted: Sequence[Applied], found: Sequence[Applied]) -> None:
    """Check that the patches in place are those that a strategy was planned over.

    Raises:
        RuntimeError: They are not.
    """
    if [each.handle for each in found] != [each.handle for each in wanted]:
        was, there = (JOINT.join(map(str, those)) or "no patch" for those in (wanted, found))
        raise RuntimeError(
            f"{strategy} was made for the model with {was} and cannot be applied to it with "
            f"{there}; remove that, or patch again"
        )


def unwind(found: tuple[Site, ...], below: int) -> None:
    """Remove all patches but the first `below`, last first."""
    for applied in reversed(stack(found)[below:]):
        assert applied.handle is not None  # a copy's are all below the patches made since
        applied.handle.remove()

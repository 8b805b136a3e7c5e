"""Patches over patches: what is in place on a model, oldest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ropex.model.sites.base import Site

if TYPE_CHECKING:
    from ropex.patching.handle import Patch


@dataclass(frozen=True)
class Applied:
    """What later patches need to know of one; kept on the model, and copied with it.

    Attributes:
        identity: The `id` of its handle; 0 in a copy of the model.
        strategy: Its text.
        by_length: Whether its frequencies are no table that another strategy could start from.
        scales_queries: Whether it scales queries, which is done once.
        in_config: Whether the config says all of it, and of those below.
        handle: What removes it; None in a copy of the model.
    """

    identity: int
    strategy: str
    by_length: bool
    scales_queries: bool
    in_config: bool
    handle: Patch | None

    @classmethod
    def of(cls, patch: Patch) -> Applied:
        """What to keep of `patch`."""
        unrotated = patch.options.cache == "unrotated"
        by_length = unrotated or (patch.changes_rope and patch.length_class != "static")
        scales = patch.plan.query_scale is not None
        return cls(id(patch), str(patch.strategy), by_length, scales, patch.in_config, patch)

    def __str__(self) -> str:
        """Its strategy."""
        return self.strategy

    def __reduce__(self) -> Any:
        """A copied model stays patched, but the handle is the first model's."""
        values = (self.strategy, self.by_length, self.scales_queries, self.in_config)
        return Applied, (0, *values, None)


def stack(found: tuple[Site, ...]) -> list[Applied]:
    """The patches in place, oldest first."""
    module = found[0].module
    if not hasattr(module, "ropex_patches"):
        module.ropex_patches = []
    patches: list[Applied] = module.ropex_patches
    return patches


def check_below(strategy: object, wanted: Sequence[Applied], found: Sequence[Applied]) -> None:
    """See to it that the patches in place are those that a strategy was planned over.

    Raises:
        RuntimeError: They are not.
    """
    if [each.identity for each in found] != [each.identity for each in wanted]:
        was, there = (" then ".join(map(str, those)) or "no patch" for those in (wanted, found))
        raise RuntimeError(
            f"{strategy} was made for the model with {was} and cannot be applied to it with "
            f"{there}; remove that or patch anew"
        )


def unwind(found: tuple[Site, ...], below: int) -> None:
    """Remove all patches but the first `below`, last first."""
    for applied in reversed(stack(found)[below:]):
        assert applied.handle is not None  # a copy's are all below the patches made since
        applied.handle.remove()

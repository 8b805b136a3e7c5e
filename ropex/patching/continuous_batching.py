"""Continuous batching of transformers (`generate_batch`) under a patch."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import nn

from ropex.model.attributes import set_attribute
from ropex.patching.state import PatchState

_ENTRY = "init_continuous_batching"  # called whichever way it is started
_KEPT = "_cached_continuous_batching_manager"


def refuse_batching(state: PatchState, undo: ExitStack) -> None:
    """Refuse continuous batching where it would not compute what the patch says."""
    _drop_kept(state.model)
    undo.callback(_drop_kept, state.model)
    message = _refused(state)
    if message is None:
        return
    refuse = _Refuse(message)
    for module in state.model.modules():
        if hasattr(module, _ENTRY):
            set_attribute(module, _ENTRY, refuse, undo)
    for decoder in state.decoders:
        undo.callback(decoder.register_forward_pre_hook(refuse.before, with_kwargs=True).remove)


def _drop_kept(model: nn.Module) -> None:
    """Drop the managers that are kept between calls, since they share keys of common prefixes."""
    for module in model.modules():
        if vars(module).get(_KEPT) is not None:
            module.destroy_cached_continuous_batching_manager()  # type: ignore[operator]


class _Refuse:
    """Stands in for what starts continuous batching, or is asked before each of its calls.

    Args:
        message: The strategy, and why it is refused.
    """

    def __init__(self, message: str) -> None:
        self.message = message

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Raise a RuntimeError."""
        raise RuntimeError(self.message)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the decoder: refuse a manager that was started before the patch as well."""
        if kwargs.get("cache") is not None:
            self()


def _refused(state: PatchState) -> str | None:
    """Why continuous batching is refused; None if it is not.

    Its requests stand in one row and its cache is a part of attention, so neither a length of each
    sequence nor an attention of ropex's own has a place in it.
    """
    if state.length_class != "static":
        reason = (
            "puts requests of different lengths into one row, and all of them would get the "
            "frequencies of the longest; call generate(), or fix the length (dynamic:length=32k)"
        )
    elif state.options.cache == "unrotated":
        reason = 'has a cache that holds rotated keys; leave cache="unrotated" out'
    elif state.plan.query_scale is not None:
        reason = "has an attention of its own, which would not scale queries; call generate()"
    elif state.plan.positions is not None:
        reason = "has an attention of its own, which would not map positions; call generate()"
    else:
        return None
    return f"{state.strategy}: continuous batching {reason}"

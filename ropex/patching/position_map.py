"""Put a position map into the attention of a live model."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ropex.attention.dispatch import Step, route
from ropex.attention.layout import STEP, fit
from ropex.attention.mapped import MAPPED, Mapped, Whereabouts, through_regions
from ropex.attention.modules import install
from ropex.attention.schedule import Schedule
from ropex.attention.turns import Turn
from ropex.errors import UnsupportedModel
from ropex.model.attributes import set_attribute
from ropex.model.probe import has_weights, probe_logits, probe_size
from ropex.patching.state import PatchState
from ropex.positions import PositionMap, Region

_TOKENS = 8  # whose states are compared
_SOMETIMES = ("softcap", "s_aux")  # eager attention does what they say, and sdpa ignores them
_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}


@dataclass
class _Seen:
    """What a module was given in a run, and how far attention in regions is from its own."""

    query: Tensor | None = None
    key: Tensor | None = None
    error: float = 0.0
    largest: float = 0.0
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Later:
    """Pre-hook of a decoder that had no weights when its positions were to be mapped."""

    strategy: str

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        raise RuntimeError(
            f"{self.strategy} was applied before the model had weights, so its attention could not "
            "be tried; load them and patch then"
        )


class _Plain(PositionMap):
    """The map that changes nothing."""

    def level(self, positions: Tensor) -> Tensor:
        return torch.zeros_like(positions)

    def regions(self, level: int) -> tuple[Region, ...]:
        return ()


def _look(
    function: Any,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    seen: _Seen = module.ropex_seen  # type: ignore[assignment]
    seen.query, seen.key = query[:, :, :_TOKENS].detach(), key[:, :, :_TOKENS].detach()
    found = function(module, query, key, value, attention_mask, *args, **kwargs)
    keys = torch.arange(key.shape[2])
    schedule = Schedule(_Plain(), keys[-query.shape[2] :], keys)
    turn = Turn(query.new_zeros(0, dtype=torch.float64))
    states = query, key, value
    seen.error, seen.largest = float("inf"), float(found[0].abs().max())
    asked = tuple(name for name in _SOMETIMES if kwargs.get(name) is not None)
    for ignored in ((), asked) if asked else ((),):
        given = {name: value for name, value in kwargs.items() if name not in ignored}
        own = through_regions(*states, module, attention_mask, schedule, turn, None, given)
        error = float((own - found[0].reshape(own.shape)).abs().max())
        if error < seen.error:
            seen.error, seen.ignored = error, ignored
    return found


TRIAL = Step("trial", "ropex_seen", _look)
"""Keeps what attention is given, and compares attention in regions with it; as `ropex_seen`."""


def turns(
    model: Any, modules: tuple[nn.Module, ...], tables: list[Tensor]
) -> dict[nn.Module, tuple[Turn, tuple[str, ...]]]:
    """How each attention module holds rotated states, and what it ignores, found by two runs.

    Raises:
        UnsupportedModel: A module computes something that attention in regions does not, or
            changes states after it has rotated them.
    """
    tokens = max(_TOKENS + 1, probe_size(modules[0].config))
    before, after = (_run(model, modules, first, tokens) for first in (1, 1 + STEP))
    found: dict[nn.Module, tuple[Turn, tuple[str, ...]]] = {}
    known: dict[Any, Turn] = {}
    for module in modules:
        one, other = before[module], after[module]
        if one.query is None or one.key is None or other.query is None or other.key is None:
            continue  # it does not run in a plain pass
        half = one.query.dtype in (torch.float16, torch.bfloat16)
        if one.error > (5e-2 if half else 1e-4) * one.largest:
            raise UnsupportedModel(
                f"{type(module).__name__} computes attention in a way of its own, so its positions "
                f"cannot be mapped (outputs differ by {one.error:.2g} of {one.largest:.2g})"
            )
        query, key = fit(one.query, other.query, tables), fit(one.key, other.key, tables)
        if query is None or key is None:
            raise UnsupportedModel(
                f"{type(module).__name__} changes queries or keys after it has rotated them, so "
                "they cannot be turned to other positions"
            )
        name = query.layout, query.start, query.sign, len(query.inv_freq), id(query.inv_freq)
        turn = known.setdefault(name if len(query.inv_freq) else None, query)
        found[module] = turn, one.ignored
    return found


def _run(
    model: Any, modules: tuple[nn.Module, ...], first: int, tokens: int
) -> dict[nn.Module, _Seen]:
    places = {"position_ids": torch.arange(first, first + tokens)[None]}
    seen = {module: _Seen() for module in modules}
    with ExitStack() as undo:
        for module in modules:
            set_attribute(module, "ropex_seen", seen[module], undo)
            route(module, TRIAL, undo)
        probe_logits(model, places, tokens)
    return seen


def map_positions(state: PatchState, modules: tuple[nn.Module, ...], undo: ExitStack) -> None:
    """Let attention that sees beyond the trained length go through the map of a patch.

    Args:
        state: The patch; its tables are in place.
        modules: Attention modules.
        undo: Where the way back is written.

    Raises:
        UnsupportedModel: The attention of the model does not allow it.
    """
    if not has_weights(state.model):  # attention cannot be tried
        for decoder in state.decoders:
            later = _Later(str(state.strategy))
            undo.callback(decoder.register_forward_pre_hook(later).remove)
        return
    assert state.plan.positions is not None
    where = Whereabouts(str(state.strategy), state.plan.positions, len(modules))
    tables = [each.plan.inv_freq for each in state.planned]
    for module, (turn, ignored) in turns(state.model, modules, tables).items():
        window = window_of(module)
        if window is None or window > state.rope.trained_length:
            install((module,), MAPPED, Mapped(where, turn, ignored), undo)
    for decoder in state.decoders:
        undo.callback(decoder.register_forward_pre_hook(where.before, with_kwargs=True).remove)
        undo.callback(decoder.register_forward_hook(where.after, with_kwargs=True).remove)


def window_of(module: Any) -> int | None:
    """Tokens that the queries of an attention module see; None for all."""
    config, layer = module.config, getattr(module, "layer_idx", None)
    types = getattr(config, "layer_types", None)
    if types and layer is not None:
        name = _WINDOWS.get(types[layer])
        return getattr(config, name, None) if name else None
    found = getattr(module, "sliding_window", None) or getattr(config, "sliding_window", None)
    return found if isinstance(found, int) else None

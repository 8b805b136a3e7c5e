"""Check on a live model that a patch does what was planned."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ropex.attention.modules import attention_modules, part_takes
from ropex.errors import UnsupportedModel
from ropex.model.options import Options
from ropex.model.probe import FEWEST, probe_at, probe_logits, probe_size, unreached
from ropex.model.sites.base import Site
from ropex.patching.apply import apply
from ropex.patching.state import PatchState
from ropex.rope import Plan, QueryScale
from ropex.sizes import LONGEST


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        sites: Tables that are as planned, unrounded.
        logit_change: Largest change of a logit beyond position 0 against the unpatched model.
        unreached: Settings that take effect only on longer texts than the model was run on.
    """

    sites: int
    logit_change: float
    unreached: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The findings in words; a failure would have been an error."""
        tables = "1 table is" if self.sites == 1 else f"{self.sites} tables are"
        moved = f"logits move by up to {self.logit_change:.3g}"
        short = f" (on a text too short for {', '.join(self.unreached)})" if self.unreached else ""
        return f"verified: {tables} as planned, and {moved}{short}"


def verify(state: PatchState, suspended: AbstractContextManager[None]) -> Verification:
    """Run the model on tokens spread over the target length, patched and not.

    They are few, but as many as reach beyond its windows and the like; see `ropex.model.probe`.

    Each rotary module is called, and its table read afterwards. Logits of the first token must
    stay as they were, since a rotation is relative; those of later tokens must move if the plan
    changes anything.

    Args:
        state: A patch in place.
        suspended: What takes it off the model for the length of a block.

    Raises:
        RuntimeError: One of these does not hold.
    """
    free = takes_jumps(state.model, state.sites)
    length = _reach(state) if free else max(state.target_length, 2 * state.rope.trained_length)
    count = min(probe_size(*state.configs), length if free else state.rope.trained_length)
    places = probe_at(length, count) if free else state.sites[0].probe(count)
    patched = probe_logits(state.model, places, count)
    if state.changes_rope:
        _check_tables(state, length)
    if not torch.isfinite(patched).all():
        raise RuntimeError(f"{state.strategy}: the model computes no numbers")
    missed = unreached(*state.configs)
    if state.rebuilds:  # there is nothing to compare with
        return Verification(len(state.sites), float("nan"), missed)
    with suspended:
        plain = probe_logits(state.model, places, count)
        alone = not _has_sinks(state.model) and _is_causal(state.model, places, plain, count)
    if not torch.isfinite(plain).all():
        return Verification(len(state.sites), float("nan"), missed)
    change = (patched - plain).abs()
    first, later = float(change[0].max()) if alone else 0.0, float(change[1:].max())
    if first > 1e-2 * float(plain[0].abs().max()):
        raise RuntimeError(f"{state.strategy}: the logits of position 0 moved by {first}")
    _check_change(state, later, float(plain.abs().max()), length if free else count, free)
    return Verification(len(state.sites), later, missed)


def _check_change(
    state: PatchState, later: float, largest: float, reached: int, free: bool
) -> None:
    """Raise a RuntimeError unless logits beyond position 0 moved exactly if the plan says so."""
    changes = _changes(state, reached)
    if changes:
        seen = later > 1e-5 * largest  # more than rounding
    else:  # options compute in a different way, and so round differently
        seen = later == 0 or state.options != Options() or not free
    if not seen:
        raise RuntimeError(
            f"{state.strategy}: logits beyond position 0 moved by {later}, but the plan changes "
            f"{'something' if changes else 'nothing'}; look for a second module that computes the "
            "rotary embedding"
        )


def _reach(state: PatchState) -> int:
    """Tokens within which all that the plan changes shows, were it far beyond the target."""
    length, scale = max(state.target_length, 2 * state.rope.trained_length), state.plan.query_scale
    while scale is not None and length < LONGEST and not _scaled(scale, length):
        length *= 2
    return length


def _changes(state: PatchState, reached: int) -> bool:
    """Whether the model computes differently for any of `reached` tokens."""
    plans = [
        (state.strategy.plan(each.rope, reached), each.rope)
        for each in state.planned
        if not each.kept
    ]
    tables = any(Plan(it.inv_freq, it.attention_scale).changes(rope, reached) for it, rope in plans)
    scale, positions = state.plan.query_scale, state.plan.positions
    mapped = positions is not None and bool(positions.level(torch.tensor([reached - 1])))
    return tables or mapped or (scale is not None and _scaled(scale, reached))


def _scaled(scale: QueryScale, length: int) -> bool:
    """Whether the last of `length` queries is scaled."""
    return float(scale(torch.tensor([length - 1]))) != 1


def _check_tables(state: PatchState, length: int) -> None:
    """Raise a RuntimeError unless every table is there and as planned for `length` tokens."""
    there = {id(module) for module in state.model.modules()}
    for each in state.planned:
        if id(each.site.module) not in there:
            raise RuntimeError(f"{state.strategy}: {each.site} is no longer part of the model")
        wanted = each.plan if each.kept else state.strategy.plan(each.rope, length)
        if not each.site.holds(wanted, length):
            raise RuntimeError(
                f"{state.strategy}: {each.site} does not hold the planned frequencies; it was "
                "rebuilt or rounded after patching"
            )


def _is_causal(model: nn.Module, places: dict[str, Tensor], plain: Tensor, count: int) -> bool:
    """Whether the first token sees no later one, whose rotation may change (encoders)."""
    other = probe_logits(model, places, count, last=FEWEST + 1)
    return bool(torch.allclose(other[0], plain[0], rtol=1e-3, atol=1e-6))


def check_unrotated(state: PatchState, suspended: AbstractContextManager[None]) -> None:
    """Compare with rotated keys within the trained length, where both mean the same.

    Args:
        state: A patch in place, with un-rotated keys.
        suspended: What takes it off the model for the length of a block.

    Raises:
        UnsupportedModel: They differ.
    """
    with suspended, ExitStack() as undo:
        options, trained = Options(state.options.precision), state.rope.trained_length
        same = PatchState.of(state.model, state.strategy, trained, options)
        apply(same, undo)
        rotated = _within_trained(same)
    half = state.model.dtype in (torch.float16, torch.bfloat16)
    rounding = (5e-2 if half else 1e-3) * float(rotated.abs().max())
    cause: Exception | None = None
    try:
        alike = float((_within_trained(state) - rotated).abs().max()) <= rounding
    except (RuntimeError, ValueError) as error:  # shapes that do not fit
        alike, cause = False, error
    if not alike:
        raise UnsupportedModel(
            f"{state.model.config.model_type} rotates a part of its heads in a way that ropex's "
            'attention does not, so its keys cannot stay un-rotated; leave cache="unrotated" out'
        ) from cause


def _within_trained(state: PatchState) -> Tensor:
    """Logits of the model as it is patched now, where all lengths are planned alike."""
    length = state.shares_a_plan
    count = min(probe_size(*state.configs), length)
    return probe_logits(state.model, probe_at(length, count), count)


def takes_jumps(model: nn.Module, sites: Iterable[Site]) -> bool:
    """Whether tokens may have any positions, and not only those that are counted."""
    sites = tuple(sites)
    attention = attention_modules(model, tuple(site.config for site in sites))
    counted = any(part_takes(module, "position_ids") for module in attention)
    return not counted and all(site.any_position for site in sites)


def _has_sinks(model: nn.Module) -> bool:
    """Whether attention has learned logits that no position rotates (gpt-oss)."""
    return any(name.endswith("sinks") for name, _ in model.named_parameters())

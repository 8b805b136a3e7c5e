"""Check on a live model that a patch does what was planned."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ropex.attention.modules import attention_modules, part_takes
from ropex.model.modes import in_mode
from ropex.model.options import Options
from ropex.model.reach import FEWEST, probe_size, unreached
from ropex.rope import Plan, QueryScale
from ropex.sizes import LONGEST

if TYPE_CHECKING:
    from ropex.model.sites.base import Site
    from ropex.patching.handle import Patch

_ROWS = 8  # of logits that are kept
_CYCLE = 7  # made-up tokens are 1 to 7, which every vocabulary has


@dataclass(frozen=True)
class Verification:
    """What `verify` has seen.

    Attributes:
        sites: Tables that are as planned, unrounded.
        logit_change: Largest change of a logit beyond position 0 against the unpatched model.
        unreached: What does something only on longer texts than the model was run on.
    """

    sites: int
    logit_change: float
    unreached: tuple[str, ...] = ()

    def __str__(self) -> str:
        """What was seen, in words; what was wrong would have been an error."""
        tables = "1 table is" if self.sites == 1 else f"{self.sites} tables are"
        moved = f"logits move by up to {self.logit_change:.3g}"
        short = f" (on a text too short for {', '.join(self.unreached)})" if self.unreached else ""
        return f"verified: {tables} as planned, and {moved}{short}"


def verify(patch: Patch) -> Verification:
    """Run the model on tokens spread over the target length, patched and not.

    They are few, but as many as reach beyond its windows and the like; see `ropex.model.reach`.

    Each rotary module is called, and its table read afterwards. Logits of the first token must
    stay as they were, since a rotation is relative; those of later tokens must move if the plan
    changes anything.

    Raises:
        RuntimeError: One of these does not hold.
    """
    free = takes_jumps(patch.model, patch.sites)
    length = _reach(patch) if free else max(patch.target_length, 2 * patch.rope.trained_length)
    count = min(probe_size(*patch.configs), length if free else patch.rope.trained_length)
    places = probe_at(length, count) if free else patch.sites[0].probe(count)
    patched = probe_logits(patch.model, places, count)
    if patch.changes_rope:
        _check_tables(patch, length)
    if not torch.isfinite(patched).all():
        raise RuntimeError(f"{patch.strategy}: the model computes no numbers")
    missed = unreached(*patch.configs)
    if patch.rebuilds:  # there is nothing to compare with
        return Verification(len(patch.sites), float("nan"), missed)
    with patch.suspended():
        plain = probe_logits(patch.model, places, count)
        alone = not _has_sinks(patch.model) and _is_causal(patch.model, places, plain, count)
    if not torch.isfinite(plain).all():
        return Verification(len(patch.sites), float("nan"), missed)
    change = (patched - plain).abs()
    first, later = float(change[0].max()) if alone else 0.0, float(change[1:].max())
    if first > 1e-2 * float(plain[0].abs().max()):
        raise RuntimeError(f"{patch.strategy}: the logits of position 0 moved by {first}")
    _check_change(patch, later, float(plain.abs().max()), length if free else count, free)
    return Verification(len(patch.sites), later, missed)


def _check_change(patch: Patch, later: float, largest: float, reached: int, free: bool) -> None:
    """Raise a RuntimeError unless logits beyond position 0 moved just if the plan changes them."""
    changes = _changes(patch, reached)
    if changes:
        seen = later > 1e-5 * largest  # more than rounding
    else:  # the options compute otherwise, and so round otherwise
        seen = later == 0 or patch.options != Options() or not free
    if not seen:
        raise RuntimeError(
            f"{patch.strategy}: logits beyond position 0 moved by {later}, but the plan changes "
            f"{'something' if changes else 'nothing'}; look for another module that computes the "
            "rotary embedding"
        )


def _reach(patch: Patch) -> int:
    """Tokens within which all that the plan changes shows, were it far beyond the target."""
    length, scale = max(patch.target_length, 2 * patch.rope.trained_length), patch.plan.query_scale
    while scale is not None and length < LONGEST and not _scaled(scale, length):
        length *= 2
    return length


def _changes(patch: Patch, reached: int) -> bool:
    """Whether the model computes otherwise for a token of `reached` ones."""
    plans = [
        (patch.strategy.plan(each.rope, reached), each.rope)
        for each in patch.planned
        if not each.kept
    ]
    tables = any(Plan(it.inv_freq, it.attention_scale).changes(rope, reached) for it, rope in plans)
    scale = patch.plan.query_scale
    return tables or (scale is not None and _scaled(scale, reached))


def _scaled(scale: QueryScale, length: int) -> bool:
    """Whether the last of `length` queries is."""
    return float(scale(torch.tensor([length - 1]))) != 1


def _check_tables(patch: Patch, length: int) -> None:
    """Raise a RuntimeError unless every table is there and as planned for `length` tokens."""
    there = {id(module) for module in patch.model.modules()}
    for each in patch.planned:
        if id(each.site.module) not in there:
            raise RuntimeError(f"{patch.strategy}: {each.site} is no longer part of the model")
        wanted = each.plan if each.kept else patch.strategy.plan(each.rope, length)
        if not each.site.holds(wanted, length):
            raise RuntimeError(
                f"{patch.strategy}: {each.site} does not hold the planned frequencies; it was "
                "rebuilt or rounded after patching"
            )


def _is_causal(model: nn.Module, places: dict[str, Tensor], plain: Tensor, count: int) -> bool:
    """Whether the first token sees no later one, which may be rotated otherwise (encoders)."""
    other = probe_logits(model, places, count, last=FEWEST + 1)
    return bool(torch.allclose(other[0], plain[0], rtol=1e-3, atol=1e-6))


def within_trained(patch: Patch) -> Tensor:
    """Logits of the model as it is patched now, where all lengths are planned alike."""
    length = patch.shares_a_plan
    count = min(probe_size(*patch.configs), length)
    return probe_logits(patch.model, probe_at(length, count), count)


def same_unrotated(patch: Patch, rotated: Tensor) -> bool:
    """Whether attention rotates as the model itself does.

    Args:
        patch: A patch with un-rotated keys.
        rotated: What `within_trained` gives with rotated keys.
    """
    logits = within_trained(patch)
    half = patch.model.dtype in (torch.float16, torch.bfloat16)
    rounding = (5e-2 if half else 1e-3) * float(rotated.abs().max())
    return float((logits - rotated).abs().max()) <= rounding


@torch.no_grad()
def probe_logits(
    model: nn.Module, given: dict[str, Tensor], count: int = FEWEST, last: int = FEWEST
) -> Tensor:
    """Logits, `(8, vocabulary)` or fewer, float64, of some of the made-up tokens, first and last.

    Args:
        model: The model.
        given: What it is given besides them.
        count: How many tokens.
        last: The last token.
    """
    device = _device(model)
    ids = torch.arange(count, device=device)[None] % _CYCLE + 1
    ids[:, -1] = last
    inputs: dict[str, Any] = {name: value.to(device) for name, value in given.items()}
    run = _with_positions(model) if "position_ids" in inputs else model
    taken = inspect.signature(run.forward).parameters
    if "decoder_input_ids" in taken:
        of_decoder = {f"decoder_{name}": value for name, value in inputs.items()}
        inputs |= {name: value for name, value in of_decoder.items() if name in taken}
        inputs["decoder_input_ids"] = ids
    with in_mode(model, training=False):
        if _takes_cache(run):
            inputs["use_cache"] = False
        output = run(input_ids=ids, **inputs)
    logits: Tensor | None = getattr(output, "logits", None)  # a loss may come before them
    if logits is None:
        logits = output[0]  # hidden states, of a model without a head
    rows = torch.linspace(0, logits.shape[1] - 1, min(_ROWS, logits.shape[1])).long()
    return logits[0, rows.to(logits.device)].double().cpu()


def takes_jumps(model: nn.Module, sites: Iterable[Site]) -> bool:
    """Whether tokens may have any positions, and not only those that are counted."""
    sites = tuple(sites)
    attention = attention_modules(model, tuple(site.config for site in sites))
    counted = any(part_takes(module, "position_ids") for module in attention)
    return not counted and all(site.any_position for site in sites)


def has_weights(model: nn.Module) -> bool:
    """Whether the model can run: its weights are there, or accelerate fetches them (offloading)."""
    there = any(not parameter.is_meta for parameter in model.parameters())
    return there or any(hasattr(module, "_hf_hook") for module in model.modules())


def _device(model: nn.Module) -> Any:
    """Where the inputs go."""
    hooks = [getattr(module, "_hf_hook", None) for module in model.modules()]
    devices = [getattr(hook, "execution_device", None) for hook in hooks]
    return next((d for d in devices if d is not None), next(model.parameters()).device)


def _with_positions(model: Any) -> Any:
    """The model; the one below its head where that drops positions (Falcon's for tokens)."""
    from transformers import PreTrainedModel

    takes = "position_ids" in inspect.signature(model.forward).parameters
    return model if takes or not isinstance(model, PreTrainedModel) else model.base_model


def _takes_cache(model: nn.Module) -> bool:
    """Whether a model, or one that wraps it, can be told to keep no cache; encoders have none."""
    taken = inspect.signature(model.forward).parameters
    return "use_cache" in taken or any(p.kind is p.VAR_KEYWORD for p in taken.values())


def _has_sinks(model: nn.Module) -> bool:
    """Whether attention has learned logits that no position rotates (gpt-oss)."""
    return any(name.endswith("sinks") for name, _ in model.named_parameters())


def probe_at(length: int, count: int = FEWEST) -> dict[str, Tensor]:
    """Positions, from the first of `length` to the last, for `count` tokens."""
    places = torch.linspace(0, length - 1, count).long()[None]
    # Without a mask, jumps mean packed sequences.
    return {"position_ids": places, "attention_mask": torch.ones_like(places)}

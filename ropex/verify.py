"""Check on a live model that a patch does what was planned."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ropex.install import Options

if TYPE_CHECKING:
    from ropex.patching import Patch

_PROBES = 8


@dataclass(frozen=True)
class Verification:
    """What `verify` has seen.

    Attributes:
        sites: Tables that are as planned, unrounded.
        logit_change: Largest change of a logit beyond position 0 against the unpatched model.
    """

    sites: int
    logit_change: float

    def __str__(self) -> str:
        """What was seen, in words; what was wrong would have been an error."""
        tables = "1 table is" if self.sites == 1 else f"{self.sites} tables are"
        moved = f"logits move by up to {self.logit_change:.3g}"
        return f"verified: {tables} as planned, and {moved}"


def verify(patch: Patch) -> Verification:
    """Run the model on a few tokens spread over the target length, patched and not.

    Each rotary module is called, and its table read afterwards. Logits of the first token must
    stay as they were, since a rotation is relative; those of later tokens must move if the plan
    changes anything.

    Raises:
        RuntimeError: One of these does not hold.
    """
    length = max(patch.target_length, 2 * patch.rope.trained_length)
    free = all(site.any_position for site in patch.sites)
    places = probe_at(length) if free else patch.sites[0].probe(_PROBES)
    patched = probe_logits(patch.model, places)
    if patch.changes_rope:
        _check_tables(patch, length)
    if not torch.isfinite(patched).all():
        raise RuntimeError(f"{patch.strategy}: the model computes no numbers")
    if patch.rebuilds:  # there is nothing to compare with
        return Verification(len(patch.sites), float("nan"))
    with patch.suspended():
        plain = probe_logits(patch.model, places)
        alone = not _has_sinks(patch.model) and _is_causal(patch.model, places, plain)
    if not torch.isfinite(plain).all():
        return Verification(len(patch.sites), float("nan"))
    change = (patched - plain).abs()
    first, later = float(change[0].max()) if alone else 0.0, float(change[1:].max())
    if first > 1e-2 * float(plain[0].abs().max()):
        raise RuntimeError(f"{patch.strategy}: the logits of position 0 moved by {first}")
    reached = length if free else _PROBES
    changes = any(
        not each.kept and patch.strategy.plan(each.rope, reached).changes(each.rope, reached)
        for each in patch.planned
    )
    if changes:
        seen = later > 1e-5 * float(plain.abs().max())  # more than rounding
    else:  # the options compute otherwise, and so round otherwise
        seen = later == 0 or patch.options != Options() or not free
    if not seen:
        raise RuntimeError(
            f"{patch.strategy}: logits beyond position 0 moved by {later}, but the plan changes "
            f"{'something' if changes else 'nothing'}; look for another module that computes the "
            "rotary embedding"
        )
    return Verification(len(patch.sites), later)


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


def _is_causal(model: nn.Module, places: dict[str, Tensor], plain: Tensor) -> bool:
    """Whether the first token sees no later one, which may be rotated otherwise (encoders)."""
    other = probe_logits(model, places, _PROBES + 1)
    return bool(torch.allclose(other[0], plain[0], rtol=1e-3, atol=1e-6))


def same_unrotated(patch: Patch, rotated: Tensor) -> bool:
    """Whether attention rotates as the model itself does.

    Args:
        patch: A patch with un-rotated keys.
        rotated: What `probe_logits` gives with rotated keys, where all lengths are planned alike.
    """
    logits = probe_logits(patch.model, probe_at(patch.shares_a_plan))
    half = patch.model.dtype in (torch.float16, torch.bfloat16)
    rounding = (5e-2 if half else 1e-3) * float(rotated.abs().max())
    return float((logits - rotated).abs().max()) <= rounding


@torch.no_grad()
def probe_logits(model: nn.Module, given: dict[str, Tensor], last: int = _PROBES) -> Tensor:
    """Logits, `(8, vocabulary)`, float64, of eight made-up tokens.

    Args:
        model: The model.
        given: What it is given besides them.
        last: The last token.
    """
    device = _device(model)
    ids = torch.tensor([[*range(1, _PROBES), last]], device=device)
    inputs: dict[str, Any] = {name: value.to(device) for name, value in given.items()}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        if _takes_cache(model):
            inputs["use_cache"] = False
        output = model(input_ids=ids, **inputs)
    finally:
        for module, training in modes:
            module.training = training
    logits: Tensor = output[0]  # hidden states, of a model without a head
    return logits[0].double().cpu()


def has_weights(model: nn.Module) -> bool:
    """Whether the model can run: its weights are there, or accelerate fetches them (offloading)."""
    there = any(not parameter.is_meta for parameter in model.parameters())
    return there or any(hasattr(module, "_hf_hook") for module in model.modules())


def _device(model: nn.Module) -> Any:
    """Where the inputs go."""
    hooks = [getattr(module, "_hf_hook", None) for module in model.modules()]
    devices = [getattr(hook, "execution_device", None) for hook in hooks]
    return next((d for d in devices if d is not None), next(model.parameters()).device)


def _takes_cache(model: nn.Module) -> bool:
    """Whether a model, or one that wraps it, can be told to keep no cache; encoders have none."""
    taken = inspect.signature(model.forward).parameters
    return "use_cache" in taken or any(p.kind is p.VAR_KEYWORD for p in taken.values())


def _has_sinks(model: nn.Module) -> bool:
    """Whether attention has learned logits that no position rotates (gpt-oss)."""
    return any(name.endswith("sinks") for name, _ in model.named_parameters())


def probe_at(length: int) -> dict[str, Tensor]:
    """Positions, from the first of `length` to the last, for eight tokens."""
    places = torch.linspace(0, length - 1, _PROBES).long()[None]
    # Without a mask, jumps mean packed sequences.
    return {"position_ids": places, "attention_mask": torch.ones_like(places)}

"""Check on a live model that a patch does what was planned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ropex.install import Options
from ropex.native import close

if TYPE_CHECKING:
    from ropex.patching import Patch

_PROBES = 8


@dataclass(frozen=True)
class Verification:
    """What `verify` has seen.

    Attributes:
        sites: Rotary modules that hold the planned table, unrounded.
        logit_change: Largest change of a logit beyond position 0 against the unpatched model.
    """

    sites: int
    logit_change: float

    def __str__(self) -> str:
        """What was seen, in words; what was wrong would have been an error."""
        modules = "1 module holds" if self.sites == 1 else f"{self.sites} modules hold"
        moved = f"logits move by up to {self.logit_change:.3g}"
        return f"verified: {modules} the planned table, and {moved}"


def verify(patch: Patch) -> Verification:
    """Run the model on a few tokens spread over the target length, patched and not.

    Each rotary module is called, and its table read afterwards. Logits of the first token must
    stay as they were, since a rotation is relative; those of later tokens must move if the plan
    changes anything.

    Raises:
        RuntimeError: One of these does not hold.
    """
    length = max(patch.target_length, 2 * patch.rope.trained_length)
    plan = patch.strategy.plan(patch.rope, length)
    patched = probe_logits(patch.model, length)
    if patch.changes_rope:
        for site in patch.sites:
            device = site.module.inv_freq.device
            site.module(
                torch.zeros(1, 1, 1, device=device), position_ids=_positions(length).to(device)
            )
            table = site.module.inv_freq.detach()
            if table.dtype != torch.float32 or not close(table.cpu(), plan.inv_freq):
                raise RuntimeError(
                    f"{patch.strategy}: {site.name} does not hold the planned frequencies "
                    f"({table.dtype}); it was rebuilt or rounded after patching"
                )
    with patch.suspended():
        plain = probe_logits(patch.model, length)
    change = (patched - plain).abs()
    first, later = float(change[0].max()), float(change[1:].max())
    if _has_sinks(patch.model):  # which even the first token attends to
        first = 0.0
    if first > 1e-2 * float(plain[0].abs().max()) or not torch.isfinite(change).all():
        raise RuntimeError(f"{patch.strategy}: the logits of position 0 moved by {first}")
    if plan.changes(patch.rope):
        seen = later > 1e-5 * float(plain.abs().max())  # more than rounding
    else:  # the options compute otherwise, and so round otherwise
        seen = later == 0 or patch.options != Options()
    if not seen:
        raise RuntimeError(
            f"{patch.strategy}: logits beyond position 0 moved by {later}, but the plan changes "
            f"{'something' if plan.changes(patch.rope) else 'nothing'}; look for another module "
            "that computes the rotary embedding"
        )
    return Verification(len(patch.sites), later)


def same_unrotated(patch: Patch, rotated: Tensor) -> bool:
    """Whether attention rotates as the model itself does.

    Args:
        patch: A patch with un-rotated keys.
        rotated: What `probe_logits` gives over the trained length with rotated keys.
    """
    logits = probe_logits(patch.model, patch.rope.trained_length)
    half = patch.model.dtype in (torch.float16, torch.bfloat16)
    rounding = (5e-2 if half else 1e-3) * float(rotated.abs().max())
    return float((logits - rotated).abs().max()) <= rounding


@torch.no_grad()
def probe_logits(model: nn.Module, length: int) -> Tensor:
    """Logits, `(8, vocabulary)`, float64, of eight tokens spread over `length` positions."""
    device = _device(model)
    ids = torch.arange(1, _PROBES + 1, device=device)[None]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        output = model(
            input_ids=ids,
            position_ids=_positions(length).to(device),
            attention_mask=torch.ones_like(ids),  # without it, jumps mean packed sequences
            use_cache=False,
        )
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


def _has_sinks(model: nn.Module) -> bool:
    """Whether attention has learned logits that no position rotates (gpt-oss)."""
    return any(name.endswith("sinks") for name, _ in model.named_parameters())


def _positions(length: int) -> Tensor:
    return torch.linspace(0, length - 1, _PROBES).long()[None]

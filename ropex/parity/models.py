"""Compare two models: their tables, rotations and logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ropex.model.probe import FEWEST, probe_at, probe_logits, probe_size
from ropex.model.rotary import sites
from ropex.patching.verify import takes_jumps

_LONG = 64  # least tokens of a text that is read whole
_TOLERANCE = 1e-6
_EPSILON = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Difference:
    """How far two models differ in one respect.

    Attributes:
        what: What is compared, in words.
        largest: The largest difference; infinite where they cannot be compared.
        allowed: Up to which they count as the same.
    """

    what: str
    largest: float
    allowed: float

    @property
    def same(self) -> bool:
        """Whether this is within what is allowed."""
        return self.largest <= self.allowed

    def __str__(self) -> str:
        """One line."""
        return f"{'ok  ' if self.same else 'FAIL'}  {self.what}: {self.largest:.2g}"


@dataclass(frozen=True)
class Folded:
    """A temperature that one model has in its query weights, and the other in cos and sin.

    Attributes:
        temperature: What cos and sin are multiplied by; weights by its square.
        stored: The dtype that the weights were rounded to.
    """

    temperature: float
    stored: torch.dtype

    @property
    def rounding(self) -> float:
        """Allowed difference of logits over the largest logit: a few roundings of a weight."""
        return max(64 * _EPSILON, 8 * torch.finfo(self.stored).eps)


def differences(
    left: Any, right: Any, trained: int, target: int, folded: Folded | None = None
) -> Iterator[Difference]:
    """Compare two loaded models, which may be patched.

    Args:
        left: A causal language model.
        right: The same model, loaded or patched in a different way.
        trained: Tokens that they were trained at.
        target: Tokens that they are to reach.
        folded: The temperature that `right` has in its weights and `left` does not.
    """
    rounding = 0.0 if left.dtype == right.dtype == torch.float32 else 5e-2
    yield from _tables(left, right, target, folded)
    tables = sites(left)
    jumps = takes_jumps(left, tables)
    for name, length in (("within the trained length", trained), ("up to the target", target)):
        given = probe_at(max(length, 8)) if jumps else tables[0].probe(FEWEST)
        there = probe_logits(left, given), probe_logits(right, given)
        yield _logits_apart(f"logits at positions {name}", *there, rounding, folded)
    tokens = max(_LONG, min(trained, probe_size(*(site.config for site in tables))))
    texts = _logits(left, tokens), _logits(right, tokens)
    yield _logits_apart(f"logits of {tokens} tokens in a row", *texts, rounding, folded)


def _logits_apart(
    what: str, left: Tensor, right: Tensor, rounding: float, folded: Folded | None
) -> Difference:
    if folded is None:
        return _apart(what, left, right, _TOLERANCE + rounding)
    allowed = _TOLERANCE + rounding + folded.rounding * float(left.abs().max())
    return _apart(f"{what} (up to {allowed:.2g}: folded weights are rounded)", left, right, allowed)


def _tables(left: Any, right: Any, target: int, folded: Folded | None) -> Iterator[Difference]:
    """Cos and sin of each rotary module, at positions up to the target.

    Those of `right` are multiplied by the temperature in its weights. Its frequencies are stored in
    a different form than those of `left`, so they are rounded differently.
    """
    temperature = folded.temperature if folded else 1.0
    allowed = _TOLERANCE + (_EPSILON * target if folded else 0.0)
    pairs = (sites(left), sites(right))
    if len(pairs[0]) != len(pairs[1]):
        yield Difference("number of rotary tables", float("inf"), 0.0)
        return
    for ours, theirs in zip(*pairs, strict=True):
        places = probe_at(target)["position_ids"]
        turned, other = _rotations(ours, places), _rotations(theirs, places)
        if turned is not None and other is not None:
            yield _apart(f"cos and sin of {ours}", turned, temperature * other, allowed)


@torch.no_grad()
def _rotations(site: Any, places: Tensor) -> Tensor | None:
    """Output of a rotary module at some positions; None if it is not called with positions."""
    device = next((b.device for b in site.module.buffers()), torch.device("cpu"))
    states, places = torch.zeros(1, places.shape[1], 1, device=device), places.to(device)
    arguments = (site.layer_type,) if site.layer_type else ()
    try:
        answer = site.module(states, places, *arguments)
    except (TypeError, RuntimeError, ValueError):
        return None
    parts = answer if isinstance(answer, tuple) else (answer,)
    real = (torch.view_as_real(part) if part.is_complex() else part for part in parts)
    return torch.cat([part.double().flatten().cpu() for part in real])


@torch.no_grad()
def _logits(model: Any, length: int) -> Tensor:
    size = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(1, length + 1) % size
    device = model.get_input_embeddings().weight.device
    logits: Tensor = model(ids[None].to(device), use_cache=False).logits[0]
    return logits.double().cpu()


def _apart(what: str, left: Tensor, right: Tensor, allowed: float) -> Difference:
    if left.shape != right.shape:
        return Difference(what, float("inf"), allowed)
    return Difference(what, float((left - right).abs().max()), allowed)

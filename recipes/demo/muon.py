"""Muon in float32: what `torch.optim.Muon` does in bfloat16, 40 times slower on a plain CPU."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Coefficients of the quintic and number of steps of Jordan et al., "Muon" (2024).
_QUINTIC = (3.4445, -4.7750, 2.0315)
_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose update is replaced by its nearest orthogonal matrix, nearly.

    Args:
        matrices: Two-dimensional parameters of hidden layers.
        lr: Learning rate; the update has a spectral norm of about `lr`, more for tall matrices.
        momentum: Of Nesterov's kind.
        weight_decay: Decoupled, as in AdamW.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every matrix once."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for matrix in group["params"]:
                gradient = matrix.grad
                state = self.state[matrix]
                average = state.setdefault("momentum", torch.zeros_like(gradient))
                average.lerp_(gradient, 1 - momentum)
                update = orthogonal(gradient.lerp(average, momentum))
                rows, columns = matrix.shape
                matrix.mul_(1 - lr * group["weight_decay"])
                matrix.add_(update, alpha=-lr * math.sqrt(max(1.0, rows / columns)))


def orthogonal(matrix: Tensor) -> Tensor:
    """`matrix` with singular values between about 0.7 and 1.2, by a Newton-Schulz iteration."""
    if matrix.shape[0] > matrix.shape[1]:
        wide: Tensor = orthogonal(matrix.mT)
        return wide.mT
    a, b, c = _QUINTIC
    x: Tensor = matrix / matrix.norm().clamp(min=1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x

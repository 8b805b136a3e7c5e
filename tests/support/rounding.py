"""How far two right ways to one number may lie apart, whatever processor computes them.

An operation rounds its result by at most eps / 2 of it. The sum of n products is hence off by at
most n * eps / 2 of the sum of their magnitudes, in whichever order a processor adds them (Higham,
Accuracy and Stability of Numerical Algorithms, 2002, section 3.1), and two orders differ by twice
that. Sums that read the results of others add their errors to these. So what bounds the difference
of two ways is eps, times the terms of all sums on the longest way to the number, times its size.

Where the way leads through a whole model, the bound in float32 is as large as what a wrong position
would do; so ways are compared in float64, where it is a billionth of that.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Of a tiny model: two layers, each with queries (64 terms), scores (16), values (100 keys), output
# (64), two norms and two steps of the feed-forward part (64 each); the last norm and the head.
TERMS = 2 * (64 + 16 + 100 + 64 + 2 * 64 + 2 * 64) + 64 + 64


def of_loss(vocabulary: int) -> float:
    """What a loss may be off that is taken in float32, as everybody takes it, of exact logits.

    A sum of as many exponentials, and logits of up to 64, which are rounded, shifted, subtracted,
    and added to a mean.
    """
    return torch.finfo(torch.float32).eps * (vocabulary + 4 * 64)


LOSS = of_loss(300)
"""Of the tiny readers."""


def rounding(wanted: Tensor, terms: int = TERMS, dtype: torch.dtype | None = None) -> float:
    """The largest difference that rounding alone explains.

    Args:
        wanted: One of the two values, of any shape.
        terms: Of all sums on the longest way to it.
        dtype: In which they are computed; by default the type of `wanted`.
    """
    wanted = wanted.detach()
    return terms * torch.finfo(dtype or wanted.dtype).eps * float(wanted.abs().max())


def assert_alike(
    found: Tensor, wanted: Tensor, terms: int = TERMS, dtype: torch.dtype | None = None
) -> None:
    """Two ways to one value differ by no more than rounding explains."""
    atol = rounding(wanted, terms, dtype)
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)

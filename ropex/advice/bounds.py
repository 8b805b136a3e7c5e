"""What a rotary embedding saw in training, and bounds from theory, in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ropex.rope import Plan, Rope

LOCAL = 64
"""Distance in tokens at which `phase_change` is measured; as in `ropex eval`."""

LONGEST_SEARCH = 2**17
"""Tokens up to which `base_bound` searches, so that it answers within two seconds."""

_STEP = 1.01
_LARGEST_BASE = 1e16
_ZERO = -1e-9  # beyond the rounding of the sums


def turns(rope: Rope) -> Tensor:
    """Full turns of each pair over the trained length, `(dim // 2,)`, float64."""
    return rope.inv_freq * rope.trained_length / (2 * math.pi)


def critical_pair(rope: Rope) -> int | None:
    """The last pair that made a full turn in training; None if none did.

    Liu et al. (arXiv:2310.05209), section 4: with an unscaled base, its dimensions are the last of
    the "critical dimension" `2 ceil(dim / 2 * log(L / 2 pi, base))`.
    """
    turned = torch.nonzero(turns(rope) >= 1)
    return int(turned.max()) if len(turned) else None


def critical_dimension(rope: Rope) -> int:
    """Rotated dimensions up to the critical pair; 92 of 128 in Llama 2."""
    pair = critical_pair(rope)
    return 0 if pair is None else 2 * (pair + 1)


def inside(rope: Rope, plan: Plan, length: int) -> Tensor:
    """Which pairs see no angle over `length` tokens that they did not see in training.

    A pair that made a full turn in training has seen every angle. Any other pair is inside if its
    largest angle is no larger than in training (arXiv:2309.00071, section 3; arXiv:2310.05209).

    Returns:
        `(dim // 2,)`, bool.
    """
    seen = rope.inv_freq * rope.trained_length * (1 + 1e-9)
    return (turns(rope) >= 1) | (plan.inv_freq * length <= seen)


def phase_change(rope: Rope, plan: Plan) -> float:
    """Largest change of the angle between a token and one `LOCAL` tokens before it, in radians.

    Attention to near tokens depends on the fast pairs, and this is how far a strategy turns what
    they have learned: 0 leaves them alone; beyond half a turn a pair is lost. On small models it
    orders strategies by their measured cost below the trained length, with exceptions, so it
    suggests what to measure first.
    """
    reach = min(LOCAL, rope.trained_length)
    return reach * float((plan.inv_freq - rope.inv_freq).abs().max())


def base_fit(length: int) -> float:
    """Lower bound of the base for `length` tokens, as fitted by Xu et al. (arXiv:2405.14591)."""
    return float(0.0424 * length**1.628)


def base_bound(dim: int, length: int) -> float | None:
    """Smallest base that distinguishes similar tokens from others at distances below `length`.

    Xu et al., "Base of RoPE Bounds Context Length" (arXiv:2405.14591), theorem 1: the sum of
    `cos(m theta_i)` over the pairs is at least 0 for all `m < length`. The bases that satisfy it
    are not one interval, so the rule here is: the first base that satisfies it on a grid from 1
    upwards in steps of 1 %, then bisected to 0.01 % against the grid point below it, which fails.

    Args:
        dim: Rotated dimensions.
        length: Tokens.

    Returns:
        The base; None if there is none up to 1e16 (a single pair), or the length is beyond
        `LONGEST_SEARCH`.
    """
    if length > LONGEST_SEARCH:
        return None
    base, near = 1.0, 0
    while (failed := _failure(base, dim, length, near)) is not None:
        base, near = base * _STEP, failed
        if base > _LARGEST_BASE:
            return None
    low, high = base / _STEP, base
    while high > 1.0001 * low:
        middle = math.sqrt(low * high)
        fails = _failure(middle, dim, length, near) is not None
        low, high = (middle, high) if fails else (low, middle)
    return high


def _failure(base: float, dim: int, length: int, near: int) -> int | None:
    """A distance at which the sum is below 0, searched around `near` first; None if there is none.

    By `cos(a + b) = cos a cos b - sin a sin b`, with the distances as rows and columns of a square,
    all sums are two products of matrices.
    """
    theta = Rope.standard(dim, base, length).inv_freq
    around = torch.arange(max(near - 16, 0), min(near + 16, length))
    if (found := _first_below((around[:, None] * theta).cos().sum(1))) is not None:
        return int(around[found])
    side = math.isqrt(length - 1) + 1
    columns = torch.arange(side)[:, None] * theta
    cos, sin = columns.cos().T, columns.sin().T
    for first, last in ((near // side - 1, near // side + 3), (0, side)):
        offset = max(first, 0) * side
        rows = torch.arange(offset, min(last, side) * side, side)[:, None] * theta
        sums = (rows.cos() @ cos - rows.sin() @ sin).flatten()[: length - offset]
        if (found := _first_below(sums)) is not None:
            return offset + found
    return None


def _first_below(sums: Tensor) -> int | None:
    below = torch.nonzero(sums < _ZERO)
    return int(below[0]) if len(below) else None

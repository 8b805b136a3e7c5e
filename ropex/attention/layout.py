"""Find by trial how the attention of a layer holds rotated states.

States of the same tokens at positions `p` and at `p + d` differ by a turn of `d`, as hidden states
do not depend on a common shift. The turn that explains the difference says all that is needed:
which table, which dimensions, in which layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ropex.attention.turns import Layout, Turn

STEP = 3
"""Positions between the two trials: odd, so that no pair comes back to where it was."""

_LAYOUTS: tuple[Layout, ...] = ("halves", "neighbours")


def fit(before: Tensor, after: Tensor, tables: Iterable[Tensor]) -> Turn | None:
    """The turn by `STEP` positions that leads from one to the other.

    Args:
        before: Queries or keys as attention gets them, `(batch, heads, tokens, dim)`.
        after: The same tokens, `STEP` positions later.
        tables: Frequencies that the model has, each `(pairs,)`, float64.

    Returns:
        The turn; one without pairs if the layer does not rotate, None if no turn explains it.
    """
    half = before.dtype in (torch.float16, torch.bfloat16)
    rounding = 4 * torch.finfo(before.dtype).eps if half else 64 * torch.finfo(torch.float32).eps
    before, after = before.double(), after.double()
    allowed = rounding * float(after.abs().max())
    if float((after - before).abs().max()) <= allowed:
        return Turn(before.new_zeros(0))
    tried = [(_error(turn, before, after), turn) for turn in _turns(before.shape[-1], tables)]
    error, found = min(tried, key=lambda each: each[0], default=(float("inf"), None))
    return found if error <= allowed else None


def _turns(dim: int, tables: Iterable[Tensor]) -> Iterator[Turn]:
    for table in tables:
        spare = dim - 2 * len(table)
        for start in sorted({0, spare}) if spare >= 0 else ():
            for layout in _LAYOUTS:
                for sign in (1, -1):
                    yield Turn(table, layout, start, sign)


def _error(turn: Turn, before: Tensor, after: Tensor) -> float:
    angles = turn.sign * STEP * turn.inv_freq.to(before.device).expand(before.shape[-2], -1)
    return float((turn(before, angles.cos(), angles.sin()) - after).abs().max())

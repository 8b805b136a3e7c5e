"""Cos and sin from phases in float64, where float32 is off by 3e-3 at position 131,072."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ropex.errors import UnsupportedModel
from ropex.model.sites.hooks import by_row
from ropex.model.sites.slots import Slot, has_axes
from ropex.model.tables import TableAt

# How the output of a rotary module is made of the phases of the pairs, `(..., dim // 2)`.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "halves": lambda phases: torch.cat([phases, phases], dim=-1),
    "interleaved": lambda phases: phases.repeat_interleave(2, dim=-1),
    "pairs": lambda phases: phases,
}


class ExactTables:
    """Tables whose phases are products and cosines in float64.

    Args:
        slot: Where the module keeps its table.
        before: Pre-hook that puts a float32 table where the module reads it.
        table_at: The table of a length, float64.
        by_length: Whether it depends on the length.
        layout: One of `LAYOUTS`.
    """

    def __init__(
        self, slot: Slot, before: Any, table_at: TableAt, by_length: bool, layout: str
    ) -> None:
        self.slot, self.before, self.table_at = slot, before, table_at
        self.by_length, self.layout = by_length, layout

    def rotation(
        self, module: Any, x: Tensor, positions: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cos and sin at `positions`, `(batch, length, dim)`, as the module returns them."""
        rows = by_row(positions, lengths) if self.by_length else [(positions, positions.max() + 1)]
        made = [self._row(row, length) for row, length in rows]
        dtype = self.slot.call(module, x, positions[:1, :1])[0].dtype  # some keep float32
        cos, sin = (torch.cat(parts).to(dtype) for parts in zip(*made, strict=True))
        return cos, sin

    def _row(self, positions: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        inv_freq, scale = self.table_at(length)
        phases = LAYOUTS[self.layout](positions[..., None].double() * inv_freq)
        return phases.cos() * scale, phases.sin() * scale


def layout_of(module: Any, slot: Slot) -> str:
    """How a rotary module arranges the pairs, found by calling it.

    Raises:
        UnsupportedModel: In no way that ropex knows.
    """
    if slot.by_positions and not has_axes(module):
        device = slot.table(module).device
        positions = torch.arange(3, device=device)[None]
        output = slot.call(module, torch.zeros(1, 3, 1, device=device), positions)
        phases = positions[..., None] * slot.table(module).float()  # as of this call
        for name, arrange in LAYOUTS.items():
            wanted = arrange(phases).cos() * slot.scale(module)
            fits = isinstance(output, tuple) and wanted.shape == output[0].shape
            if fits and torch.allclose(output[0], wanted, atol=1e-4):
                return name
    raise UnsupportedModel(
        f"{module.config.model_type}: {type(module).__name__} returns cos and sin in an order that "
        'ropex does not know, so precision="exact" is not available for it'
    )

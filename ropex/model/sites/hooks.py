"""What runs around a rotary module of a patched model: its table, and what it returns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from ropex.model.sites.slots import Slot, input_of, positions_of, row_lengths
from ropex.model.tables import TableAt


class Tables(Protocol):
    """The frequencies of a patched rotary module."""

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: put the table where the module reads it."""

    def rotation(
        self, module: Any, x: Tensor, positions: Tensor, lengths: Tensor | None = None
    ) -> Any:
        """What the module returns, its hooks left out.

        Args:
            module: The rotary module.
            x: Tells dtype and device.
            positions: `(batch, length)`.
            lengths: Tokens that each sequence is taken to have, `(batch,)`; by default as many as
                its positions say.
        """


class FixedTable:
    """One table for all sequences.

    A hook and not only a buffer, because `.to(bfloat16)` rounds buffers and a later
    re-initialisation rebuilds them.

    Args:
        slot: Where the module keeps it.
        inv_freq: The planned frequencies, `(dim // 2,)`, float32.
        scale: What cos and sin are multiplied by.
    """

    def __init__(self, slot: Slot, inv_freq: Tensor, scale: float) -> None:
        self.slot, self.inv_freq, self.scale = slot, protected(inv_freq), scale
        self.master = inv_freq.clone()  # FSDP rounds the very tensor that is registered

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Put the table where the module reads it, on the device of its input."""
        self._put(module, input_of(args, kwargs).device)

    def rotation(
        self, module: Any, x: Tensor, positions: Tensor, lengths: Tensor | None = None
    ) -> Any:
        """The module's own forward."""
        self._put(module, x.device)
        return self.slot.call(module, x, positions)

    def _put(self, module: Any, device: torch.device) -> None:
        table = self.inv_freq  # one name for all lines, as replicas on other devices share it
        if table.device != device or table.dtype != self.master.dtype:
            table = self.inv_freq = protected(self.master.to(device, copy=True))
        if not self.slot.holds(module, table):
            self.slot.put(module, table, self.scale)


class LengthTable:
    """The table of the length of each sequence, which its positions tell.

    Nothing depends on what the model saw before, nor on the other rows of the batch.

    Args:
        slot: Where the module keeps it.
        table_at: The table of a length, float32.
    """

    def __init__(self, slot: Slot, table_at: TableAt) -> None:
        self.slot, self.table_at = slot, table_at

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Put the table of the longest row where the module reads it."""
        if self.slot.asked(args, kwargs):
            self._put(module, self.slot.length(args, kwargs))

    def rotation(
        self, module: Any, x: Tensor, positions: Tensor, lengths: Tensor | None = None
    ) -> Any:
        """The module's own forward, row by row."""
        rows = []
        for row, length in by_row(positions, lengths):
            self._put(module, length)
            rows.append(self.slot.call(module, x, row))
        if isinstance(rows[0], Tensor):
            return torch.cat(rows, dim=-3)
        return tuple(torch.cat(parts, dim=-3) for parts in zip(*rows, strict=True))

    def _put(self, module: Any, length: Tensor) -> None:
        self.slot.put(module, *self.table_at(length))


class Rotation:
    """Forward hook: what a rotary module returns, where its own forward does not compute it.

    Args:
        slot: For which calls.
        tables: Its tables.
        each_row: Whether its own forward does, but for rows of a batch with tables of their own.
        identity: Whether to leave queries and keys as they are, for an attention that rotates.
    """

    def __init__(self, slot: Slot, tables: Tables, each_row: bool, identity: bool) -> None:
        self.slot, self.tables, self.each_row, self.identity = slot, tables, each_row, identity

    def __call__(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """The output to use instead; None keeps it."""
        if not self.slot.asked(args, kwargs):
            return None
        if self.identity:
            if isinstance(output, Tensor):  # complex numbers
                return torch.ones_like(output)
            cos, sin = output
            return torch.ones_like(cos), torch.zeros_like(sin)
        positions = positions_of(args, kwargs)
        if self.each_row and positions.shape[-2] == 1:
            return None
        return self.tables.rotation(module, input_of(args, kwargs), positions)


def by_row(positions: Tensor, lengths: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions `(1, length)`, or of each axis, and length, 0-dimensional, of each row."""
    lengths = row_lengths(positions) if lengths is None else lengths
    return zip(torch.split(positions, 1, dim=-2), lengths.unbind(), strict=True)


def protected(table: Tensor) -> Tensor:
    """The same tensor, marked so that transformers 5 does not initialise it again in place."""
    table._is_hf_initialized = True  # type: ignore[attr-defined]
    return table

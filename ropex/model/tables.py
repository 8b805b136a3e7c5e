"""The table of frequencies of each sequence length, by a plan or by transformers itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ropex.rope import Plan, Rope
from ropex.strategies.base import Strategy

# transformers computes in float32, a plan in float64; a power of the base costs a few units in the
# last place (measured: at most 7e-7 up to a base of 1e7).
TOLERANCE = 2e-6

TableAt: TypeAlias = Callable[[Tensor], tuple[Tensor, Any]]
"""Length in tokens, a 0-dimensional tensor, to frequencies `(dim // 2,)` and attention scale."""


@dataclass(frozen=True, eq=False)
class PlannedTable:
    """The table of each length, by the plan of a strategy."""

    strategy: Strategy
    rope: Rope
    dtype: torch.dtype = torch.float32

    def __call__(self, length: Tensor) -> tuple[Tensor, Any]:
        """Frequencies, `(dim // 2,)`, and the attention scale, where `length` is."""
        rope = replace(self.rope, inv_freq=self.rope.inv_freq.to(length.device))  # lists follow it
        plan = self.strategy.plan(rope, length)
        return plan.inv_freq.to(self.dtype), plan.attention_scale


@dataclass(frozen=True, eq=False)
class OneTable:
    """The float64 table of a plan that is the same at every length."""

    plan: Plan

    def __call__(self, length: Tensor) -> tuple[Tensor, Any]:
        """Frequencies, `(dim // 2,)`, and the attention scale, where `length` is."""
        return self.plan.inv_freq.to(length.device), self.plan.attention_scale


@dataclass(frozen=True, eq=False)
class TransformersTable:
    """The table of each length, by transformers' own function for a rope type.

    Attributes:
        rope_type: `dynamic`, or `longrope`, which has a table of short sequences and one of long.
        config: What the function reads.
        trained_length: Tokens up to which all lengths have one table.
        layer_type: The layers whose table it is; empty where all have one.
    """

    rope_type: str
    config: Any
    trained_length: int
    layer_type: str = ""

    def __call__(self, length: Tensor) -> tuple[Tensor, Any]:
        """Frequencies, `(dim // 2,)`, float32, and the attention scale, where `length` is."""
        if self.rope_type == "dynamic":
            return self._at(length, length.clamp(min=self.trained_length))
        short, scale = self._at(length, self.trained_length)
        long, _ = self._at(length, self.trained_length + 1)
        return torch.where(length > self.trained_length, long, short), scale

    def _at(self, length: Tensor, tokens: int | Tensor) -> tuple[Tensor, Any]:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        which = {"layer_type": self.layer_type} if self.layer_type else {}
        made = ROPE_INIT_FUNCTIONS[self.rope_type]
        table, scale = made(self.config, length.device, seq_len=tokens, **which)
        return table, scale


def table_key(inv_freq: Tensor) -> bytes:
    """A key that is equal for tables that are equal to the last bit."""
    return bytes(inv_freq.numpy().tobytes())


class Rows:
    """Cos and sin at positions from 0 on, for modules that hand out whole tables.

    Layers that rotate alike share one. Phases are products in float64.

    Args:
        table_at: The float64 table of a length.
        by_length: Whether it depends on the length.
        target: Tokens that the patched model is meant to reach.
        unchanged: Whether these are the model's own frequencies.
    """

    def __init__(
        self, table_at: TableAt, by_length: bool, target: int, unchanged: bool = False
    ) -> None:
        self.table_at, self.by_length, self.target = table_at, by_length, target
        self.unchanged = unchanged
        self._kept: tuple[int, Tensor, Tensor] | None = None

    @classmethod
    def of(cls, strategy: Strategy, rope: Rope, plan: Plan, target: int) -> Rows:
        """The rows of a strategy."""
        if strategy.class_on(rope) == "static":
            return cls(OneTable(plan), False, target, not plan.changes(rope))
        return cls(PlannedTable(strategy, rope, torch.float64), True, target)

    def cos_sin(
        self, rows: int, device: torch.device, whole: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Cos and sin of a sequence of `rows` tokens, `(rows, dim // 2)`, float32.

        Args:
            rows: Tokens.
            device: Where to.
            whole: All rows that there are.
        """
        kept = self._kept
        enough = kept is not None and (kept[0] == rows if self.by_length else kept[0] >= rows)
        if kept is None or not enough or kept[1].device != device:
            # Every call of a growing sequence asks for one more.
            reach = rows if self.by_length else max(self.target, 2 ** (rows - 1).bit_length())
            kept = self._kept = (reach, *self._computed(reach, device))
        return kept[1][: None if whole else rows], kept[2][: None if whole else rows]

    def _computed(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        inv_freq, scale = self.table_at(torch.tensor(rows))
        phases = torch.outer(torch.arange(rows, dtype=torch.float64), inv_freq.cpu())
        cos, sin = (phases.cos() * scale, phases.sin() * scale)
        return cos.float().to(device), sin.float().to(device)


@dataclass(frozen=True, eq=False)
class Native:
    """How one strategy is realised in one table of a model.

    Attributes:
        entry: The config entry that stands for it; None where no entry can.
        inv_freq: The table, `(dim // 2,)`, float32; None for a strategy that depends on length.
        table_at: Length (0-dimensional tensor) to table and attention scale, for a strategy that
            depends on length.
        attention_scale: What cos and sin are multiplied by, at the trained length.
        rows: Its cos and sin, for modules that hand out whole tables.
    """

    entry: dict[str, Any] | None
    inv_freq: Tensor | None
    table_at: TableAt | None
    attention_scale: float
    rows: Rows | None = None


def outside_config(strategy: Strategy, rope: Rope) -> Native:
    """The plan itself, where no config entry stands for it."""
    plan = strategy.plan(rope)
    if strategy.class_on(rope) == "static":
        return Native(None, plan.inv_freq.float(), None, plan.attention_scale)
    return Native(None, None, PlannedTable(strategy, rope), plan.attention_scale)


def close(table: Tensor, wanted: Tensor) -> bool:
    """Whether a float32 table equals a float64 one, to the accuracy of float32."""
    if table.shape != wanted.shape:
        return False
    return bool(((table.double() - wanted).abs() <= TOLERANCE * wanted.abs()).all())

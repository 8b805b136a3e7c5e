"""Sinusoidal tables of transformers itself: GPT-J, CodeGen and RoFormer.

Rows are `sin | cos` of each pair, as "Attention is all you need" has them for absolute positions.
"""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ropex.install import set_attribute
from ropex.sites.base import Site
from ropex.sites.computed import Answer, Layout, angles, powers, trusted
from ropex.tables import Rows


class PositionBuffer(Layout):
    """A buffer of rows on each attention, indexed by `position_ids` (GPT-J, CodeGen)."""

    def fits(self, module: Any, model: Any) -> bool:
        """Whether the module holds such a buffer."""
        buffer = getattr(module, "embed_positions", None)
        return isinstance(buffer, Tensor) and buffer.ndim == 2 and hasattr(module, "rotary_dim")

    def frequencies(self, module: Any, config: Any) -> Tensor:
        """The powers of 10000, which the buffer was made of."""
        rows = module.embed_positions
        formula = powers(self.base, rows.shape[1])
        return formula if rows.is_meta else trusted(_row_angles(rows), formula)

    def answer(self, rows: Rows, module: Any, *args: Any, **kwargs: Any) -> Any:
        """Pre-hook of the attention: a buffer as long as the call's positions ask for."""
        self.put(rows, module, int(kwargs["position_ids"].max()) + 1)

    def put(self, rows: Rows, module: Any, reach: int) -> None:
        """Let the module hold rows for a sequence of `reach` tokens."""
        live = module.embed_positions
        held = getattr(live, "ropex_reach", 0)
        if held == reach or (held > reach and not rows.by_length):
            return
        cos, sin = rows.cos_sin(reach, live.device, whole=not rows.by_length)
        table = torch.cat([sin, cos], dim=-1).to(live.dtype)
        table.ropex_reach = len(table)  # type: ignore[attr-defined]
        module.embed_positions = table

    def first_angles(self, module: Any, length: int) -> Tensor:
        """Phases at position 1 in the buffer for a sequence of `length` tokens."""
        answer = vars(module).get("ropex_answer")
        if answer is not None:
            self.put(answer.rows, module, length)
        return _row_angles(module.embed_positions)

    def earlier(self, module: Any) -> Answer | None:
        """What an earlier patch answers with."""
        found: Answer | None = vars(module).get("ropex_answer")
        return found

    def attach(self, module: Any, answer: Answer, undo: ExitStack) -> None:
        """Put rows into the buffer before each call."""
        undo.callback(
            module.register_forward_pre_hook(_BeforeCall(answer), with_kwargs=True).remove
        )
        set_attribute(module, "ropex_answer", answer, undo)
        set_attribute(module, "embed_positions", module.embed_positions.clone(), undo)


class _BeforeCall:
    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.answer(module, *args, **kwargs)


class PositionEmbedding(Layout):
    """An embedding whose weight is the table, one row a position (RoFormer)."""

    in_weights = True

    def fits(self, module: Any, model: Any) -> bool:
        """Whether the module is such an embedding, and attention rotates by it (Marian adds it)."""
        if not isinstance(module, nn.Embedding) or module.weight.requires_grad:
            return False
        asked = inspect.signature(type(module).forward).parameters
        rotates = any(hasattr(m, "apply_rotary_position_embeddings") for m in model.modules())
        return rotates and "past_key_values_length" in asked

    def frequencies(self, module: Any, config: Any) -> Tensor:
        """The powers of 10000, which the weight was made of."""
        formula = powers(self.base, module.weight.shape[1])
        return formula if module.weight.is_meta else trusted(_row_angles(module.weight), formula)

    def answer(
        self, rows: Rows, module: Any, shape: Any, past: int = 0, positions: Tensor | None = None
    ) -> Tensor:
        """Rows of the positions, `(length, dim)`."""
        weight = module.weight
        if positions is None:
            positions = torch.arange(past, past + int(shape[1]), device=weight.device)
        cos, sin = rows.cos_sin(int(positions.max()) + 1, weight.device)
        return torch.cat([sin, cos], dim=-1)[positions].to(weight.dtype)

    def first_angles(self, module: Any, length: int) -> Tensor:
        """Phases at position 1 of a sequence of `length` tokens."""
        row: Tensor = module((1, length))[1]
        return _row_angles(torch.stack([row, row]))

    def write(self, site: Site, answer: Answer, homes: tuple[Any, ...], undo: ExitStack) -> bool:
        """A weight as long as the target, and a config that says so."""
        rows, module = answer.rows, site.module
        if rows.by_length or module.weight.is_meta:
            return False
        cos, sin = rows.cos_sin(rows.target, module.weight.device)
        table = torch.cat([sin, cos], dim=-1).to(module.weight.dtype)
        set_attribute(module, "weight", nn.Parameter(table, requires_grad=False), undo)
        set_attribute(module, "num_embeddings", rows.target, undo)
        for config in (site.config, *homes):
            config.max_position_embeddings = rows.target
        return bool(homes)


def _row_angles(table: Tensor) -> Tensor:
    sin, cos = table[1].chunk(2)
    return angles(cos, sin)

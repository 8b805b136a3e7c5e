"""Sinusoidal tables of transformers itself: GPT-J, CodeGen and RoFormer.

Rows are `sin | cos` of each pair, as "Attention is all you need" has them for absolute positions.
"""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ropex.model.attributes import set_attribute
from ropex.model.sites.computed import Answer, ComputedSite, angles, powers, trusted
from ropex.model.sites.slots import row_lengths
from ropex.rope import Rope


class PositionBuffer(ComputedSite):
    """A buffer of rows on each attention, indexed by `position_ids` (GPT-J, CodeGen)."""

    has_last_row = True

    @classmethod
    def fits(cls, module: Any, model: Any) -> bool:
        """Whether the module holds such a buffer."""
        buffer = getattr(module, "embed_positions", None)
        return isinstance(buffer, Tensor) and buffer.ndim == 2 and hasattr(module, "rotary_dim")

    def frequencies(self) -> Tensor:
        """The powers of 10000, which the buffer was made of."""
        rows = self.module.embed_positions
        formula = powers(self.base, rows.shape[1])
        return formula if rows.is_meta else trusted(_row_angles(rows), formula)

    def fill_later(self, rope: Rope, undo: ExitStack) -> None:
        """Give a module on the meta device the rows that it was trained with."""
        live = self.module.embed_positions
        if live.is_meta:
            phases = torch.outer(torch.arange(len(live)).double(), rope.inv_freq)
            rows = torch.cat([phases.sin(), phases.cos()], dim=-1)
            self.module.embed_positions = (rows * rope.attention_scale).to(live.dtype)

    @classmethod
    def answer(cls, given: Answer, module: Any, *args: Any, **kwargs: Any) -> Any:
        """Pre-hook of the attention: a buffer as long as the call's positions ask for.

        Raises:
            RuntimeError: Rows of the batch have lengths of their own, and the table goes by them.
        """
        if vars(module)["ropex_answer"] is not given:  # of a patch below the last one
            return
        lengths = row_lengths(kwargs["position_ids"])
        longest = int(lengths.max())
        if given.rows.by_length and longest > max(given.rows.target, int(lengths.min())):
            raise RuntimeError(
                "this model has one rotary table for a batch, and its rows are of different "
                "lengths, by which the strategy goes; run them one by one, or fix the length "
                "(dynamic:length=32k)"
            )
        cls.put(given, module, longest)

    @classmethod
    def put(cls, given: Answer, module: Any, reach: int) -> None:
        """Let the module hold rows for a sequence of `reach` tokens."""
        rows, live = given.rows, module.embed_positions
        held = getattr(live, "ropex_reach", 0)
        if held == reach or (held > reach and not rows.by_length):
            return
        table = _table(given, reach, live.device, live.dtype)
        table.ropex_reach = len(table)  # type: ignore[attr-defined]
        module.embed_positions = table

    def first_angles(self, length: int) -> Tensor:
        """Phases at position 1 in the buffer for a sequence of `length` tokens."""
        answer = vars(self.module).get("ropex_answer")
        hooks = self.module._forward_pre_hooks.values()
        if answer is not None and any(isinstance(hook, _BeforeCall) for hook in hooks):
            self.put(answer, self.module, length)
        return _row_angles(self.module.embed_positions)

    def save(self, answer: Answer, homes: tuple[Any, ...], undo: ExitStack) -> bool:
        """Nothing; only a table that goes on as it began needs not be said."""
        return answer.rows.unchanged

    def earlier(self) -> Answer | None:
        """What an earlier patch answers with."""
        found: Answer | None = vars(self.module).get("ropex_answer")
        return found

    def attach(self, answer: Answer, undo: ExitStack) -> None:
        """Put rows into the buffer before each call."""
        if answer.rows.unchanged:
            answer = replace(answer, own=self.module.embed_positions)
        undo.callback(
            self.module.register_forward_pre_hook(_BeforeCall(answer), with_kwargs=True).remove
        )
        set_attribute(self.module, "ropex_answer", answer, undo)
        set_attribute(self.module, "embed_positions", self.module.embed_positions.clone(), undo)
        # Code that was compiled before reads the buffer, and notices no new hook.
        self.put(answer, self.module, len(self.module.embed_positions))


class _BeforeCall:
    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.answer(module, *args, **kwargs)


class PositionEmbedding(ComputedSite):
    """An embedding whose weight is the table, one row a position (RoFormer)."""

    has_last_row = True
    in_weights = True

    @classmethod
    def fits(cls, module: Any, model: Any) -> bool:
        """Whether the module is such an embedding, and attention rotates by it (Marian adds it)."""
        if not isinstance(module, nn.Embedding):
            return False
        if "past_key_values_length" not in inspect.signature(type(module).forward).parameters:
            return False
        return any(hasattr(m, "apply_rotary_position_embeddings") for m in model.modules())

    def frequencies(self) -> Tensor:
        """The powers of 10000, which the weight was made of."""
        formula, weight = powers(self.base, self.module.weight.shape[1]), self.module.weight
        if weight.is_meta or hasattr(weight, "full_tensor"):  # elsewhere, or in shards
            return formula
        return trusted(_row_angles(weight), formula)

    @classmethod
    def answer(
        cls,
        given: Answer,
        module: Any,
        input_ids_shape: Any,
        past_key_values_length: int = 0,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Rows of the positions, `(length, dim)`."""
        if position_ids is None:
            past, length = past_key_values_length, int(input_ids_shape[1])
            position_ids = torch.arange(past, past + length, device=_device(module))
        weight = module.weight
        table = _table(given, int(position_ids.max()) + 1, _device(module), weight.dtype)
        return table[position_ids]

    def attach(self, answer: Answer, undo: ExitStack) -> None:
        """Answer in the place of the embedding."""
        if answer.rows.unchanged:
            answer = replace(answer, own=self.module.weight.detach())
        super().attach(answer, undo)

    def first_angles(self, length: int) -> Tensor:
        """Phases at position 1 of a sequence of `length` tokens."""
        row: Tensor = self.module((1, length if self.earlier() else 2))[1]
        return _row_angles(torch.stack([row, row]))

    def save(self, answer: Answer, homes: tuple[Any, ...], undo: ExitStack) -> bool:
        """A weight as long as the target, and a config that says so."""
        rows, weight = answer.rows, self.module.weight
        if rows.unchanged:
            return True
        if rows.by_length or weight.is_meta or hasattr(weight, "full_tensor"):
            return False
        table = _table(answer, rows.target, weight.device, weight.dtype)[: rows.target]
        set_attribute(self.module, "weight", nn.Parameter(table, requires_grad=False), undo)
        set_attribute(self.module, "num_embeddings", rows.target, undo)
        for config in (self.config, *homes):
            config.max_position_embeddings = rows.target
        return bool(homes)


def _table(given: Answer, reach: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Rows of `sin | cos`, at least `reach` of them."""
    cos, sin = given.rows.cos_sin(reach, device, whole=not given.rows.by_length)
    table = torch.cat([sin, cos], dim=-1).to(dtype)
    if given.own is not None:
        table[: len(given.own)] = given.own[: len(table)]
    return table


def _device(module: Any) -> torch.device:
    """Where a module computes: where its weight is, or where accelerate brings it."""
    hook = getattr(module, "_hf_hook", None)
    if module.weight.is_meta and hook is not None:
        return torch.device(hook.execution_device)
    device: torch.device = module.weight.device
    return device


def _row_angles(table: Tensor) -> Tensor:
    sin, cos = table[1].chunk(2)
    return angles(cos, sin)

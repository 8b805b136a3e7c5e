"""One forward pass whose loss is computed a few rows of logits at a time."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ropex.errors import UnsupportedModel
from ropex.model.attributes import set_attribute
from ropex.model.head import Finish, close, finishes
from ropex.model.modes import in_mode
from ropex.model.probe import probe_ids

# Logits of one chunk and their gradient, in the model's dtype and in float32, and probabilities.
_BYTES_PER_LOGIT = 16


@dataclass
class Chunks:
    """State of a chunked loss, held by the model so that it is copied with it.

    Attributes:
        plain: The original forward pass.
        loss: The loss function.
        rows: Tokens at a time.
        finish: Turns the output of the output embedding into logits; None until it is found.
        active: Whether the loss is chunked.
    """

    plain: Any
    loss: Any
    rows: int | None
    finish: Finish | None = None
    active: bool = True

    @cached_property
    def signature(self) -> inspect.Signature:
        """Signature of the original forward pass."""
        return inspect.signature(self.plain)

    def forward(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The forward pass, with a chunked loss if it is given labels."""
        names = list(self.signature.parameters)[: len(args)]
        given = {**dict(zip(names, args, strict=True)), **kwargs}
        if not self.active or given.get("labels") is None:
            return self.plain(*args, **kwargs)
        if self.finish is None:
            self._find(model)
        as_tuple = given.pop("return_dict", None)
        output = _Pass(self, model).run({**given, "return_dict": True})
        output = type(output)(**{**output, "logits": None})
        wanted = model.config.return_dict if as_tuple is None else as_tuple
        return output if wanted else output.to_tuple()

    def _find(self, model: Any) -> None:
        ids, found = probe_ids(model), _Probe(self, model)
        with in_mode(model, training=False), torch.no_grad():
            found.run({"input_ids": ids, "labels": ids})
        if not found.same:
            raise UnsupportedModel(
                f"{type(model).__name__} computes its loss from more than its output embedding, a "
                "soft cap or a scale, and the next tokens, so it cannot be computed in chunks; "
                "train it without chunk_loss"
            )
        self.finish = found.finish


class _Pass:
    """One forward pass with labels, whose loss is computed from the input of the output embedding.

    Args:
        chunks: The state of the chunked loss.
        model: The model.
    """

    def __init__(self, chunks: Chunks, model: Any) -> None:
        self.chunks, self.model, self.finish = chunks, model, chunks.finish
        self.rows, self.head = chunks.rows, model.get_output_embeddings()
        self.states: Tensor | None = None

    def run(self, given: dict[str, Any]) -> Any:
        """The model's own forward pass, with the loss from here."""
        with ExitStack() as undo:
            undo.callback(self.head.register_forward_pre_hook(self.before_head).remove)
            set_attribute(self.model, "_loss_function", self.loss, undo)
            return self.chunks.plain(**given)

    def before_head(self, head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Keep the hidden states, and let the model compute the logits of one token."""
        if self.states is not None:  # a chunk
            return None
        self.states = args[0]
        return (args[0][..., :1, :], *args[1:])

    def loss(
        self,
        logits: Tensor,
        labels: Tensor | None,
        vocab_size: int,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = -100,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The model's own loss, ignoring the logits that the model computed."""
        assert self.states is not None  # see `_Probe`
        goals = shift_labels
        if goals is None:
            goals = functional.pad(cast(Tensor, labels), (0, 1), value=ignore_index)[..., 1:]
        items = num_items_in_batch
        if items is None:
            items = (goals != ignore_index).sum()

        def of(part: Tensor, goals: Tensor) -> Tensor:
            assert self.finish is not None
            settings = {"num_items_in_batch": items, "ignore_index": ignore_index, **kwargs}
            found: Tensor = self.chunks.loss(
                self.finish(self.head(part)), goals, vocab_size, shift_labels=goals, **settings
            )
            return found

        rows = self.rows or _rows(self.states, vocab_size)
        parts = self.states.flatten(0, -2).split(rows), goals.flatten().split(rows)
        losses = [checkpoint(of, *part, use_reentrant=False) for part in zip(*parts, strict=True)]
        return torch.stack(losses).sum()


class _Probe(_Pass):
    """A forward pass that computes all logits, and the loss in both ways to compare."""

    same = False

    def before_head(self, head: nn.Module, args: tuple[Any, ...]) -> None:
        """Keep the hidden states."""
        self.states = args[0] if self.states is None else self.states

    def loss(self, logits: Tensor, labels: Tensor | None, vocab_size: int, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """The model's own, after the comparison."""
        whole: Tensor = self.chunks.loss(logits, labels, vocab_size, **kwargs)
        if self.states is None:
            return whole
        raw, known = self.head(self.states), finishes(self.model.config.get_text_config())
        self.finish = next((each for each in known if close(each(raw), logits)), None)
        if self.finish is not None:
            self.rows = 1 + self.states.shape[-2] // 4
            chunked = super().loss(logits, labels, vocab_size, **kwargs)
            self.same = close(chunked.to(logits.dtype), whole.to(logits.dtype))
        return whole


def _rows(states: Tensor, vocabulary: int) -> int:
    """Rows whose logits take as much memory as the larger of output embedding and `states`."""
    most = max(vocabulary, states[..., 0].numel())
    row = states.shape[-1] * states.element_size()
    return max(1, row * most // (_BYTES_PER_LOGIT * vocabulary))

"""Cross-entropy over a vocabulary for training, without ever holding all logits."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from types import MethodType
from typing import Any

import torch
from torch import nn

from ropex.errors import UnsupportedModel
from ropex.model.attributes import set_attribute
from ropex.model.modes import in_mode
from ropex.model.probe import has_weights, probe_ids
from ropex.train.loss_pass import Chunks


def chunk_loss(model: nn.Module, rows: int | None = None) -> ChunkedLoss:
    """Let `model` compute its loss from hidden states, a few rows of logits at a time, in place.

    With `labels`, the forward pass runs as usual, but the output embedding reads one token, and the
    loss is summed over chunks whose logits are recomputed in the backward pass. Loss and gradients
    are unchanged, also with `num_items_in_batch`, `shift_labels` and router losses; the output has
    no `logits`, in training and in evaluation. Without `labels`, nothing changes. It lasts until
    `ChunkedLoss.remove()`, or the end of a `with` block.

    How the model computes logits from hidden states is verified on a few tokens: at once, or, if
    the weights are not loaded yet, in the first forward pass with labels.

    Args:
        model: A causal language model of transformers, or what wraps one (PEFT, DDP, FSDP).
        rows: Tokens whose logits are computed at a time; by default as many as take no more memory
            than the larger of the output embedding and the hidden states.

    Returns:
        The handle that undoes the change.

    Raises:
        UnsupportedModel: The model has no next-token loss, or does more between hidden states and
            loss than ropex knows.
        ValueError: `rows` is not positive, or the loss is chunked already.

    Example:
        >>> with chunk_loss(model):
        ...     Trainer(model=model, args=arguments, train_dataset=data).train()
    """
    if rows is not None and rows < 1:
        raise ValueError(f"rows is {rows}, it must be at least 1; leave it out for the default")
    return ChunkedLoss(_causal_model(model), rows)


class ChunkedLoss:
    """A loss that is computed in chunks; what `chunk_loss` returns.

    Attributes:
        model: The causal language model.
    """

    def __init__(self, model: Any, rows: int | None) -> None:
        before = [value for value in vars(model).values() if isinstance(value, Chunks)]
        if any(chunks.active for chunks in before):
            raise ValueError("the loss of this model is chunked already; remove that first")
        self.model, self._undo = model, ExitStack()
        self._chunks = Chunks(model.forward, model.loss_function, rows)
        name = f"ropex_chunks_{len(before)}"
        self._forward = MethodType(_forward_by(name, self._chunks.signature), model)
        set_attribute(model, name, self._chunks, self._undo)
        set_attribute(model, "forward", self._forward, self._undo)
        if has_weights(model):
            self._try()

    def remove(self) -> None:
        """Restore the model; calling it again does nothing.

        If accelerate has wrapped the forward pass since, the wrapper stays and calls the model's.
        """
        self._chunks.active = False
        if vars(self.model).get("forward") == self._forward:
            self._undo.close()

    def __enter__(self) -> ChunkedLoss:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _try(self) -> None:
        ids = probe_ids(self.model)
        try:
            with in_mode(self.model, training=False), torch.no_grad():
                self.model(input_ids=ids, labels=ids)
        except BaseException:
            self.remove()
            raise


def _forward_by(name: str, signature: inspect.Signature) -> Any:
    """A forward pass that calls what the module stores under a name, with the old signature.

    Trainer reads the signature: which columns to keep, and whether losses are divided by all items.
    It has no `__wrapped__`, since accelerate would unwrap it.
    """

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, name).forward(self, args, kwargs)

    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    parameters = [this, *signature.parameters.values()]
    forward.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return forward


def _causal_model(model: nn.Module) -> Any:
    """The model of transformers inside its wrappers."""
    from transformers import PreTrainedModel

    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.get_output_embeddings() is not None:
            return module
    raise UnsupportedModel(
        f"{type(model).__name__} has no output embedding, so it has no loss to chunk; give a "
        "causal language model"
    )
